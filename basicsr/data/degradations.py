"""Noise on batches of pictures, each sample with its own strength (Real-ESRGAN, Wang et al. 2021, section 3.2).

Every draw comes from `rng`, a generator on the pictures' device; nothing waits for that device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from basicsr.utils.colour import TORCHVISION_LUMA, luma
from basicsr.utils.ranges import to_u8


def uniform_per_sample(like: Tensor, interval: Sequence[float], rng: torch.Generator) -> Tensor:
    """(B, 1, 1, 1): one number for each sample of `like` (B, ...), uniform in [interval[0], interval[1])."""
    low, high = interval
    return low + (high - low) * torch.rand(len(like), 1, 1, 1, dtype=like.dtype, device=like.device, generator=rng)


def add_gaussian_noise(img_01: Tensor, sigma_range: Sequence[float], gray_prob: float, rng: torch.Generator) -> Tensor:
    """(B, 3, H, W) in [0, 1] => the same with white Gaussian noise, clamped to [0, 1].

    Args:
        sigma_range: of the standard deviation, in grey levels of 255.
        gray_prob: probability that a sample's noise is equal in its three channels.
    """
    sigma = uniform_per_sample(img_01, sigma_range, rng) / 255
    gray = uniform_per_sample(img_01, (0, 1), rng) < gray_prob
    noise = torch.randn(img_01.shape, dtype=img_01.dtype, device=img_01.device, generator=rng)
    return torch.where(gray, noise[:, :1], noise).mul_(sigma).add_(img_01).clamp_(0, 1)


def add_poisson_noise(img_01: Tensor, scale_range: Sequence[float], gray_prob: float, rng: torch.Generator) -> Tensor:
    """(B, 3, H, W) in [0, 1] => the same with shot noise, whose variance grows with brightness, clamped to [0, 1].

    Args:
        scale_range: of the factor on the noise; 1 is that of as many photons at white as `_photons_at_white` says.
        gray_prob: probability that a sample's noise is that of its grey picture, equal in its three channels.
    """
    scale = uniform_per_sample(img_01, scale_range, rng)
    gray = uniform_per_sample(img_01, (0, 1), rng) < gray_prob
    noise = torch.where(gray, _shot_noise(luma(img_01, TORCHVISION_LUMA), rng), _shot_noise(img_01, rng))
    return noise.mul_(scale).add_(img_01).clamp_(0, 1)


def _shot_noise(img_01: Tensor, rng: torch.Generator) -> Tensor:
    """Poisson counts of the picture in 8 bits, less their mean, in units of white: (B, C, H, W)."""
    levels = to_u8(img_01)
    photons = _photons_at_white(levels).to(img_01.dtype)
    mean = levels.to(img_01.dtype).div_(255)
    return torch.poisson(mean * photons, generator=rng).div_(photons).sub_(mean)


def _photons_at_white(levels: Tensor) -> Tensor:
    """(B, 1, 1, 1): for each sample, its number of distinct grey levels rounded up to a power of two."""
    if levels.device.type == "cpu":  # on a GPU to count is a wait
        found = torch.stack([torch.bincount(each, minlength=256) > 0 for each in levels.flatten(1)])
    else:
        found = torch.zeros(len(levels), 256, dtype=torch.bool, device=levels.device)
        found.scatter_(1, levels.flatten(1).long(), True)
    return torch.exp2(found.sum(1).log2().ceil())[:, None, None, None]
