"""Pairs of a low-quality picture and its true one, as photographers and scanners give them (RealSR, DRealSR)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import Dataset

from basicsr.data.picture_folders import Normalisation, as_folders, by_name, check_fixed_keys, places, shortened
from basicsr.data.picture_lists import Folders, listed
from basicsr.data.transforms import epoch_and_index, random_flips, reflect_pad
from basicsr.utils import checks
from basicsr.utils.errors import FieldError, fields_named
from basicsr.utils.img_util import as_01, opened, read_rgb
from basicsr.utils.rng import numpy_rng

log = logging.getLogger(__name__)

Pixels = NDArray[Any]

PHASES = ("train", "val", "test")
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class PairFiles:
    """One pair on the disk."""

    gt: Path
    lq: Path
    edge: Path | None
    factor: int  # GT's sides over LQ's


class PairedImageDataset(Dataset[dict[str, Any]]):
    """Pairs from folders in which a picture and its low-quality copy share their name; types may differ.

    LQ is brought to GT's size, as stage 1 does with its own (bicubic). The arguments are BasicSR's YAML keys.

    Args:
        dataroot_gt: folder of true pictures, or several; searched recursively.
        dataroot_lq: folder of low-quality ones, or as many.
        dataroot_edge: folder of edge maps of GT's pictures, under their names; a picture without one has an empty map.
        meta_info_file: text file with one GT picture per line, its path in a folder of `dataroot_gt`: these pairs alone
            are used. For what such lines may look like see `picture_lists.listed`.
        filename_tmpl: LQ's name by GT's, both without suffix, such as "{}x4".
        scale: GT's sides over LQ's; None takes each pair's own factor. Checked for each pair, before training.
        gt_size: side of the square that is cut out of GT; smaller pictures are mirrored at the bottom and right. None,
            in validation, takes whole pictures: batches of more than one need them all of one size.
        use_hflip, use_rot: in training, mirror and turn at random, LQ and GT alike.
        phase: "train" cuts and flips at random; "val" and "test" cut out the middle.
        io_backend: of both folders, see `RealESRGANDataset`. mean, std: supported at one value alone: 0, 1.
        seed: of everything random, which is a function of (seed, epoch, index).

    Raises:
        FieldError: a folder that is not there or empty, pictures without a partner, a pair whose sizes do not fit.
    """

    gives_pairs = True  # for the data module: nothing is left to degrade

    def __init__(
        self,
        dataroot_gt: Folders,
        dataroot_lq: Folders,
        dataroot_edge: Folders | None = None,
        meta_info_file: str | None = None,
        filename_tmpl: str = "{}",
        scale: int | None = None,
        gt_size: int | None = None,
        use_hflip: bool = True,
        use_rot: bool = False,
        phase: str = "train",
        io_backend: Mapping[str, Any] | None = None,
        mean: Normalisation | None = None,
        std: Normalisation | None = None,
        seed: int = 23,
    ) -> None:
        check_fixed_keys(io_backend, mean, std)
        dataroot_gt, dataroot_lq = (
            places(field, value, io_backend)
            for field, value in (("dataroot_gt", dataroot_gt), ("dataroot_lq", dataroot_lq))
        )
        if phase not in PHASES:
            raise checks.unknown("phase", str(phase), PHASES)
        if "{}" not in filename_tmpl:
            raise FieldError("filename_tmpl", f"is {filename_tmpl!r}: give LQ's name, with {{}} for that of GT")
        if gt_size is None and phase == "train":
            raise FieldError("gt_size", "is missing: training needs the side of its crops, in pixels of GT")
        self.gt_size = None if gt_size is None else checks.whole_number("gt_size", gt_size, 1)
        scale = None if scale is None else checks.whole_number("scale", scale, 1)
        self.training = phase == "train"
        self.use_hflip, self.use_rot = use_hflip, use_rot
        self.seed = seed
        folders = _side_by_side(dataroot_gt, dataroot_lq, dataroot_edge)
        wanted: set[Path] | None = None
        if meta_info_file is not None:
            with fields_named(lambda _: "meta_info_file"):
                wanted = {Path(path) for path in listed(meta_info_file, dataroot_gt)}
        self.pairs = _factored([pair for each in folders for pair in _matched(*each, filename_tmpl, wanted)], scale)
        self._has_edges = dataroot_edge is not None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """One pair; `draw` = epoch * len(self) + index.

        Returns:
            gt, lq: float32 (3, gt_size, gt_size), or GT's own size, RGB in [0, 1].
            edge: float32 (1, …), 0 or above, where `dataroot_edge` is given.
            gt_path: str.

        Raises:
            IndexError: draw is negative.
            UserError: a file cannot be read.
        """
        epoch, index = epoch_and_index(draw, len(self))
        layers = self._window(self.pairs[index], numpy_rng("crop", self.seed, epoch, index))
        if self.gt_size is not None:
            layers = reflect_pad(layers, self.gt_size)[: self.gt_size, : self.gt_size]
        if self.training:
            layers = random_flips(layers, numpy_rng("flips", self.seed, epoch, index), self.use_hflip, self.use_rot)
        tensor = torch.from_numpy(np.ascontiguousarray(layers.transpose(2, 0, 1)))
        sample = {"gt": tensor[:3], "lq": tensor[3:6], "gt_path": str(self.pairs[index].gt)}
        return sample | ({"edge": tensor[6:]} if self._has_edges else {})

    def _window(self, files: PairFiles, rng: np.random.Generator) -> Pixels:
        """GT, LQ at its size, and edges (H, W, 6 or 7) in [0, 1], cut where a pixel of LQ begins: one stack, one place.

        The sides are gt_size, up to the next multiple of the factor, or less where the picture is smaller.
        """
        gt, lq, factor = read_rgb(files.gt), read_rgb(files.lq), files.factor
        top, left, side = 0, 0, max(lq.shape[:2])
        if self.gt_size is not None:
            side = -(-self.gt_size // factor)
            room = [max(0, extent - side) for extent in lq.shape[:2]]
            top, left = (int(rng.integers(most + 1)) if self.training else most // 2 for most in room)
        small = (slice(top, top + side), slice(left, left + side))
        large = (slice(top * factor, (top + side) * factor), slice(left * factor, (left + side) * factor))
        layers = [as_01(gt[large]), _enlarged(as_01(lq[small]), factor)]
        if self._has_edges:
            layers.append(_edge_map(files.edge, gt.shape[:2])[large])
        return np.concatenate(layers, axis=2)


def _side_by_side(gt: Folders, lq: Folders, edge: Folders | None) -> list[tuple[Path, Path, Path | None]]:
    """The folders of GT with those of their partners."""
    roots, partners = as_folders(gt), as_folders(lq)
    edges: list[Path | None] = [None] * len(roots) if edge is None else [*as_folders(edge)]
    for field, others in (("dataroot_lq", partners), ("dataroot_edge", edges)):
        if len(others) != len(roots):
            raise FieldError(field, f"has {len(others)} folders and dataroot_gt {len(roots)}: give one for each")
    return list(zip(roots, partners, edges, strict=True))


def _matched(
    gt_folder: Path, lq_folder: Path, edge_folder: Path | None, template: str, wanted: set[Path] | None
) -> list[PairFiles]:
    """The pairs of two folders in GT's order; factors are still to be found.

    Raises:
        FieldError: pictures of GT have no partner.
    """
    gts, lqs = by_name("dataroot_gt", gt_folder), by_name("dataroot_lq", lq_folder)
    edges = {} if edge_folder is None else by_name("dataroot_edge", edge_folder)
    names = [name for name, file in gts.items() if wanted is None or file in wanted]
    partner = {name: Path(name).with_name(template.format(Path(name).name)).as_posix() for name in names}
    if missing := [gts[name].relative_to(gt_folder) for name in names if partner[name] not in lqs]:
        raise FieldError(
            "dataroot_lq",
            f"{lq_folder} lacks the partners of {len(missing)} pictures of {gt_folder}: {shortened(missing)}",
        )
    spare = len(lqs) - len(names)
    if spare and wanted is None:
        log.warning("dataroot_lq: %d pictures of %s have no partner and are left out", spare, lq_folder)
    return [PairFiles(gts[name], lqs[partner[name]], edges.get(name), 1) for name in names]


def _factored(pairs: list[PairFiles], scale: int | None) -> list[PairFiles]:
    """The pairs with the factor between their sizes.

    Raises:
        FieldError: LQ is not GT's size over one whole number, over `scale` where that is given.
    """
    fitting, wrong = [], []
    for pair in pairs:
        (height, width), (low_height, low_width) = _size(pair.gt), _size(pair.lq)
        factor = scale or max(1, height // low_height)
        if (low_height * factor, low_width * factor) == (height, width):
            fitting.append(replace(pair, factor=factor))
        else:
            wrong.append(f"{pair.lq} is {low_width}x{low_height} and {pair.gt.name} {width}x{height}")
    if wrong:
        rule = f"scale: {scale} needs {scale} times" if scale else "GT's sides must be the same whole number of times"
        raise FieldError("dataroot_lq", f"has pictures of a wrong size ({rule} LQ's): {shortened(wrong)}")
    return fitting


def _size(file: Path) -> tuple[int, int]:
    """(height, width) the right way up, from the file's head."""
    with opened(file) as picture:
        width, height = picture.size
        turned = picture.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def _enlarged(lq_01: Pixels, factor: int) -> Pixels:
    """(h, w, 3) -> (h factor, w factor, 3) as stage 1 enlarges: bicubic, limited to [0, 1]."""
    if factor == 1:
        return lq_01
    planes = torch.from_numpy(lq_01.transpose(2, 0, 1).copy())[None]
    size = [side * factor for side in lq_01.shape[:2]]
    return F.interpolate(planes, size=size, mode="bicubic")[0].clamp(0, 1).numpy().transpose(1, 2, 0)


def _edge_map(file: Path | None, size: tuple[int, ...]) -> Pixels:
    """(H, W, 1) in [0, 1], by nearest neighbour from another size; empty where there is no file."""
    if file is None:
        return np.zeros((*size, 1), np.float32)
    grey = torch.from_numpy(as_01(read_rgb(file)).mean(2))
    return F.interpolate(grey[None, None], size=list(size), mode="nearest")[0, 0, ..., None].numpy()
