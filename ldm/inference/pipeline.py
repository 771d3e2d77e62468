"""Upscale pictures: any size, any factor, every sampler.

    from ldm.inference import Upscaler
    large = Upscaler.from_checkpoint(config, checkpoint)(small)

Encode, sample and decode all work in overlapping tiles of the size that the networks were trained at. Beside the
networks' memory for one batch of tiles only a few canvases grow with the picture, on the CPU those of pixels, so that
pictures need not be split in pixels first as StableSR's scripts do (1280 pixels with a stride of 1000).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.ranges import from_pm1, to_pm1
from basicsr.utils.rng import torch_rng
from ldm.config import Config
from ldm.inference.batch import fitting_batch
from ldm.inference.canvas import cropped, padded
from ldm.inference.choice import choose
from ldm.inference.color_fix import adaptive_instance_normalization, wavelet_reconstruction
from ldm.inference.edges import EdgeTeller, as_picture
from ldm.inference.networks import Networks
from ldm.inference.picture import AnyPicture, Picture, to_picture
from ldm.inference.references import fitted
from ldm.inference.saving import save_page
from ldm.inference.settings import DEFAULTS, MIN_TILE, UpscaleSettings
from ldm.inference.tiled_vae import Progress, TiledAutoencoder, no_progress
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.reference import Correction, towards
from ldm.models.diffusion.sampling import Sampling, noise_of_pictures, truncated
from ldm.models.diffusion.tiling import Tiling
from ldm.models.formats.hub import MESSAGE, client, is_reference, parse, push
from ldm.models.formats.reading import Source

MIN_SIDE = 8  # pixels: there is nothing to see in less
BYTES_PER_PIXEL = 100  # of the result: eight canvases of three floats, rounded up
Encode = Callable[[Tensor, torch.Generator], Tensor]  # canvas (1, 3, H, W) in [-1, 1] -> latent (1, 4, h, w)
COLOR_FIXES = {"adain": adaptive_instance_normalization, "wavelet": wavelet_reconstruction}


@dataclass(frozen=True)
class Latents:
    """What a sample is made from; (B, 4, h, w), and (B, C, h, w) for what the time-aware encoder sees."""

    z_start: Tensor
    z_struct: Tensor
    z_without_edges: Tensor | None  # z_struct with empty maps, where edges are guided


class NotEnoughMemoryError(UserError):
    """Memory does not suffice for a result of this size with these settings."""


class Upscaler:
    """Makes pictures larger and sharper with a trained model; `from_checkpoint` builds one."""

    def __init__(self, networks: Networks, settings: UpscaleSettings = DEFAULTS) -> None:
        self.networks = networks
        self.edges = EdgeTeller.of(networks.model.edge_condition, settings)
        noise = settings.start == "noise" or (
            settings.start == "auto" and self.edges.alone and settings.start_t is None
        )
        self.settings = replace(settings, edges=self.edges.told, start="noise" if noise else "input")
        self.tile, self.overlap = _tiles(networks, settings)  # latent cells
        conditions = 1 + (settings.guidance_scale != 1) + (settings.edge_scale != 1)
        self.batch = fitting_batch(networks, self.tile, conditions) if settings.batch == "auto" else settings.batch
        self.sampling = Sampling(settings.steps, settings.sampler, settings.eta, settings.start_t)
        # Now rather than at every picture: both raise UserError for steps that the process does not have.
        self.sampling.timesteps(truncated(networks.model.betas_of_process, settings.start_t))

    @classmethod
    def from_checkpoint(
        cls,
        config: Source | Config | None = None,
        ckpt: Source | None = None,
        *,
        variant: str | None = None,
        cfw_ckpt: str | Path | None = None,
        settings: UpscaleSettings | None = None,
        device: str = "auto",
        precision: str = "fp32",
    ) -> "Upscaler":
        """An upscaler from a training config and a checkpoint; without both, with the small demo weights.

        A checkpoint alone, `from_checkpoint(FILE)`, has its config detected, and `variant`, 512, 768v or turbo, says
        which of the published models with the same shapes it is. A checkpoint is a file, a folder in diffusers' layout
        or hf://owner/name; or a list of them that make up one: [STABLE_DIFFUSION, MODULE].
        cfw_ckpt: a second-stage autoencoder, which decodes with the input's features. device: auto, cpu, cuda, cuda:1.
        precision: of the U-Net and the time-aware encoder: fp32, bf16 or fp16; auto takes what the device does well.

        Raises:
            UserError: a file or a choice does not fit; see `Networks.load`.
        """
        config, ckpt, defaults = choose(config, ckpt, variant)
        return cls(Networks.load(config, ckpt, cfw_ckpt, device, precision), settings or defaults)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        variant: str | None = None,
        settings: UpscaleSettings | None = None,
        device: str = "auto",
        precision: str = "fp32",
    ) -> "Upscaler":
        """An upscaler from the hub's page `owner/name`, or from a folder such as `stablesr-edge export` writes.

        Raises:
            UserError: as `from_checkpoint` does.
        """
        source = str(name) if Path(name).is_dir() or is_reference(name) else f"hf://{name}"
        source += f"@{revision}" if revision else ""
        return cls.from_checkpoint(None, source, variant=variant, settings=settings, device=device, precision=precision)

    def save_pretrained(self, folder: str | Path, *, dtype: str = "fp32", repo_id: str = "OWNER/NAME") -> None:
        """Write weights, config and model card to a new folder, which `from_pretrained` reads; see `save_page`."""
        save_page(self.networks, self.settings.steps, Path(folder), dtype, repo_id)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        commit_message: str = MESSAGE,
        revision: str | None = None,
        dtype: str = "fp32",
    ) -> str:
        """`save_pretrained` to the hub's page `owner/name`, which is made if need be; returns its address.

        revision: a branch of it. Whose login it is, and which hub, huggingface_hub knows by itself.

        Raises:
            UserError: as `save_page` and `hub.push` do.
        """
        parse(f"hf://{repo_id}")
        client()
        with TemporaryDirectory() as folder:
            page = Path(folder) / repo_id.rpartition("/")[2]
            self.save_pretrained(page, dtype=dtype, repo_id=repo_id)
            return push(page, repo_id, private=private, message=commit_message, revision=revision)

    def __call__(
        self,
        picture: AnyPicture,
        progress: Progress = no_progress,
        *,
        edges: AnyPicture | None = None,
        reference: AnyPicture | None = None,
    ) -> AnyPicture:
        """One picture, `upscale` times as large, of the kind that was given; a tensor may hold several, (B, C, H, W).

        `progress` may wrap each long loop to show how far it is. `edges`: with the setting `edges` at file, the picture
        of edges, white on black, that the model is told; of any size, and one for all. `reference`: a picture of the
        same face, aligned alike and of any size, as another program restored it, which the result is drawn towards; one
        for all of a tensor.

        Raises:
            UserError: not a picture, a side below 8 pixels, or a result that is not finite.
            NotEnoughMemoryError: memory does not suffice.
        """
        if isinstance(picture, Tensor) and picture.ndim == 4 and len(picture):
            several = [self(each, progress, edges=edges, reference=reference) for each in picture]
            return torch.stack(several)  # type: ignore[arg-type]  # a tensor for each tensor
        given, back = to_picture(picture)
        drawn = None if edges is None else [to_picture(edges)[0]]
        references = None if reference is None else [to_picture(reference)[0]]
        return back(self.upscale([given], progress, drawn, references=references)[0])

    def canvas_size(self, picture: Picture) -> tuple[int, int]:
        """Height and width of the result with its padding, pixels: whole steps of the U-Net, and no less than a frame.

        Raises:
            UserError: the picture is too small.
            NotEnoughMemoryError: there is not enough memory for the result.
        """
        height, width = picture.size
        if min(height, width) < MIN_SIDE:
            raise UserError(f"it is {width} x {height} pixels: each side must be {MIN_SIDE} or more")
        wide, high = (round(side * self.settings.upscale) for side in (width, height))
        needed, there = wide * high * BYTES_PER_PIXEL, _memory()
        if needed > there:
            raise NotEnoughMemoryError(
                f"not enough memory for a result of {wide} x {high} pixels (about {needed / 1e9:.0f} GB of "
                f"{there / 1e9:.0f} GB); choose a smaller upscale, or cut the picture up"
            )
        multiple, frame = self.networks.multiple, self.networks.frame
        least = min(frame, (self.tile or frame) * self.networks.downsampling)
        canvas_h, canvas_w = (-(-max(side, least) // multiple) * multiple for side in (high, wide))
        return canvas_h, canvas_w

    def is_small(self, picture: Picture) -> bool:
        """Whether one tile covers it, so that it may share a batch with others of the same `canvas_size`."""
        return self.tile is None or max(self.canvas_size(picture)) <= self.tile * self.networks.downsampling

    @torch.no_grad()
    def upscale(
        self,
        pictures: Sequence[Picture],
        progress: Progress = no_progress,
        edges: Sequence[Picture | None] | None = None,
        *,
        references: Sequence[Picture] | None = None,
    ) -> list[Picture]:
        """Pictures of one `canvas_size` at once. Each draws noise of its own: the result does not depend on the others.

        `edges`, `references`: one for each, see `__call__`.

        Raises:
            UserError: as `__call__` does.
        """
        height, width = self.canvas_size(pictures[0])
        advice = self._advice(len(pictures))
        with friendly_memory_errors(f"for a result of {width} x {height} pixels; {advice}"):
            rngs = [torch_rng("cpu", "upscale", self.settings.seed) for _ in pictures]
            vae = TiledAutoencoder(
                self.networks.model.first_stage_model,
                None if self.edges.input_is_map else self.networks.cfw,
                self.networks.model.scale_factor,
                self.networks.device,
                self.tile,
                self.overlap,
                self.settings.dec_w,
            )
            large = [self.enlarged(picture) for picture in pictures]
            lq_pm1 = [to_pm1(padded(picture.rgb_01[None], (height, width))) for picture in large]
            given = self._given(pictures, edges)
            maps = [self.edges.map_of(*each) for each in zip(large, lq_pm1, given, strict=True)]
            latents = self._latents(lq_pm1, maps, rngs, lambda image, rng: vae.encode(image, rng, progress))
            correct = None
            if references is not None:
                shown = [fitted(each, like.size) for each, like in zip(references, large, strict=True)]
                canvases = [to_pm1(padded(each.rgb_01[None], (height, width))) for each in shown]
                correct = self._towards(canvases, vae)
            z = self._sample(latents, rngs, progress, correct).cpu()
            return [
                self._finished(picture, vae.decode(latent[None], image, progress))
                for picture, latent, image in zip(large, z, lq_pm1, strict=True)
            ]

    def edge_map(self, picture: Picture, edges: Picture | None = None) -> Picture | None:
        """The map that the model is told, at the result's size, to look at; None for a model that sees no edges."""
        if self.networks.model.edge_condition is None:
            return None
        large = self.enlarged(picture)
        canvas_pm1 = to_pm1(padded(large.rgb_01[None], self.canvas_size(picture)))
        (given,) = self._given([picture], [edges])
        return as_picture(self.edges.map_of(large, canvas_pm1, given), large)

    def enlarged(self, picture: Picture) -> Picture:
        """The picture at the result's size by bicubic interpolation, as in training; see `Picture.opaque`."""
        size = [round(side * self.settings.upscale) for side in picture.size]

        def resized(planes: Tensor) -> Tensor:
            return F.interpolate(planes[None], size=size, mode="bicubic")[0].clamp(0, 1)

        alpha = picture.alpha_01
        return replace(picture, rgb_01=resized(picture.opaque()), alpha_01=None if alpha is None else resized(alpha))

    def _given(self, pictures: Sequence[Picture], edges: Sequence[Picture | None] | None) -> Sequence[Picture | None]:
        """The pictures of edges. Raises FieldError where there are any, and other edges are asked for."""
        if edges is None or all(each is None for each in edges):
            return pictures if self.edges.input_is_map else [None] * len(pictures)
        if self.edges.told != "file":
            raise FieldError("edges", f"is {self.edges.told}, and a picture of edges is given: choose file")
        return edges

    def _latents(
        self, lq_pm1: Sequence[Tensor], maps: Sequence[Tensor | None], rngs: Sequence[torch.Generator], encode: Encode
    ) -> Latents:
        """Of canvases (1, 3, H, W) and their maps. What edges draw leaves `rngs` alone: noise is the same without."""
        model, f = self.networks.model, self.networks.downsampling
        if self.edges.alone:  # there is nothing to be seen but edges
            height, width = (side // f for side in lq_pm1[0].shape[-2:])
            z_lq = torch.zeros(len(lq_pm1), model.first_stage_model.post_quant_conv.in_channels, height, width)
        else:
            z_lq = torch.cat([encode(image, rng) for image, rng in zip(lq_pm1, rngs, strict=True)])

        def encode_maps(maps_pm1: Tensor) -> Tensor:
            return torch.cat([encode(each[None], torch_rng("cpu", "edges", self.settings.seed)) for each in maps_pm1])

        told = [each for each in maps if each is not None]
        z_struct = model.structure(z_lq, torch.cat(told) if told else None, encode=encode_maps)
        z_without_edges = None
        if self.settings.edge_scale != 1:
            z_without_edges = model.structure(z_lq, None, encode=encode_maps)
        if not self.edges.alone or self.settings.start == "noise":
            return Latents(z_lq, z_struct, z_without_edges)
        if z_struct.shape != z_lq.shape:
            raise FieldError("start", "is input: this model's edges are no latent to start from; choose noise")
        return Latents(z_struct, z_struct, z_without_edges)

    def _towards(self, references_pm1: Sequence[Tensor], vae: TiledAutoencoder) -> Correction:
        """Of canvases (1, 3, H, W). What the encoder draws leaves the pictures' own noise alone."""
        z_ref = [vae.encode(each, torch_rng("cpu", "reference", self.settings.seed)) for each in references_pm1]
        return towards(torch.cat(z_ref).to(self.networks.device), self.settings.pull())

    def _sample(
        self, latents: Latents, rngs: Sequence[torch.Generator], progress: Progress, correct: Correction | None
    ) -> Tensor:
        chosen, model, device = self.settings, self.networks.model, self.networks.device
        prompts = [chosen.prompt, chosen.negative_prompt]
        context, uncond = model.contexts(prompts).to(device)[:, None]
        together = max(1, self.batch // len(rngs))
        tiling = Tiling(self.tile, self.overlap, together) if self.tile else None
        noise = noise_of_pictures(rngs, device)
        without_edges = None if latents.z_without_edges is None else latents.z_without_edges.to(device)
        guidance = Guidance(
            context,
            uncond,
            chosen.guidance_scale,
            z_struct=latents.z_struct.to(device),
            z_without_edges=without_edges,
            edge_scale=chosen.edge_scale,
            correct=correct,
        )
        with model.ema_scope():
            return model.sample(
                latents.z_start.to(device),
                guidance,
                self.sampling,
                tiling=tiling,
                x_T=noise(latents.z_start.shape) if chosen.start == "noise" else None,
                noise=noise,
                progress=lambda steps: progress("sampling", steps),
            )

    def _finished(self, enlarged: Picture, decoded_pm1: Tensor) -> Picture:
        """Crop, and correct the colours by the enlarged input. Raises UserError for a result that is not finite."""
        image = cropped(decoded_pm1, enlarged.size)
        if self.edges.input_is_map:  # which has no colours, and no shape of what is opaque, to give
            enlarged = replace(enlarged, alpha_01=None, grey=False)
        if not image.isfinite().all():  # before it is clamped, which would make it look like a picture
            raise _not_finite(self.networks.precision)
        if self.settings.colorfix != "none" and not self.edges.input_is_map:
            image = COLOR_FIXES[self.settings.colorfix](image, to_pm1(enlarged.rgb_01[None]))
        return replace(enlarged, rgb_01=from_pm1(image[0]).clamp(0, 1))

    def _advice(self, together: int) -> str:
        """What to do where memory does not suffice."""
        tile = (self.tile or self.networks.frame) * self.networks.downsampling if self.tile else self.networks.frame * 2
        if self.batch > 1 or together > 1:
            return "choose a smaller batch or tile, such as batch 1 and tile auto"
        return f"choose smaller tiles, such as tile {max(MIN_TILE, tile // 2)}"


def _not_finite(precision: str) -> UserError:
    if precision == "fp16":  # whose numbers end at 65504
        return FieldError("precision", "is fp16, in which this result is not finite (NaN): choose bf16 or fp32")
    return UserError(
        f"the result is not finite (NaN), in {precision}: the checkpoint's weights may be damaged; try another "
        "checkpoint, or precision fp32"
    )


def _tiles(networks: Networks, settings: UpscaleSettings) -> tuple[int | None, int]:
    """Side and overlap of the tiles in latent cells; None where there are to be none."""
    if settings.tile == "none":
        return None, 0
    side = networks.frame if settings.tile == "auto" else int(settings.tile)
    side = max(side - side % networks.multiple, networks.multiple)
    overlap = side // 3 if settings.tile_overlap is None else settings.tile_overlap
    if overlap >= side:
        raise FieldError("tile_overlap", f"is {overlap}: choose less than the tiles' {side} pixels")
    return side // networks.downsampling, overlap // networks.downsampling


def _memory() -> float:
    """Bytes of the machine's memory; unlimited where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return float("inf")


@contextmanager
def friendly_memory_errors(where: str) -> Iterator[None]:
    """Raise NotEnoughMemoryError in place of whatever says that memory does not suffice, on a GPU or not."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # The CPU's allocator raises a plain RuntimeError; torch.OutOfMemoryError is one too.
        words = ("can't allocate memory", "not enough memory", "out of memory")
        if isinstance(error, RuntimeError) and not any(word in str(error).lower() for word in words):
            raise
        raise NotEnoughMemoryError(f"not enough memory {where}") from error
