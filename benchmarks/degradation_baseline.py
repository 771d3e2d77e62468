"""The degradation as published code computes it, beside ours: pictures per second in turns, and the results compared.

    python benchmarks/degradation_baseline.py [--batch 6] [--size 512] [--rounds 6] [--device cpu|cuda]

Written here from what the published code is known to do: every 21 x 21 filter as one grouped convolution of the padded
batch, unsharp masking by two blurs with the whole 51 x 51 kernel, JPEG's DCT as a contraction with a tensor of rank 4,
one component after the other, grey levels counted picture by picture with `unique`. Directions, modes and strengths are
drawn as ours are, so that both make the same pictures. Exit status 1 where they do not; that is looked at without
Poisson noise, of which a value that is rounded the other way makes another draw of all that follows.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.data.degradation_pipeline import (
    RESIZE_MODES,
    DegradationConfig,
    DegradationPipeline,
    Stage,
    _randomly_resized,
    _scaled,
)
from basicsr.data.degradations import add_gaussian_noise, uniform_per_sample
from basicsr.data.kernels import KernelOptions, draw_final_sinc, draw_kernel
from basicsr.utils.colour import TORCHVISION_LUMA, luma
from basicsr.utils.diffjpeg import CHROMA_CORNER, LUMA_TABLE, RGB_TO_YCBCR, YCBCR_TO_RGB
from basicsr.utils.ranges import rounded_01
from basicsr.utils.rng import numpy_rng, torch_rng
from benchmarks.canny_speed import photograph_batch
from ldm import shipped
from ldm.config import load_config

CONFIG = "configs/stableSRNew/v2-finetune_text_T_512.yaml"
Degrade = Callable[[Tensor, Tensor, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def resized(img: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """(B, C, H, W) at `size`, interpolated also where it has that size."""
    made: Tensor = F.interpolate(img, size=tuple(size), mode=str(mode))
    return made


def filtered(img: Tensor, kernel: Tensor) -> Tensor:
    """(B, C, H, W), filtered by (1 or B, k, k)."""
    B, C, H, W = img.shape
    pad = kernel.shape[-1] // 2
    padded = F.pad(img, (pad, pad, pad, pad), mode="reflect")
    if len(kernel) == 1:
        return F.conv2d(padded.view(B * C, 1, *padded.shape[2:]), kernel[:, None]).view(B, C, H, W)
    weights = kernel[:, None].repeat(1, C, 1, 1).view(B * C, 1, *kernel.shape[1:])
    return F.conv2d(padded.view(1, B * C, *padded.shape[2:]), weights, groups=B * C).view(B, C, H, W)


def sharpened(img_01: Tensor) -> Tensor:
    """(B, 3, H, W), unsharp-masked with a radius of 50, a weight of 0.5 and a threshold of 10."""
    x = torch.arange(51, dtype=torch.float64) - 25
    row = torch.exp(-(x**2) / (2 * (0.3 * 24 + 0.8) ** 2))
    row = row / row.sum()
    kernel = torch.outer(row, row).to(img_01)[None]
    detail = img_01 - filtered(img_01, kernel)
    soft_mask = filtered((detail.abs() * 255 > 10).to(img_01), kernel)
    sharp = (img_01 + 0.5 * detail).clamp(0, 1)
    return soft_mask * sharp + (1 - soft_mask) * img_01


def compressed(img_01: Tensor, quality: Tensor) -> Tensor:
    """(B, 3, H, W) after JPEG at `quality` (B,), one component after the other."""
    height, width = img_01.shape[-2:]
    chroma_table = torch.full((8, 8), 99.0)
    chroma_table[:4, :4] = torch.tensor(CHROMA_CORNER)
    tables = [torch.tensor(LUMA_TABLE, dtype=torch.float32), chroma_table, chroma_table]
    factor = torch.stack([50 / q if q < 50 else 2 - q / 50 for q in quality.clamp(1, 99.5)])
    planes = F.pad(img_01, (0, -width % 16, 0, -height % 16)).permute(0, 2, 3, 1) * 255
    ycbcr = torch.tensordot(planes, torch.tensor(RGB_TO_YCBCR).T.to(planes), dims=1)
    ycbcr = ycbcr + torch.tensor([0.0, 128.0, 128.0]).to(planes)
    coded = []
    for channel, table in enumerate(tables):
        plane = ycbcr[..., channel]
        if channel:
            plane = F.avg_pool2d(plane[:, None], 2)[:, 0]
        plane = _coded_plane(plane, table.to(plane), factor)
        coded.append(plane.repeat_interleave(2, 1).repeat_interleave(2, 2) if channel else plane)
    merged = torch.stack(coded, dim=-1) - torch.tensor([0.0, 128.0, 128.0]).to(planes)
    rgb = torch.tensordot(merged, torch.tensor(YCBCR_TO_RGB).T.to(planes), dims=1).clamp(0, 255)
    saved: Tensor = (rgb / 255).permute(0, 3, 1, 2)[..., :height, :width].contiguous()
    return saved


def _coded_plane(plane: Tensor, table: Tensor, factor: Tensor) -> Tensor:
    """(B, H, W) around 128 -> the same, its 8 x 8 blocks' frequencies rounded to the table's steps."""
    B, H, W = plane.shape
    waves = torch.cos((2 * torch.arange(8)[:, None] + 1) * torch.arange(8) * math.pi / 16)
    cosines = torch.einsum("xu,yv->xyuv", waves, waves)
    alpha = torch.ones(8)
    alpha[0] = 2**-0.5
    scale = torch.outer(alpha, alpha).to(plane) / 4
    cosines = cosines.to(plane)
    blocks = plane.view(B, H // 8, 8, W // 8, 8).permute(0, 1, 3, 2, 4).reshape(B, -1, 8, 8) - 128
    steps = (table[None] * factor[:, None, None])[:, None]
    frequencies = (scale * torch.tensordot(blocks, cosines, dims=2) / steps).round() * steps
    blocks = torch.tensordot(frequencies * scale, cosines.permute(2, 3, 0, 1), dims=2) + 128
    coded: Tensor = blocks.view(B, H // 8, W // 8, 8, 8).permute(0, 1, 3, 2, 4).reshape(B, H, W)
    return coded


def poisson_noisy(img_01: Tensor, scale_range: Sequence[float], gray_prob: float, rng: torch.Generator) -> Tensor:
    """(B, 3, H, W) with shot noise; its strength follows from each picture's number of grey levels."""
    scale = uniform_per_sample(img_01, scale_range, rng)
    gray = (uniform_per_sample(img_01, (0, 1), rng) < gray_prob).float()

    def noise(picture: Tensor) -> Tensor:
        picture = rounded_01(picture)
        levels = [2 ** np.ceil(np.log2(len(torch.unique(picture[i])))) for i in range(len(picture))]
        photons = picture.new_tensor(levels).view(-1, 1, 1, 1)
        return torch.poisson(picture * photons, generator=rng) / photons - picture

    grey = noise(luma(img_01, TORCHVISION_LUMA)).expand(-1, 3, -1, -1)
    return (img_01 + scale * (noise(img_01) * (1 - gray) + grey * gray)).clamp(0, 1)


