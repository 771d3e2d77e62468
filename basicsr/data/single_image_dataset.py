"""Readers of folders: pictures alone, and what stage 2 (CFW) trains on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from basicsr.data.picture_folders import Normalisation, as_folders, by_name, check_fixed_keys, places, shortened
from basicsr.data.picture_lists import Folders, listed, suffixes_of
from basicsr.utils.errors import FieldError, UserError, fields_named, first_line
from basicsr.utils.img_util import read_rgb_01

PARTS = ("inputs", "gts", "latents", "samples")
LATENT_SUFFIXES = frozenset({".npy"})


class SingleImageDataset(Dataset[dict[str, Any]]):
    """The pictures of a folder at full size, ordered by name: to restore, where there is no truth to learn from.

    The arguments are BasicSR's YAML keys.

    Args:
        dataroot_lq: folder of pictures, or several; searched recursively.
        meta_info_file: text file with one picture of `dataroot_lq` per line, by its path there: these alone are used.
        io_backend: see `RealESRGANDataset`. mean, std, color: supported at one value alone: 0, 1, RGB.

    Raises:
        FieldError: a folder that is not there or lacks pictures, or a value that is not supported.
    """

    def __init__(
        self,
        dataroot_lq: Folders,
        meta_info_file: str | None = None,
        io_backend: Mapping[str, Any] | None = None,
        mean: Normalisation | None = None,
        std: Normalisation | None = None,
        color: str | None = None,
    ) -> None:
        check_fixed_keys(io_backend, mean, std, color)
        if meta_info_file is None:
            found = places("dataroot_lq", dataroot_lq, io_backend)
            folders = [by_name("dataroot_lq", folder) for folder in as_folders(found)]
            self.paths = [path for folder in folders for path in folder.values()]
        else:
            with fields_named(lambda _: "meta_info_file"):
                self.paths = [Path(path) for path in listed(meta_info_file, dataroot_lq)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One picture; indices go round.

        Returns:
            lq: float32 (3, H, W), RGB in [0, 1].
            lq_path: str.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.paths[int(index) % len(self)]
        return {"lq": _tensor(path), "lq_path": str(path)}


class SingleImageNPDataset(Dataset[dict[str, Any]]):
    """Pairs with the latents that stage 1 sampled for their low-quality pictures, as `generate_cfw_data` writes them.

    Args:
        gt_path: folder with the four subfolders `inputs`, `gts`, `latents` and `samples`, or several such folders.
            Files belong together by their names.
        image_type: file types of the pictures; "any" for all that can be read.
        io_backend, mean, std, color: supported at one value alone: files on a disk, 0, 1, RGB.

    Raises:
        FieldError: a folder that is not there or empty, or samples that lack one of their four files.
    """

    gives_pairs = True  # for the data module: nothing is left to degrade

    def __init__(
        self,
        gt_path: Folders,
        image_type: str | list[str] = "png",
        io_backend: Mapping[str, Any] | None = None,
        mean: Normalisation | None = None,
        std: Normalisation | None = None,
        color: str | None = None,
    ) -> None:
        check_fixed_keys(io_backend, mean, std, color)
        if io_backend and io_backend.get("type", "disk") != "disk":
            raise FieldError("io_backend", "has another type than disk: latents are read from folders alone")
        self.samples = [
            sample for folder in as_folders(gt_path) for sample in _together(folder, suffixes_of(image_type))
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample; indices go round, for nothing in it is random.

        Returns:
            gt, lq, sample: float32 (3, H, W), RGB in [0, 1].
            latent: float32 (4, H/f, W/f), scaled.
            gt_path: str.

        Raises:
            UserError: a file cannot be read, or the pictures differ in size.
        """
        files = self.samples[int(index) % len(self)]
        lq, gt, sample = (_tensor(files[part]) for part in ("inputs", "gts", "samples"))
        if not lq.shape == gt.shape == sample.shape:
            sizes = ", ".join(f"{'x'.join(map(str, img.shape[:0:-1]))}" for img in (lq, gt, sample))
            raise UserError(f"{files['gts']}: inputs, gts and samples differ in size ({sizes}): make them anew")
        latent = _latent(files["latents"])
        return {"lq": lq, "gt": gt, "latent": latent, "sample": sample, "gt_path": str(files["gts"])}


def _together(folder: Path, suffixes: frozenset[str]) -> list[dict[str, Path]]:
    """The files of each sample of a folder by their part."""
    found = {
        part: by_name("gt_path", folder / part, LATENT_SUFFIXES if part == "latents" else suffixes) for part in PARTS
    }
    names = sorted(set().union(*found.values()))
    lacking = [
        f"{name} ({', '.join(absent)})" for name in names if (absent := [p for p in PARTS if name not in found[p]])
    ]
    if lacking:
        raise FieldError("gt_path", f"{folder}: {len(lacking)} samples lack files: {shortened(lacking)}")
    return [{part: found[part][name] for part in PARTS} for name in names]


def _tensor(path: Path) -> Tensor:
    """A picture as float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(read_rgb_01(path).transpose(2, 0, 1)))


def _latent(path: Path) -> Tensor:
    """A latent file, (1, C, h, w) or (C, h, w), as float32 (C, h, w); nothing in the file can run code."""
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy fails on damaged files in every possible way
        raise UserError(f"{path}: cannot be read as a latent ({first_line(error)}); make it anew") from error
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim != 3 or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise UserError(
            f"{path}: is not a finite float latent (C, h, w), but {values.dtype} {values.shape}; make it anew"
        )
    return torch.from_numpy(values.astype(np.float32))
