"""The pictures of an evaluation: true ones, and degraded ones that are given or made, the same for every checkpoint."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from basicsr.data.degradation_pipeline import DegradationConfig, DegradationPipeline
from basicsr.data.kernels import draw_final_sinc, draw_kernel
from basicsr.data.picture_folders import by_name
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import digest, whole_file
from basicsr.utils.img_util import as_01, read_rgb
from basicsr.utils.ranges import to_u8
from basicsr.utils.retries import with_retries
from basicsr.utils.rng import numpy_rng, torch_rng
from ldm.config import Config
from ldm.inference.edges import SUFFIX
from ldm.inference.pipeline import MIN_SIDE
from ldm.util import instantiate_from_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PicturePair:
    """A true picture and its degraded partner, which an evaluation of nothing but restored pictures has not."""

    name: str  # path below its folder, without suffix
    gt: Path
    lq: Path | None
    gt_identity: str
    lq_identity: str
    edges: Path | None = None  # a picture of its edges
    edges_identity: str = ""


@dataclass(frozen=True)
class Frames:
    """A picture's pixels: RGB (3, H, W) in [0, 1], both of one size."""

    lq_01: Tensor
    gt_01: Tensor


def true_pictures(data: str, retries: int = 0) -> tuple[list[PicturePair], list[str]]:
    """The pictures below `data`, without partners, and what is left out; for `retries` see `with_retries`.

    Raises:
        UserError: a missing folder or no picture.
    """
    readable, left_out = _readable(data, retries)
    pictures = [PicturePair(name, gt, None, file_identity(gt), "") for name, gt in readable.items()]
    return _some(pictures, data, left_out), left_out


def given_pictures(data: str, lq_folder: str, sf: int, retries: int = 0) -> tuple[list[PicturePair], list[str]]:
    """The pictures below `data` with their partners of the same name below `lq_folder`, and what is left out.

    Raises:
        UserError: a missing folder, no picture, a picture without a partner, or a partner of another size.
    """
    partners = pictures_by_name(lq_folder, "lq")
    readable, left_out = _readable(data, retries)
    missing = [name for name in readable if name not in partners]
    if missing:
        raise FieldError(
            "lq",
            f"{lq_folder}: {len(missing)} of {len(readable)} pictures have no partner there, the first is "
            f"{missing[0]!r}; give each the name that it has in {data}",
        )
    pictures = []
    for name, gt in readable.items():
        picture = PicturePair(name, gt, partners[name], file_identity(gt), file_identity(partners[name]))
        try:
            with_retries(partial(read_rgb, partners[name]), retries)
        except UserError as error:
            left_out.append(str(error))
            continue
        read_frames(picture, sf)
        pictures.append(picture)
    return _some(pictures, data, left_out), left_out


def made_pictures(
    data: str, config: Config, seed: int, folder: Path, retries: int = 0
) -> tuple[list[PicturePair], list[str]]:
    """The pictures below `data` with partners that a run's degradation makes, kept in `folder`; and what is left out.

    Kernels, noise and all other choices are functions of the seed and the picture's name. Two things differ from
    training: the true picture is not sharpened first, for it is what results are compared with, and no picture is
    spared (`no_degradation_prob`).

    Raises:
        UserError: a missing folder, no picture, or a config whose degradation cannot be used.
    """
    readable, left_out = _readable(data, retries)
    options = {**config.get("degradation", {}), "gt_size": None, "no_degradation_prob": 0.0}
    pipeline = DegradationPipeline(DegradationConfig.from_mapping(options, sf=config.get("sf", 4), use_usm=False))
    kernels = _kernel_source(config, data)
    recipe = (options, config.get("sf", 4), kernels.kernel_options, kernels.final_sinc_prob, seed)
    pictures = []
    for name, gt in tqdm(readable.items(), desc="degraded pictures", leave=False, disable=None):
        identity = digest(repr(recipe), name, file_identity(gt))
        lq = folder / f"{name}-{identity[:8]}.png"
        if not usable(lq):
            save_picture(_degraded(read_tensor(gt), name, pipeline, kernels, seed), lq)
        pictures.append(PicturePair(name, gt, lq, file_identity(gt), identity))
    return _some(pictures, data, left_out), left_out


def with_edges(pictures: Sequence[PicturePair], folder: str) -> list[PicturePair]:
    """The same with their pictures of edges below `folder`: NAME_edge.png or NAME.png.

    Raises:
        FieldError: a missing folder, or a picture without one.
    """
    found = pictures_by_name(folder, "edges")
    complete = []
    for picture in pictures:
        edges = found.get(f"{picture.name}{SUFFIX}", found.get(picture.name))
        if edges is None:
            raise FieldError("edges", f"{folder}: there is no picture of edges {picture.name}{SUFFIX}.png")
        complete.append(replace(picture, edges=edges, edges_identity=file_identity(edges)))
    return complete