class PublishedDegradation:
    """What `DegradationPipeline` does, the published way."""

    def __init__(self, config: DegradationConfig) -> None:
        self.config = config

    @torch.no_grad()
    def __call__(
        self, gt_01: Tensor, kernel1: Tensor, kernel2: Tensor, sinc_kernel: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """As `DegradationPipeline.__call__`."""
        config, first, second = self.config, self.config.stage(""), self.config.stage("2")
        host = np.random.default_rng(int(torch.randint(2**62, (), generator=rng, device=rng.device)))
        gt_01 = sharpened(gt_01) if config.use_usm else gt_01
        if host.random() < config.no_degradation_prob:
            return gt_01.clone(), gt_01
        size = gt_01.shape[-2:]
        img = _randomly_resized(filtered(gt_01, kernel1), size, first, host)
        img = self._saved(self._noisy(img, first, host, rng), first, rng)
        if host.random() < config.second_blur_prob:
            img = filtered(img, kernel2)
        img = self._noisy(_randomly_resized(img, size, second, host, config.sf), second, host, rng)
        jpeg_last = host.random() < 0.5
        if not jpeg_last:
            img = self._saved(img, second, rng)
        img = filtered(resized(img, _scaled(size, 1, config.sf), host.choice(RESIZE_MODES)), sinc_kernel)
        img = self._saved(img, second, rng) if jpeg_last else img
        return resized(rounded_01(img), size, "bicubic").clamp(0, 1), gt_01

    @staticmethod
    def _noisy(img: Tensor, stage: Stage, host: np.random.Generator, rng: torch.Generator) -> Tensor:
        if host.random() < stage.gaussian_noise_prob:
            return add_gaussian_noise(img, stage.noise_range, stage.gray_noise_prob, rng)
        return poisson_noisy(img, stage.poisson_scale_range, stage.gray_noise_prob, rng)

    @staticmethod
    def _saved(img: Tensor, stage: Stage, rng: torch.Generator) -> Tensor:
        return compressed(img.clamp(0, 1), uniform_per_sample(img, stage.jpeg_range, rng).flatten())


def degradation_baseline(config: DegradationConfig) -> Degrade:
    """The published way to degrade a batch, called as ours is."""
    return PublishedDegradation(config)


def published_options() -> tuple[DegradationConfig, KernelOptions, KernelOptions, float]:
    """The degradation, both kernels' options and the last filter's probability of the 512 config."""
    config = load_config([str(shipped.root() / CONFIG)])
    keys: dict[str, Any] = config.get("data.params.train.params")
    degradation = DegradationConfig.from_mapping(config.get("degradation"), use_usm=True)
    return degradation, KernelOptions.of(keys, ""), KernelOptions.of(keys, "2"), keys["final_sinc_prob"]


def drawn_kernels(batch: int, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Three kernels (B, 21, 21) for each picture, drawn one after the other as a data set does."""
    _, first, second, sinc = published_options()
    rng = numpy_rng("degradation benchmark", seed)
    drawn = [(draw_kernel(rng, first), draw_kernel(rng, second), draw_final_sinc(rng, sinc)) for _ in range(batch)]
    kernel1, kernel2, sinc_kernel = (torch.from_numpy(np.stack(kind)).to(device) for kind in zip(*drawn, strict=True))
    return kernel1, kernel2, sinc_kernel


def compare(config: DegradationConfig, gt_01: Tensor, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each round's batch by name, and the largest share of values of LQ that differ by over half a level."""
    device = str(gt_01.device)
    kinds: dict[str, Degrade] = {"baseline": degradation_baseline(config), "ours": DegradationPipeline(config)}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    differing = 0.0
    for seed in range(rounds):
        kernels, results = drawn_kernels(len(gt_01), seed, device), {}
        for name, degrade in kinds.items():
            rng = torch_rng(device, "degradation benchmark", seed)
            start = time.perf_counter()
            results[name], _ = degrade(gt_01, *kernels, rng)
            if gt_01.is_cuda:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
        # A JPEG coefficient that lies between two steps may go either way: a block of 64 values then differs.
        differing = max(differing, float(((results["ours"] - results["baseline"]).abs() > 0.5 / 255).float().mean()))
    return times, differing


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 6, "size": 512, "rounds": 6}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    gt_01 = (photograph_batch(options.batch, options.size, options.device) + 1) / 2
    config = published_options()[0]
    compare(config, gt_01[..., :64, :64], 3)  # warms up
    plain = replace(config, use_usm=False)
    for what, each in {"published config": config, "without sharpening": plain}.items():
        times, _ = compare(each, gt_01, options.rounds)
        rates = {name: options.batch * options.rounds / sum(seconds) for name, seconds in times.items()}
        for name, seconds in times.items():
            print(f"{what}: {name} {rates[name]:.2f} pictures/s, {statistics.median(seconds):.3f} s a batch (median)")
        print(f"{what}: ours / baseline {rates['ours'] / rates['baseline']:.2f}")
    no_poisson = replace(config, gaussian_noise_prob=1.0, gaussian_noise_prob2=1.0)
    differing = compare(no_poisson, gt_01[..., :256, :256], 8)[1]
    print(f"share of values that differ by more than half a level: at most {differing:.3%}")
    return int(differing > 0.005)


if __name__ == "__main__":
    sys.exit(main())
