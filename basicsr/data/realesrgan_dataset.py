"""Pictures and the kernels that will degrade them: the training and validation data of StableSR.

The degradation itself runs later, on the training device (`basicsr.data.degradation_pipeline`).
"""

import itertools
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from basicsr.data.kernels import KERNEL_SIZE, KERNELS, KernelOptions, draw_final_sinc, draw_kernel
from basicsr.data.transforms import random_crop, random_flips
from basicsr.utils import checks
from basicsr.utils.errors import UserError
from basicsr.utils.img_util import PICTURE_SUFFIXES, as_01, find_pictures, read_rgb
from basicsr.utils.rng import numpy_rng

log = logging.getLogger(__name__)

Folders = str | Sequence[str]

# What StableSR calls small: fewer bytes than this, or fewer pixels than that.
SMALL_BYTES = 100 * 1024
SMALL_PIXELS = 384 * 384
_KERNEL_PROB = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


class RealESRGANDataset(Dataset[dict[str, Any]]):
    """Random crops of the pictures below some folders, each with kernels for two rounds of blur and a final filter.

    The arguments are StableSR's YAML keys. Nothing catches unknown ones here: whoever builds the dataset from a YAML
    compares the keys with this signature.

    Everything random in a sample is a function of (seed, epoch, index), whatever the number of workers. A file that
    cannot be read is named once in the log of each training process, and is replaced by another, always the same one
    for the same (seed, epoch, index).

    Args:
        gt_path: folder of ground-truth pictures, or several; searched recursively.
        crop_size: side of the square crop in pixels. Smaller pictures are mirrored at the bottom and right.
        gt_size: side that training cuts out of the degraded crop; kept for the data module. None means `crop_size`.
        queue_size: samples in the pair pool; kept for the data module.
        image_type: file types to use, such as "png" or ["jpg", "tif"]; None or "any" means all that can be read.
        meta_info: text file with one picture path per line, relative to a folder of `gt_path`: these pictures are used,
            of whatever type, and no search is made. Real-ESRGAN's "path (height,width,channels)" lines are understood.
        face_gt_path: folder of face pictures that are added to the others, or several.
        num_face: how many of the face pictures are used, a random subset that depends on the seed; None means all.
        io_backend: {"type": "disk"}, the only kind there is.
        use_hflip: mirror half of the crops left to right.
        use_rot: mirror half of them top to bottom, and exchange rows and columns of half of them.
        skip_small: leave out files below 100 KiB or 384 x 384 pixels in area, as StableSR always does.
        blur_kernel_size .. betap_range: the first round's blur, see `KernelOptions`; the same with 2: the second's.
        final_sinc_prob: probability that the final filter is a sinc kernel and not the identity.
        seed: of everything random.

    Raises:
        UserError: a folder or list that is missing or gives no picture, no file that can be read, an invalid value.
    """

    def __init__(
        self,
        gt_path: Folders,
        crop_size: int = 512,
        gt_size: int | None = None,
        queue_size: int = 180,
        image_type: str | Sequence[str] | None = None,
        meta_info: str | None = None,
        face_gt_path: Folders | None = None,
        num_face: int | None = None,
        io_backend: Mapping[str, Any] | None = None,
        use_hflip: bool = True,
        use_rot: bool = False,
        skip_small: bool = False,
        blur_kernel_size: int = KERNEL_SIZE,
        kernel_list: Sequence[str] = tuple(KERNELS),
        kernel_prob: Sequence[float] = _KERNEL_PROB,
        sinc_prob: float = 0.1,
        blur_sigma: Sequence[float] = (0.2, 3.0),
        betag_range: Sequence[float] = (0.5, 4.0),
        betap_range: Sequence[float] = (1.0, 2.0),
        blur_kernel_size2: int = 11,
        kernel_list2: Sequence[str] = tuple(KERNELS),
        kernel_prob2: Sequence[float] = _KERNEL_PROB,
        sinc_prob2: float = 0.1,
        blur_sigma2: Sequence[float] = (0.2, 1.5),
        betag_range2: Sequence[float] = (0.5, 4.0),
        betap_range2: Sequence[float] = (1.0, 2.0),
        final_sinc_prob: float = 0.8,
        seed: int = 23,
    ) -> None:
        if io_backend and io_backend.get("type", "disk") != "disk":
            raise UserError(f"io_backend has type {io_backend['type']!r}: only 'disk' is there, remove the key")
        self.crop_size = checks.whole_number("crop_size", crop_size, 1)
        self.gt_size = self.crop_size if gt_size is None else checks.whole_number("gt_size", gt_size, 1)
        self.queue_size = checks.whole_number("queue_size", queue_size, 0)
        self.use_hflip, self.use_rot = use_hflip, use_rot
        self.kernel_options = (
            KernelOptions(blur_kernel_size, kernel_list, kernel_prob, sinc_prob, blur_sigma, betag_range, betap_range),
            KernelOptions(
                blur_kernel_size2, kernel_list2, kernel_prob2, sinc_prob2, blur_sigma2, betag_range2, betap_range2, "2"
            ),
        )
        self.final_sinc_prob = checks.probability("final_sinc_prob", final_sinc_prob)
        self.seed = seed

        suffixes = _suffixes(image_type)
        pictures = _listed(meta_info, gt_path) if meta_info else _search("gt_path", gt_path, suffixes)
        if face_gt_path:
            pictures += _subset(_search("face_gt_path", face_gt_path, suffixes), num_face, seed)
        if skip_small:
            pictures = _without_small(pictures)
        self.paths = [str(picture) for picture in pictures]
        self._find_first_readable()

    def _find_first_readable(self) -> None:
        """Set up the flags of files that cannot be read, and make sure that not all of them are such."""
        first: dict[str, int] = {}
        self._flag_of = [first.setdefault(path, i) for i, path in enumerate(self.paths)]  # a file may be listed twice
        # In memory that all workers share.
        self._broken = torch.zeros(len(self.paths), dtype=torch.uint8).share_memory_()
        if all(self._read(i) is None for i in range(len(self.paths))):  # stops at the first that can be read
            raise UserError(f"gt_path: none of the {len(self)} files is a readable picture, see {self.paths[0]}")

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples of epoch 0. (Indexing never ends, so Python's own way to iterate would not either.)"""
        return (self[index] for index in range(len(self)))

    @property
    def broken_files(self) -> int:
        """How many files could not be read so far, in all workers together."""
        return int(self._broken.sum())

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """One sample; `draw` = epoch * len(self) + index.

        Returns:
            gt: float32 (3, crop_size, crop_size), RGB in [0, 1].
            kernel1, kernel2, sinc_kernel: float32 (21, 21), each of sum 1.
            gt_path: str, the file that was read.

        Raises:
            UserError: no file can be read any more.
        """
        if draw < 0:
            raise IndexError(f"draw {draw} is negative")
        epoch, index = divmod(int(draw), len(self))  # int: a NumPy integer would name other streams
        path, pixels = self._picture(epoch, index)
        crop = random_crop(pixels, self.crop_size, numpy_rng("crop", self.seed, epoch, index))
        crop = random_flips(crop, numpy_rng("flips", self.seed, epoch, index), self.use_hflip, self.use_rot)
        rng = numpy_rng("kernels", self.seed, epoch, index)
        return {
            "gt": torch.from_numpy(np.ascontiguousarray(as_01(crop).transpose(2, 0, 1))),
            "kernel1": torch.from_numpy(draw_kernel(rng, self.kernel_options[0])),
            "kernel2": torch.from_numpy(draw_kernel(rng, self.kernel_options[1])),
            "sinc_kernel": torch.from_numpy(draw_final_sinc(rng, self.final_sinc_prob)),
            "gt_path": path,
        }

    def _picture(self, epoch: int, index: int) -> tuple[str, np.ndarray]:
        """The picture for this place, or the one that stands in for it: (path, pixels (H, W, 3))."""

        def stand_ins() -> Iterator[int]:
            # Not by the flags, which tell what some worker has seen so far, but by the files alone.
            start = int(numpy_rng("stand-in", self.seed, epoch, index).integers(len(self)))
            yield from ((start + step) % len(self) for step in range(len(self)))

        for candidate in itertools.chain([index], stand_ins()):
            pixels = self._read(candidate)
            if pixels is not None:
                return self.paths[candidate], pixels
        raise UserError(f"gt_path: none of the {len(self)} pictures can be read any more; is the disk still there?")

    def _read(self, index: int) -> np.ndarray | None:
        """The pixels of one file, None where they cannot be read; a flag spares a second try and a second word."""
        flag = self._flag_of[index]
        if self._broken[flag]:
            return None
        try:
            return read_rgb(self.paths[index])
        except UserError as error:
            if not self._broken[flag]:  # another worker may have come first in the meantime
                self._broken[flag] = 1
                log.warning("a picture is left out, another takes its place: %s", error)
            return None


def _as_list(value: Folders) -> list[str]:
    return [value] if isinstance(value, str | os.PathLike) else list(value)


def _suffixes(image_type: str | Sequence[str] | None) -> frozenset[str]:
    """image_type -> file suffixes; the two spellings of JPEG and of TIFF are one type each."""
    names = {name.lower().lstrip(".") for name in ([] if image_type is None else _as_list(image_type))}
    if not names or "any" in names:
        return PICTURE_SUFFIXES
    for same in ({"jpg", "jpeg"}, {"tif", "tiff"}):
        if names & same:
            names |= same
    for name in sorted(names):
        if f".{name}" not in PICTURE_SUFFIXES:
            raise checks.unknown("image_type", name, ["any", *sorted(s[1:] for s in PICTURE_SUFFIXES)])
    return frozenset(f".{name}" for name in names)


def _search(key: str, folders: Folders, suffixes: frozenset[str]) -> list[Path]:
    """Every picture below `folders`, the value of the YAML's `key`; each folder must give some."""
    found: list[Path] = []
    for folder in _as_list(folders):
        folder = os.path.expanduser(folder)
        pictures = find_pictures(folder, suffixes, key)
        if not pictures:
            other = len(find_pictures(folder, name=key))
            advice = f"it has {other} of other types: set image_type: any" if other else "give a folder of pictures"
            raise UserError(f"{key}: no {', '.join(sorted(suffixes))} file below {folder}; {advice}")
        found += pictures
    if not found:
        raise UserError(f"{key} is an empty list: give at least one folder of pictures")
    return found


def _listed(meta_info: str, folders: Folders) -> list[Path]:
    """The pictures that the file `meta_info` lists, each from the first folder that has it."""
    try:
        lines = Path(meta_info).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"meta_info: {meta_info} cannot be read as a text file ({error})") from error
    names = [name for line in lines if (name := re.sub(r"\s+\(\d+(,\s*\d+)*\)$", "", line.strip()))]
    roots = [Path(folder).expanduser() for folder in _as_list(folders)]
    found = [next((root / name for root in roots if (root / name).is_file()), None) for name in names]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if not names:
        raise UserError(f"meta_info: {meta_info} is empty: give one picture path per line, relative to gt_path")
    if missing:
        where = ", ".join(map(str, roots))
        raise UserError(f"meta_info: {meta_info} lists {len(missing)} files that are not in {where}: {missing[0]} …")
    return [path for path in found if path is not None]


def _subset(faces: list[Path], count: int | None, seed: int) -> list[Path]:
    """`count` of the faces, in their order; all of them where there are not more."""
    if count is None:
        return faces
    if checks.whole_number("num_face", count, 0) > len(faces):
        log.warning("num_face is %d, but face_gt_path has %d pictures: all are used", count, len(faces))
    chosen = numpy_rng("faces", seed).permutation(len(faces))[:count]
    return [faces[i] for i in sorted(chosen)]


def _without_small(pictures: list[Path]) -> list[Path]:
    kept = [picture for picture in pictures if not _is_small(picture)]
    log.info("skip_small: %d of %d pictures are left out", len(pictures) - len(kept), len(pictures))
    if not kept:
        raise UserError(f"skip_small: all {len(pictures)} pictures are below 100 KiB or 384x384; set skip_small: false")
    return kept


def _is_small(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return path.stat().st_size < SMALL_BYTES or picture.width * picture.height < SMALL_PIXELS
    except Exception:  # not for here: a file that cannot be read is told of when its turn comes
        return False
