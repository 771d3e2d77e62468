"""The baseline's reading of pictures: decoded whole, and made float32 whole before it is cropped.

Draws are those of our own data set, so that samples agree. How the published code degrades: `degradation_baseline`.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from basicsr.data.kernels import draw_final_sinc, draw_kernel
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.data.transforms import random_crop, random_flips
from basicsr.utils.rng import numpy_rng


def read_sample(dataset: RealESRGANDataset, index: int) -> dict[str, Any]:
    """A sample of epoch 0, index below the number of pictures, by the keys of our data set."""
    path, seed = dataset.paths[index], dataset.seed
    content = np.frombuffer(Path(path).read_bytes(), np.uint8)
    img = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.float32) / 255.0
    img = random_crop(img, dataset.crop.crop_size, numpy_rng("crop", seed, 0, index))
    img = random_flips(img, numpy_rng("flips", seed, 0, index), dataset.crop.use_hflip, dataset.crop.use_rot)
    rng = numpy_rng("kernels", seed, 0, index)
    kernels = [draw_kernel(rng, options) for options in dataset.kernel_options]
    return {
        "gt": torch.from_numpy(cv2.cvtColor(np.ascontiguousarray(img), cv2.COLOR_BGR2RGB).transpose(2, 0, 1)).float(),
        "kernel1": torch.from_numpy(kernels[0]),
        "kernel2": torch.from_numpy(kernels[1]),
        "sinc_kernel": torch.from_numpy(draw_final_sinc(rng, dataset.final_sinc_prob)),
        "gt_path": path,
    }
