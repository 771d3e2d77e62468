"""Aligned faces, degraded here and not on the training device: the data of StableSR's face model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from basicsr.data.face_degradation import FaceDegradation
from basicsr.data.picture_folders import Normalisation, by_name, check_fixed_keys, places
from basicsr.data.picture_lists import suffixes_of
from basicsr.data.transforms import epoch_and_index, random_crop, random_flips
from basicsr.utils import checks
from basicsr.utils.img_util import read_rgb_01
from basicsr.utils.rng import numpy_rng


class FFHQDegradationDataset(Dataset[dict[str, Any]]):
    """Pairs of a face and its degraded copy, of one size; GT is not sharpened.

    The arguments are StableSR's YAML keys; those of the degradation are explained at `FaceDegradation`. Everything
    random in a sample is a function of (seed, epoch, index).

    Args:
        dataroot_gt: folder of faces, all aligned alike (as in FFHQ); searched recursively.
        image_type: file types to use, such as "png" or ["jpg", "png"]; "any" for all that can be read.
        out_size: side of GT and LQ in pixels. Larger pictures are cropped at random, smaller ones mirrored at the
            bottom and right; aligned faces have this side themselves.
        crop_size: takes the place of `out_size` where it is given.
        queue_size: without effect: every sample is degraded on its own, there is nothing for a pair pool to mix.
        use_hflip: mirror half of the faces left to right.
        io_backend: see `RealESRGANDataset`. mean, std: supported at their published values alone: 0, 1.
        seed: of everything random.

    Raises:
        FieldError: a folder without pictures, or a value that cannot be.
    """

    gives_pairs = True  # for the data module: nothing is left to degrade

    def __init__(
        self,
        dataroot_gt: str,
        out_size: int = 512,
        crop_size: int | None = None,
        queue_size: int | None = None,
        image_type: str | Sequence[str] = "png",
        io_backend: Mapping[str, Any] | None = None,
        use_hflip: bool = True,
        mean: Normalisation | None = None,
        std: Normalisation | None = None,
        blur_kernel_size: int = 41,
        kernel_list: Sequence[str] = ("iso", "aniso"),
        kernel_prob: Sequence[float] = (0.5, 0.5),
        blur_sigma: Sequence[float] = (0.1, 15),
        downsample_range: Sequence[float] = (0.8, 32),
        noise_range: Sequence[float] | None = (0, 20),
        jpeg_range: Sequence[float] | None = (30, 100),
        color_jitter_prob: float | None = None,
        color_jitter_shift: float = 20,
        color_jitter_pt_prob: float | None = None,
        brightness: Sequence[float] = (0.5, 1.5),
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0, 1.5),
        hue: Sequence[float] = (-0.1, 0.1),
        gray_prob: float | None = 0.01,
        gt_gray: bool = False,
        seed: int = 23,
    ) -> None:
        check_fixed_keys(io_backend, mean, std)
        self.side = checks.whole_number("out_size", out_size, 1)
        if crop_size is not None:
            self.side = checks.whole_number("crop_size", crop_size, 1)
        self.use_hflip = use_hflip
        self.seed = seed
        self.degradation = FaceDegradation(
            blur_kernel_size, kernel_list, kernel_prob, blur_sigma, downsample_range, noise_range, jpeg_range,
            color_jitter_prob or 0.0, color_jitter_shift, color_jitter_pt_prob or 0.0,
            brightness, contrast, saturation, hue, gray_prob or 0.0, gt_gray,
        )  # fmt: skip
        suffixes = suffixes_of(image_type)
        found = [
            by_name("dataroot_gt", Path(place), suffixes) for place in places("dataroot_gt", dataroot_gt, io_backend)
        ]
        self.paths = [path for pictures in found for path in pictures.values()]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """One sample; `draw` = epoch * len(self) + index.

        Returns:
            gt, lq: float32 (3, side, side), RGB in [0, 1].
            gt_path: str.

        Raises:
            IndexError: draw is negative.
            UserError: the file cannot be read.
        """
        epoch, index = epoch_and_index(draw, len(self))
        path = self.paths[index]
        gt = random_crop(read_rgb_01(path), self.side, numpy_rng("crop", self.seed, epoch, index))
        gt = random_flips(gt, numpy_rng("flips", self.seed, epoch, index), self.use_hflip, False)
        rng = numpy_rng("face degradation", self.seed, epoch, index)
        lq, gt = self.degradation(np.ascontiguousarray(gt), rng)
        tensors = {key: torch.from_numpy(img.transpose(2, 0, 1).copy()) for key, img in (("gt", gt), ("lq", lq))}
        return {**tensors, "gt_path": str(path)}
