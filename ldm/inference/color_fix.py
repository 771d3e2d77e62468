"""Colour correction: the result takes its colours from the picture that was upscaled (StableSR, section 3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

WAVELET_LEVELS = 5
EPS = 1e-5  # added to the variance, as published


def adaptive_instance_normalization(content: Tensor, style: Tensor) -> Tensor:
    """`content` with `style`'s mean and standard deviation per picture and channel (Huang & Belongie 2017, equation 8).

    Both (B, C, H, W) in any one range; their sizes may differ. Channels without any contrast come out as flat.
    """
    (content_mean, content_std), (style_mean, style_std) = _mean_std(content), _mean_std(style)
    return (content - content_mean) * (style_std / content_std) + style_mean


def wavelet_reconstruction(content: Tensor, style: Tensor) -> Tensor:
    """The high frequencies of `content` and the low ones of `style`, both (B, C, H, W) in any one range.

    The low frequencies are what is left after five levels of the à trous binomial filter. Being linear, it is run once,
    on the difference: content - low(content) + low(style) = content + low(style - content).
    """
    low = style - content
    for level in range(WAVELET_LEVELS):
        low = _binomial_blur(low, 2**level)
    return content + low


def _mean_std(image: Tensor) -> tuple[Tensor, Tensor]:
    mean = image.mean(dim=(-2, -1), keepdim=True)
    # A single pixel has no deviation; torch's unbiased estimate of it would be NaN.
    variance = torch.var(image, dim=(-2, -1), keepdim=True, correction=min(1, image[0, 0].numel() - 1))
    return mean, (variance + EPS).sqrt()


def _binomial_blur(image: Tensor, dilation: int) -> Tensor:
    """[1 2 1] / 4 along both axes, its taps `dilation` pixels apart, borders repeated."""
    for pad, shift in (((dilation, dilation, 0, 0), -1), ((0, 0, dilation, dilation), -2)):
        wide, size = F.pad(image, pad, mode="replicate"), image.shape[shift]
        before, after = wide.narrow(shift, 0, size), wide.narrow(shift, 2 * dilation, size)
        image = image / 2 + (before + after) / 4
    return image