def read_frames(picture: PicturePair, sf: int) -> Frames:
    """A pair's pixels. An LQ of 1/sf of the size is enlarged (bicubic); GT loses the rows and columns beyond it.

    Where there is no LQ, GT whole stands for both.

    Raises:
        UserError: the sizes do not belong together.
    """
    gt = read_tensor(picture.gt)
    lq = gt if picture.lq is None else read_tensor(picture.lq)
    (height, width), (h, w) = gt.shape[-2:], lq.shape[-2:]
    if (h, w) == (height, width):
        return Frames(lq, gt)
    if (h, w) != (height // sf, width // sf):
        raise UserError(
            f"{picture.lq} is {w}x{h} pixels, but {picture.gt} is {width}x{height}: the degraded picture must have the "
            f"same size or 1/{sf} of it, {width // sf}x{height // sf}"
        )
    enlarged = F.interpolate(lq[None], size=(sf * h, sf * w), mode="bicubic")[0].clamp(0, 1)
    return Frames(enlarged, gt[:, : sf * h, : sf * w])


def read_tensor(path: Path) -> Tensor:
    """A picture file as float32 RGB (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(as_01(read_rgb(path)).transpose(2, 0, 1)))


def save_picture(img_01: Tensor, path: Path) -> None:
    """(3, H, W) in [0, 1] as an 8-bit PNG, which appears whole or not at all."""
    with whole_file(path) as draft:
        Image.fromarray(to_u8(img_01).permute(1, 2, 0).numpy()).save(draft, format="PNG")


def usable(path: Path) -> bool:
    """Whether a picture that was made here is there and intact; a line is said of one that is damaged."""
    if not path.exists():
        return False
    try:
        read_rgb(path)
    except UserError:
        log.warning("%s is damaged: it is made again", path)
        return False
    return True


def check_border(pictures: Sequence[PicturePair], border: int) -> None:
    """Raise FieldError where cutting `border` pixels off every side leaves less than 8 of a picture."""
    for picture in pictures:
        with Image.open(picture.gt) as image:
            least = min(image.size)
        if least - 2 * border < MIN_SIDE:
            raise FieldError(
                "border",
                f"is {border}, which leaves too little of {picture.gt}, whose shorter side has {least} "
                f"pixels: give at most {(least - MIN_SIDE) // 2}",
            )


def file_identity(path: Path) -> str:
    """Of a file's bytes."""
    return digest(path.read_bytes())


def pictures_by_name(folder: str, field: str) -> dict[str, Path]:
    """The pictures below a folder by their names: paths below it, without suffix.

    Raises:
        FieldError: a missing folder, no picture in it, or two of one name; `field` is what the folder was given for.
    """
    return by_name(field, Path(folder))


def _readable(data: str, retries: int) -> tuple[dict[str, Path], list[str]]:
    """The pictures below `data` that can be read, by name, and a line for each that cannot."""
    readable, left_out = {}, []
    for name, path in pictures_by_name(data, "data").items():
        try:
            height, width = with_retries(partial(read_rgb, path), retries).shape[:2]
            if min(height, width) < MIN_SIDE:
                raise UserError(f"{path}: it is {width} x {height} pixels: each side must be {MIN_SIDE} or more")
            readable[name] = path
        except UserError as error:
            left_out.append(str(error))
    return readable, left_out


def _some(pictures: list[PicturePair], data: str, left_out: Sequence[str]) -> list[PicturePair]:
    if not pictures:
        raise FieldError("data", f"{data}: no picture can be evaluated; {left_out[0]}")
    return pictures


def _kernel_source(config: Config, data: str) -> RealESRGANDataset:
    """A data set with the run's kernel options; its own samples are not used."""
    block = config.get("data.params.validation") or config.get("data.params.train") or {}
    others = {"gt_path": data, "meta_info": None, "face_gt_path": None, "image_type": None, "skip_small": False}
    dataset = instantiate_from_config({**block, "params": {**(block.get("params") or {}), **others}})
    if not isinstance(dataset, RealESRGANDataset):
        raise FieldError("lq", f"is missing: {block['target']} draws no kernels to degrade pictures with")
    return dataset


def _degraded(gt_01: Tensor, name: str, pipeline: DegradationPipeline, kernels: RealESRGANDataset, seed: int) -> Tensor:
    """(3, H, W) in [0, 1] -> the same, degraded, at the same size."""
    rng = numpy_rng("evaluation kernels", seed, name)
    drawn = [draw_kernel(rng, options) for options in kernels.kernel_options]
    drawn.append(draw_final_sinc(rng, kernels.final_sinc_prob))
    kernel1, kernel2, sinc_kernel = (torch.from_numpy(kernel)[None] for kernel in drawn)
    noise = torch_rng("cpu", "evaluation degradation", seed, name)
    lq_01, _ = pipeline(gt_01[None], kernel1, kernel2, sinc_kernel, noise)
    return lq_01[0]
