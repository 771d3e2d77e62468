"""Filtering of picture batches on any device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _reflected(size: int, pad: int, device: torch.device) -> Tensor:
    """Indices that extend an axis by `pad` at both ends by reflection about its end pixels, however small it is."""
    if size == 1:
        return torch.zeros(1 + 2 * pad, dtype=torch.long, device=device)
    period = 2 * (size - 1)
    index = torch.arange(-pad, size + pad, device=device) % period
    return torch.minimum(index, period - index)


def reflect_pad(img: Tensor, pad_y: int, pad_x: int) -> Tensor:
    """(B, C, H, W) => (B, C, H + 2 pad_y, W + 2 pad_x). Unlike F.pad, the pad may be larger than the picture."""
    height, width = img.shape[-2:]
    if pad_y < height and pad_x < width:
        return F.pad(img, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
    return img.index_select(-2, _reflected(height, pad_y, img.device)).index_select(
        -1, _reflected(width, pad_x, img.device)
    )


def filter2D(img: Tensor, kernel: Tensor) -> Tensor:  # noqa: N802  # OpenCV's and BasicSR's name
    """Correlate pictures with a kernel, reflecting at the borders.

    Args:
        img: (B, C, H, W), any range.
        kernel: (k_y, k_x) for all, or (B, k_y, k_x) with one for each picture; odd sides.

    Raises:
        ValueError: a side of the kernel is even, or there is not one kernel for each picture.
    """
    B, C, H, W = img.shape
    k_y, k_x = kernel.shape[-2:]
    if k_y % 2 == 0 or k_x % 2 == 0 or kernel.shape[:-2] not in ((), (B,)):
        raise ValueError(f"filter2D: kernel {tuple(kernel.shape)} for pictures {tuple(img.shape)}")
    if img.device.type == "cpu" and kernel.ndim == 3:
        # One by one, so that each pays for the size of its own kernel alone; on a GPU a look at kernels is a wait.
        planes = [_correlated(one, _trimmed(k)) for one, k in zip(img.split(1), kernel.to(img), strict=True)]
        return torch.cat(planes)
    return _correlated(img, kernel.to(img))


def _trimmed(kernel: Tensor) -> Tensor:
    """(k_y, k_x) without the frame of zeros around it."""
    margins = []
    for axis in (1, 0):
        used = kernel.ne(0).any(axis).nonzero()
        middle = len(kernel) // 2 if axis else kernel.shape[1] // 2
        margins.append(middle if len(used) == 0 else min(int(used[0]), 2 * middle - int(used[-1])))
    top, left = margins
    return kernel[top : kernel.shape[0] - top, left : kernel.shape[1] - left]


def _correlated(img: Tensor, kernel: Tensor) -> Tensor:
    """As `filter2D`, whatever of the kernel is zero."""
    B, C, H, W = img.shape
    k_y, k_x = kernel.shape[-2:]
    padded = reflect_pad(img, k_y // 2, k_x // 2)
    kernels = kernel.expand(B, k_y, k_x)
    # On a CPU 16 channels take the time of one: planes are cut into overlapping bands of rows until there are as many.
    bands = 16 // math.gcd(B * C, 16) if img.device.type == "cpu" else 1
    height = -(-H // bands)
    if bands > 1:
        padded = F.pad(padded, (0, 0, 0, height * bands - H)) if H % bands else padded  # which would be a copy
        padded = padded.unfold(2, height + k_y - 1, height).transpose(3, 4)  # (B, C, bands, height + k_y - 1, W + ...)
    planes = padded.reshape(1, B * C * bands, height + k_y - 1, W + k_x - 1)
    weights = kernels.repeat_interleave(C * bands, dim=0)[:, None]
    filtered = F.conv2d(planes, weights, groups=B * C * bands).view(B, C, height * bands, W)
    return filtered[:, :, :H]


def _rows_filtered(rows: Tensor, kernel: Tensor) -> Tensor:
    """(N, W), each row correlated with `kernel` (k,), reflecting at the ends."""
    N, W = rows.shape
    channels, pad = math.gcd(N, 64), len(kernel) // 2  # rows stand as channels, of which a CPU takes 16 at a time
    padded = reflect_pad(rows[None, None], 0, pad).view(1, channels, N // channels, W + 2 * pad)
    weights = kernel.to(rows).repeat(channels, 1)[:, None, None]
    return F.conv2d(padded, weights, groups=channels).view(N, W)


class USMSharp(nn.Module):
    """Unsharp masking where the detail is too strong to be noise, with a soft border (Real-ESRGAN, section 3.5).

    Args:
        radius: of the Gaussian, pixels; its side is radius rounded up to an odd number.
        sigma: of the Gaussian, pixels; 0 derives it from the side, as OpenCV's getGaussianKernel does.
    """

    kernel: Tensor

    def __init__(self, radius: int = 50, sigma: float = 0.0) -> None:
        super().__init__()
        side = radius + 1 - radius % 2
        sigma = sigma or 0.3 * ((side - 1) / 2 - 1) + 0.8
        x = torch.arange(side, dtype=torch.float64) - side // 2
        kernel = torch.exp(-(x**2) / (2 * sigma**2))
        self.register_buffer("kernel", (kernel / kernel.sum()).float(), persistent=False)

    def _blurred(self, img: Tensor) -> Tensor:
        # Along rows both times: a matrix is quickly transposed, and filtering down its columns takes far longer.
        B, C, H, W = img.shape
        columns = _rows_filtered(img.reshape(B * C * H, W), self.kernel).T.contiguous()
        return _rows_filtered(columns.view(W * B * C, H), self.kernel).view(W, -1).T.contiguous().view(B, C, H, W)

    def forward(self, img_01: Tensor, weight: float = 0.5, threshold: float = 10.0) -> Tensor:
        """(B, C, H, W) in [0, 1] => the same, sharpened.

        weight: of the detail that is added; threshold: on the detail, in grey levels of 255.
        """
        detail = img_01 - self._blurred(img_01)
        soft_mask = self._blurred((detail.abs() * 255 > threshold).to(img_01.dtype))
        sharp = torch.add(img_01, detail, alpha=weight).clamp_(0, 1)
        return torch.lerp(img_01, sharp, soft_mask)
