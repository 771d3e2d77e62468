"""Data for the second stage (CFW): degraded pictures, what stage 1 makes of them, and the truth.

Of every sample NAME there are inputs/NAME.png (degraded, at the true picture's size), gts/NAME.png, latents/NAME.npy
(float32 (1, 4, h, w), scaled) and samples/NAME.png (the latent decoded): what StableSR's script writes, and what
`basicsr.data.single_image_dataset.SingleImageNPDataset` reads.

All that is random about a sample is a function of its name and the seed.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from basicsr.data.degradation_pipeline import DegradationConfig, DegradationPipeline
from basicsr.data.ffhq_degradation_dataset import FFHQDegradationDataset
from basicsr.data.kernels import draw_final_sinc, draw_kernel
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.data.transforms import random_crop, random_flips
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import write_whole
from basicsr.utils.img_util import as_01, find_pictures, read_rgb
from basicsr.utils.ranges import from_pm1, rounded_01, to_pm1, to_u8
from basicsr.utils.retries import with_retries
from basicsr.utils.rng import derived_seed, numpy_rng, torch_rng
from ldm.config import Config
from ldm.inference.networks import Networks
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.sampling import Sampling, noise_of_pictures
from ldm.util import instantiate_from_config

FOLDERS = {"inputs": ".png", "gts": ".png", "latents": ".npy", "samples": ".png"}


@dataclass(frozen=True)
class Job:
    """One sample to be: a picture, and the name of all its files."""

    picture: Path
    name: str

    def files(self, folder: Path) -> list[Path]:
        """Its four files below a folder."""
        return [folder / kind / f"{self.name}{suffix}" for kind, suffix in FOLDERS.items()]

    def done(self, folder: Path) -> bool:
        """Whether all four are there."""
        return all(file.is_file() for file in self.files(folder))


@dataclass(frozen=True)
class DegradedPicture:
    """A degraded picture and its truth: (3, H, W) in [0, 1], in steps of 1/255, as the files hold them."""

    lq_01: Tensor
    gt_01: Tensor


def list_jobs(folders: Sequence[str], repeats: int = 1, looked_through: dict[str, int] | None = None) -> list[Job]:
    """`repeats` samples of every picture below some folders, in an order of their own; see `list_pictures`.

    A sample is named for its picture's path below its folder, `a/b.jpg` a__b, with `-2` and so on for its repeats, each
    of which is cropped and degraded anew. Pictures whose names differ in their suffix alone keep it.

    Raises:
        UserError: no picture, or two of one name.
    """
    found = [
        (path, path.relative_to(folder))
        for folder in folders
        for path in find_pictures(folder, name="input", looked_through=looked_through)
    ]
    if not found:
        raise FieldError("input", f"{', '.join(folders)}: there is no picture in it")
    stems = Counter("__".join(below.with_suffix("").parts) for _, below in found)
    owners: dict[str, Path] = {}
    jobs = []
    for path, below in found:
        stem = "__".join(below.with_suffix("").parts)
        name = stem if stems[stem] == 1 else "__".join(below.parts)
        if (other := owners.setdefault(name, path)) != path:
            raise UserError(f"{other} and {path} would both be called {name}: rename one of them")
        jobs += [Job(path, name if repeat == 1 else f"{name}-{repeat}") for repeat in range(1, repeats + 1)]
    return jobs


class Degraded(Dataset[DegradedPicture | str]):
    """The frames of jobs, degraded as a config's training does it; the reason, where a picture cannot be read.

    Raises:
        UserError: a config that lacks what training needs, or whose data set degrades in a way of its own.

    `folder` holds pictures, of whatever jobs. retries: of reading one, see `with_retries`.
    """

    def __init__(self, jobs: Sequence[Job], config: Config, folder: str, seed: int, retries: int = 0) -> None:
        self.jobs, self.seed, self.retries = jobs, seed, retries
        self._recipe = _training_set(config, folder)
        self._pipeline: DegradationPipeline | None = None
        if isinstance(self._recipe, RealESRGANDataset):
            options, use_usm = config.get("degradation"), config.get("model.params.use_usm", False)
            if options is None:
                raise UserError("the config has no `degradation:` block: give the one of the checkpoint's training")
            whole = DegradationConfig.from_mapping(options, sf=config.get("sf", 4), use_usm=use_usm)
            self._pipeline = DegradationPipeline(whole)

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> DegradedPicture | str:
        job = self.jobs[index]
        try:
            pixels = with_retries(lambda: read_rgb(job.picture), self.retries)
        except UserError as error:
            return str(error)
        lq_01, gt_01 = (self._face if isinstance(self._recipe, FFHQDegradationDataset) else self._general)(pixels, job)
        return DegradedPicture(rounded_01(lq_01), rounded_01(gt_01))

    def _general(self, pixels: NDArray[Any], job: Job) -> tuple[Tensor, Tensor]:
        recipe = self._recipe
        assert isinstance(recipe, RealESRGANDataset) and self._pipeline is not None
        gt_01 = recipe.crop.cut(pixels, derived_seed("cfw crop", self.seed, job.name), 0, 0)[None]
        rng = numpy_rng("cfw kernels", self.seed, job.name)
        drawn = [draw_kernel(rng, options) for options in recipe.kernel_options]
        drawn.append(draw_final_sinc(rng, recipe.final_sinc_prob))
        kernel1, kernel2, sinc_kernel = (torch.from_numpy(kernel)[None] for kernel in drawn)
        noise = torch_rng("cpu", "cfw degradation", self.seed, job.name)
        lq_01, gt_01 = self._pipeline(gt_01, kernel1, kernel2, sinc_kernel, noise)
        return lq_01[0], gt_01[0]

    def _face(self, pixels: NDArray[Any], job: Job) -> tuple[Tensor, Tensor]:
        recipe = self._recipe
        assert isinstance(recipe, FFHQDegradationDataset)
        gt = random_crop(as_01(pixels), recipe.side, numpy_rng("cfw crop", self.seed, job.name))
        gt = random_flips(gt, numpy_rng("cfw flips", self.seed, job.name), recipe.use_hflip, False)
        rng = numpy_rng("cfw degradation", self.seed, job.name)
        lq, gt = recipe.degradation(np.ascontiguousarray(gt), rng)
        lq_01, gt_01 = (torch.from_numpy(img.transpose(2, 0, 1).copy()) for img in (lq, gt))
        return lq_01, gt_01

    def batches(self, size: int, workers: int) -> Iterator[list[tuple[Job, DegradedPicture | str]]]:
        """All in batches, degraded ahead by some worker processes."""
        loader = DataLoader(self, size, num_workers=workers, collate_fn=list)
        for start, frames in zip(range(0, len(self), size), loader, strict=True):
            yield list(zip(self.jobs[start : start + size], frames, strict=True))


class SampleWriter:
    """Stage 1 at work on batches; after one for which memory did not suffice, on smaller ones."""

    def __init__(self, networks: Networks, sampling: Sampling, seed: int, folder: Path) -> None:
        self.networks, self.sampling, self.seed, self.folder = networks, sampling, seed, folder
        self.limit: int | None = None  # pictures at once, where memory has set one

    def write(self, batch: Sequence[tuple[Job, DegradedPicture]]) -> Iterator[tuple[Job, bool]]:
        """Write the files of a batch; tells of each job whether its latent was finite. Else nothing is written.

        Raises:
            UserError: one picture alone is too much for the memory.
        """
        size = self.limit or max(1, len(batch))  # none, where none could be read
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            try:
                made = self._sampled([job for job, _ in part], torch.stack([frames.lq_01 for _, frames in part]))
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise UserError("not enough memory for one picture: try precision bf16") from error
                self.limit = len(part) // 2
                torch.cuda.empty_cache()
                yield from self.write(batch[start:])
                return
            for (job, frames), z, sample_01 in zip(part, *made, strict=True):
                finite = bool(z.isfinite().all() and sample_01.isfinite().all())
                if finite:
                    self._write(job, frames, z, sample_01)
                yield job, finite

    @torch.no_grad()
    def _sampled(self, jobs: Sequence[Job], lq_01: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> latents (B, 4, H/f, W/f) and their pictures in [0, 1], on the CPU."""
        model, device = self.networks.model, self.networks.device
        noise = noise_of_pictures([torch_rng("cpu", "cfw sample", self.seed, job.name) for job in jobs], device)
        lq_pm1 = to_pm1(lq_01).to(device)
        posterior = model.first_stage_model.encode(lq_pm1)
        std = torch.exp(0.5 * posterior.logvar)
        z_lq = model.scale_factor * (posterior.mean + std * noise(posterior.mean.shape))
        with model.ema_scope():
            # A model that sees edges is told those of the LQ picture, as when it upscales.
            edges = None if model.edge_condition is None else model.edge_condition.map_of(lq_pm1)
            z_struct = model.structure(z_lq, edges, encode=lambda maps: self._encoded(maps, jobs))
            guidance = Guidance(model.contexts([model.prompt]).to(device), z_struct=z_struct)
            z = model.sample(z_lq, guidance, self.sampling, noise=noise)
        return z.float().cpu(), from_pm1(model.decode(z)).float().cpu()

    def _encoded(self, maps_pm1: Tensor, jobs: Sequence[Job]) -> Tensor:
        """Edge maps (B, 3, H, W) -> (B, 4, H/f, W/f); each picture draws noise of its own."""
        encode, device = self.networks.model.first_stage.encode, self.networks.device
        rngs = [torch_rng(device, "cfw edges", self.seed, job.name) for job in jobs]
        return torch.cat([encode(each[None], rng) for each, rng in zip(maps_pm1, rngs, strict=True)])

    def _write(self, job: Job, frames: DegradedPicture, z: Tensor, sample_01: Tensor) -> None:
        array = io.BytesIO()
        np.save(array, z[None].numpy())
        contents = [_png(frames.lq_01), _png(frames.gt_01), array.getvalue(), _png(sample_01)]
        for file, content in zip(job.files(self.folder), contents, strict=True):
            write_whole(file, content)


def _png(img_01: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(to_u8(img_01).permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def _training_set(config: Config, folder: str) -> RealESRGANDataset | FFHQDegradationDataset:
    """The training set's options; its own samples are not used."""
    block: Mapping[str, Any] = config.get("data.params.train") or {}
    params = dict(block.get("params") or {})
    if "dataroot_gt" in params:
        params |= {"dataroot_gt": folder, "image_type": "any"}
    else:
        params |= {"gt_path": folder, "image_type": None, "skip_small": False}
        params |= dict.fromkeys(("meta_info", "edge_map_path", "face_gt_path"))
    dataset = instantiate_from_config({**block, "params": params})
    if not isinstance(dataset, RealESRGANDataset | FFHQDegradationDataset):
        raise UserError(f"data.params.train.target is {block['target']}, which has no degradation of its own: give a "
                        "config that trains on degraded pictures")  # fmt: skip
    return dataset


def split(batch: Iterable[tuple[Job, DegradedPicture | str]]) -> tuple[list[tuple[Job, DegradedPicture]], list[str]]:
    """What can be sampled, and why the rest cannot."""
    good, bad = [], []
    for job, frames in batch:
        if isinstance(frames, str):
            bad.append(frames)
        else:
            good.append((job, frames))
    return good, bad
