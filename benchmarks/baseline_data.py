"""The baseline's data side: reading and degrading as the published code does (Real-ESRGAN, Wang et al. 2021).

Draws are those of our own code, in its order, so that results agree.

- A picture is decoded whole and made float32 whole before it is cropped;
- every filter is a full two-dimensional kernel, that of sharpening too (51 x 51);
- JPEG takes one channel after the other, with the transform as an 8 x 8 x 8 x 8 tensor that is made anew, as are its
  tables, and finds its factors picture by picture; so does Poisson noise its levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.data.degradation_pipeline import RESIZE_DIRECTIONS, RESIZE_MODES, DegradationConfig, Stage
from basicsr.data.kernels import draw_final_sinc, draw_kernel
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.data.transforms import random_crop, random_flips
from basicsr.utils.diffjpeg import CHROMA_CORNER, LUMA_TABLE, RGB_TO_YCBCR, YCBCR_TO_RGB
from basicsr.utils.rng import numpy_rng


def read_sample(dataset: RealESRGANDataset, index: int) -> dict[str, Any]:
    """A sample of epoch 0, by the keys of our data set."""
    path, seed = dataset.paths[index % len(dataset.paths)], dataset.seed
    content = np.frombuffer(open(path, "rb").read(), np.uint8)  # noqa: SIM115, PTH123
    img = cv2.imdecode(content, cv2.IMREAD_COLOR).astype(np.float32) / 255.0
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


def filtered(img: Tensor, kernel: Tensor) -> Tensor:
    """Correlation with (k, k), or with one (B, k, k) for each picture."""
    side = kernel.shape[-1]
    padded = F.pad(img, (side // 2,) * 4, mode="reflect")
    B, C, H, W = padded.shape
    if kernel.ndim == 2:
        planes = F.conv2d(padded.reshape(B * C, 1, H, W), kernel[None, None])
    else:
        each = kernel[:, None].repeat(1, C, 1, 1).reshape(B * C, 1, side, side)
        planes = F.conv2d(padded.reshape(1, B * C, H, W), each, groups=B * C)
    return planes.reshape(img.shape)


def sharpened(img_01: Tensor) -> Tensor:
    """Unsharp masking with a Gaussian of 51 x 51 pixels."""
    line = cv2.getGaussianKernel(51, 0)
    kernel = torch.from_numpy(line @ line.T).float().to(img_01.device)
    detail = img_01 - filtered(img_01, kernel)
    mask = filtered((detail.abs() * 255 > 10).float(), kernel)
    sharp = torch.clip(img_01 + 0.5 * detail, 0, 1)
    return mask * sharp + (1 - mask) * img_01


@dataclass(frozen=True)
class Degradation:
    """LQ of ground truth, both (B, 3, H, W) in [0, 1], H and W at most the config's gt_size."""

    config: DegradationConfig

    @torch.no_grad()
    def __call__(
        self, gt_01: Tensor, kernel1: Tensor, kernel2: Tensor, sinc_kernel: Tensor, rng: torch.Generator
    ) -> Tensor:
        config, size = self.config, gt_01.shape[-2:]
        host = np.random.default_rng(int(torch.randint(2**62, (), generator=rng, device=rng.device)))
        if config.use_usm:
            gt_01 = sharpened(gt_01)
        if host.random() < config.no_degradation_prob:
            return gt_01
        first, second = config.stage(""), config.stage("2")
        img = resized_at_random(filtered(gt_01, kernel1), size, first, host, 1)
        img = compressed(noisy(img, first, host, rng), first, rng)
        if host.random() < config.second_blur_prob:
            img = filtered(img, kernel2)
        img = noisy(resized_at_random(img, size, second, host, config.sf), second, host, rng)
        jpeg_last = host.random() < 0.5
        if not jpeg_last:
            img = compressed(img, second, rng)
        small = [max(1, side // config.sf) for side in size]
        img = filtered(F.interpolate(img, size=small, mode=str(host.choice(RESIZE_MODES))), sinc_kernel)
        if jpeg_last:
            img = compressed(img, second, rng)
        img = torch.clamp((img * 255.0).round(), 0, 255) / 255.0
        return F.interpolate(img, size=tuple(size), mode="bicubic").clamp(0, 1)


def resized_at_random(img: Tensor, size: Sequence[int], stage: Stage, host: np.random.Generator, sf: int) -> Tensor:
    low, high = stage.resize_range
    direction = str(host.choice(RESIZE_DIRECTIONS, p=stage.resize_prob))
    scale = {"up": host.uniform(1, high), "down": host.uniform(low, 1), "keep": 1.0}[direction]
    target = [max(1, int(side * scale / sf)) for side in size]
    return F.interpolate(img, size=target, mode=str(host.choice(RESIZE_MODES)))


def noisy(img: Tensor, stage: Stage, host: np.random.Generator, rng: torch.Generator) -> Tensor:
    gaussian = host.random() < stage.gaussian_noise_prob
    low, high = stage.noise_range if gaussian else stage.poisson_scale_range
    strength = torch.rand(len(img), 1, 1, 1, generator=rng, device=img.device) * (high - low) + low
    grey = (torch.rand(len(img), 1, 1, 1, generator=rng, device=img.device) < stage.gray_noise_prob).float()
    if gaussian:
        noise = torch.randn(img.shape, generator=rng, device=img.device)
        noise = noise[:, :1] * grey + noise * (1 - grey)
        return torch.clamp(img + noise * strength / 255.0, 0, 1)
    red, green, blue = img.unbind(dim=1)
    of_grey = shot_noise((0.2989 * red + 0.587 * green + 0.114 * blue)[:, None], rng)
    noise = shot_noise(img, rng) * (1 - grey) + of_grey * grey
    return torch.clamp(img + noise * strength, 0, 1)


def shot_noise(img: Tensor, rng: torch.Generator) -> Tensor:
    img = torch.clamp((img * 255.0).round(), 0, 255) / 255.0
    levels = [2 ** math.ceil(math.log2(len(torch.unique(each)))) for each in img]
    photons = img.new_tensor(levels).reshape(-1, 1, 1, 1)
    return torch.poisson(img * photons, generator=rng) / photons - img


def compressed(img: Tensor, stage: Stage, rng: torch.Generator) -> Tensor:
    low, high = stage.jpeg_range
    quality = torch.rand(len(img), 1, 1, 1, generator=rng, device=img.device).flatten() * (high - low) + low
    return jpeg(torch.clamp(img, 0, 1), quality)


def jpeg(img_01: Tensor, quality: Tensor) -> Tensor:
    """JPEG with 4:2:0 chroma at `quality` (B,), without entropy coding (Shin & Song 2017)."""
    height, width = img_01.shape[-2:]
    padded = F.pad(img_01, (0, -width % 16, 0, -height % 16)) * 255
    factors = torch.stack([50 / q if q < 50 else 2 - min(float(q), 99.5) / 50 + 0 * q for q in quality])
    luma, *chroma = torch.tensordot(padded, torch.tensor(RGB_TO_YCBCR).to(img_01), dims=([1], [1])).unbind(dim=-1)  # type: ignore[no-untyped-call]
    corner = torch.full((8, 8), 99.0)
    corner[:4, :4] = torch.tensor(CHROMA_CORNER)
    planes = [coded(luma - 128, torch.tensor(LUMA_TABLE).float(), factors) + 128]
    for plane in chroma:
        small = coded(F.avg_pool2d(plane[:, None], 2)[:, 0], corner, factors)
        planes.append(small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
    rgb = torch.tensordot(torch.stack(planes, dim=1), torch.tensor(YCBCR_TO_RGB).to(img_01), dims=([1], [1]))  # type: ignore[no-untyped-call]
    return torch.clamp(rgb.permute(0, 3, 1, 2) / 255, 0, 1)[..., :height, :width]


def coded(plane: Tensor, table: Tensor, factors: Tensor) -> Tensor:
    """(B, H, W) to frequencies of 8 x 8 blocks, rounded, and back."""
    B, H, W = plane.shape
    transform = cosines().to(plane)
    steps = factors.reshape(B, 1, 1, 1) * table.to(plane)
    blocks = plane.reshape(B, H // 8, 8, W // 8, 8).permute(0, 1, 3, 2, 4).reshape(B, -1, 8, 8)
    frequencies = torch.tensordot(blocks, transform, dims=2)  # type: ignore[no-untyped-call]
    rounded = torch.round(frequencies / steps) * steps
    blocks = torch.tensordot(rounded, transform.permute(2, 3, 0, 1), dims=2)  # type: ignore[no-untyped-call]
    return blocks.reshape(B, H // 8, W // 8, 8, 8).permute(0, 1, 3, 2, 4).reshape(B, H, W)


def cosines() -> Tensor:
    """(x, y, u, v): the orthonormal two-dimensional DCT-II of an 8 x 8 block, element by element."""
    transform = np.zeros((8, 8, 8, 8), np.float32)
    for x, y, u, v in np.ndindex(8, 8, 8, 8):
        scale = (math.sqrt(0.5) if u == 0 else 1) * (math.sqrt(0.5) if v == 0 else 1) / 4
        transform[x, y, u, v] = scale * math.cos((2 * x + 1) * u * math.pi / 16) * math.cos((2 * y + 1) * v * math.pi / 16)
    return torch.from_numpy(transform)
