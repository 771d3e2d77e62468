"""Canny edge maps of pictures, as numpy arrays or as tensors on any device.

J. Canny, "A Computational Approach to Edge Detection", PAMI 1986, in OpenCV's implementation.
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.utils import canny, checks
from basicsr.utils.errors import UserError

# What turns each channel order into grey, and how many channels it has.
_FORMATS = {"RGB": (cv2.COLOR_RGB2GRAY, 3), "BGR": (cv2.COLOR_BGR2GRAY, 3), "GRAY": (None, 1)}
_BACKENDS = ("auto", "opencv", "torch")


def _odd(name: str, value: object) -> int:
    size = checks.whole_number(name, value, 1)
    if size % 2 == 0:
        raise UserError(f"{name} is {size}: give an odd number")
    return size


def _as_uint8(values: Tensor, low: float, high: float) -> Tensor:
    """`values` in [low, high] -> uint8 in 0..255, truncated; what lies outside is clamped first, NaN becomes 0."""
    scaled = (values.detach().to(torch.float32) - low) * (255.0 / (high - low))
    return scaled.nan_to_num(nan=0.0, posinf=255.0, neginf=0.0).clamp_(0, 255).to(torch.uint8)


class EdgeMapGenerator:
    """Grey, Gaussian blur, Canny, optional morphological closing: a map that is 1 on edges and 0 elsewhere.

    Values outside the stated input range are clamped; NaN counts as the range's lower end (black). No gradient flows.

    Args:
        gaussian_kernel_size: side of the blur in pixels, odd; 1 means no blur.
        gaussian_sigma: standard deviation of the blur in pixels, at least 0.01.
        threshold_mode: "fixed" uses `low_threshold` and `high_threshold`; "median" derives both from each picture.
        low_threshold: weak-edge gradient magnitude, 0..255 (mode "fixed").
        high_threshold: strong-edge gradient magnitude, `low_threshold`..255 (mode "fixed").
        median_low_factor: low threshold as a multiple of the blurred picture's median grey value (mode "median").
        median_high_factor: the same for the high threshold, not below `median_low_factor` (mode "median").
        morphology_kernel_size: side of the elliptic closing that joins broken edges, odd; 0 means none; None is the
            mode's own: 3 in mode "median", none in mode "fixed".
        device: where the tensors that are returned live; None means on their input's device.
        backend: "opencv" works on the CPU, picture by picture; "torch" on the input's device, the batch at once; both
            give the same map, bit for bit. "auto" is "torch" for CUDA tensors and "opencv" for all else.

    Raises:
        UserError: an argument is outside the range given above.
    """

    def __init__(
        self,
        gaussian_kernel_size: int = 5,
        gaussian_sigma: float = 1.4,
        threshold_mode: str = "fixed",
        low_threshold: float = 100,
        high_threshold: float = 200,
        median_low_factor: float = 0.7,
        median_high_factor: float = 1.3,
        morphology_kernel_size: int | None = None,
        device: torch.device | str | None = None,
        backend: str = "auto",
    ) -> None:
        if threshold_mode not in ("fixed", "median"):
            raise checks.unknown("threshold_mode", threshold_mode, ("fixed", "median"))
        self.threshold_mode = threshold_mode
        self.gaussian_kernel_size = _odd("gaussian_kernel_size", gaussian_kernel_size)
        self.gaussian_sigma = checks.number("gaussian_sigma", gaussian_sigma, 0.01)
        self.thresholds = checks.interval("[low_threshold, high_threshold]", (low_threshold, high_threshold), 0, 255)
        self.median_factors = checks.interval(
            "[median_low_factor, median_high_factor]", (median_low_factor, median_high_factor), 0
        )
        if morphology_kernel_size is None:
            morphology_kernel_size = 3 if threshold_mode == "median" else 0
        self.morphology_kernel_size = morphology_kernel_size and _odd("morphology_kernel_size", morphology_kernel_size)
        self.device = device
        if backend not in _BACKENDS:
            raise checks.unknown("EdgeMapGenerator: backend", str(backend), _BACKENDS)
        self.backend = backend

    def generate_from_numpy(
        self, img: np.ndarray, input_format: str = "RGB", normalize_input: bool = False
    ) -> np.ndarray:
        """The edges of one picture.

        Args:
            img: (H, W, 3), or (H, W) or (H, W, 1) for grey, of any integer or float type.
            input_format: channel order, "RGB", "BGR" or "GRAY"; an (H, W) picture is grey in any case.
            normalize_input: True where `img` is in [0, 1], False where it is in [0, 255].

        Returns:
            float32 (H, W, 3) in {0, 1}, three equal channels.

        Raises:
            UserError: the shape, the format or the range does not fit.
        """
        if img.ndim == 2:
            img, input_format = img[..., None], "GRAY"
        if img.ndim != 3:
            raise UserError(f"generate_from_numpy: a picture is (H, W) or (H, W, channels), this array is {img.shape}")
        if normalize_input and np.issubdtype(img.dtype, np.integer):
            raise UserError(f"generate_from_numpy: {img.dtype} pixels are 0..255; normalize_input=True expects [0, 1]")
        values = torch.from_numpy(np.ascontiguousarray(img, dtype=np.float32)).permute(2, 0, 1)
        edges = self._edges(values[None], input_format, 0.0, 1.0 if normalize_input else 255.0)[0, 0].numpy()
        return np.repeat(edges[..., None], 3, axis=2).astype(np.float32)

    def generate_from_tensor(
        self, images: Tensor, input_format: str = "RGB", normalize_range: tuple[float, float] = (-1.0, 1.0)
    ) -> Tensor:
        """The edges of one picture or of each in a batch.

        Args:
            images: (3, H, W) or (B, 3, H, W); one channel instead of three for "GRAY". Any device.
            input_format: channel order, "RGB", "BGR" or "GRAY".
            normalize_range: the pixel range of `images`, and of what is returned.

        Returns:
            (3, H, W) or (B, 3, H, W), three equal channels that are normalize_range[1] on edges and normalize_range[0]
            elsewhere; the input's type where that is floating, else float32; on `device` or the input's device.

        Raises:
            UserError: the shape, the format or the range does not fit.
        """
        low, high = normalize_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"generate_from_tensor: normalize_range={normalize_range} must be (low, high), low < high")
        batch = images[None] if images.ndim == 3 else images
        edges = self._edges(batch, input_format, low, high)
        dtype = images.dtype if images.is_floating_point() else torch.float32
        ranged = torch.where(edges.bool(), high, low).to(self._device_for(images), dtype).repeat(1, 3, 1, 1)
        return ranged[0] if images.ndim == 3 else ranged

    def edges_01(self, images_pm1: Tensor) -> Tensor:
        """The weight map of an edge loss: RGB images (B, 3, H, W) in [-1, 1] -> float32 (B, 1, H, W) in {0, 1}."""
        return self._edges(images_pm1, "RGB", -1.0, 1.0).to(self._device_for(images_pm1), torch.float32)

    def __call__(self, images: np.ndarray | Tensor, input_format: str = "RGB") -> np.ndarray | Tensor:
        """`generate_from_tensor` for a tensor in [-1, 1], `generate_from_numpy` for an array in [0, 255]."""
        if isinstance(images, Tensor):
            return self.generate_from_tensor(images, input_format)
        return self.generate_from_numpy(images, input_format)

    def _device_for(self, images: Tensor) -> torch.device | str:
        return images.device if self.device is None else self.device

    def _edges(self, images: Tensor, input_format: str, low: float, high: float) -> Tensor:
        """Images (B, C, H, W) in [low, high] -> uint8 (B, 1, H, W) in {0, 1}, on the device that computed them."""
        if input_format not in _FORMATS:
            raise UserError(f"EdgeMapGenerator: input_format={input_format!r} is not one of {', '.join(_FORMATS)}")
        channels = _FORMATS[input_format][1]
        if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
            raise UserError(
                f"EdgeMapGenerator: {input_format} pictures have {channels} channel(s) and at least one pixel; "
                f"these, as (batch, channels, height, width), are {tuple(images.shape)}"
            )
        pixels = _as_uint8(images, low, high)
        if self.backend == "torch" or (self.backend == "auto" and images.is_cuda):
            return self._torch_edges(pixels, input_format)
        # Eight bits are four times less to bring over from a GPU than floats.
        return self._opencv_edges(pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy(), input_format)

    def _torch_edges(self, pixels: Tensor, input_format: str) -> Tensor:
        """uint8 (B, C, H, W) -> uint8 (B, 1, H, W) in {0, 1}, on the same device."""
        rgb = pixels.flip(1) if input_format == "BGR" else pixels
        grey = pixels[:, 0] if input_format == "GRAY" else canny.rgb_to_grey(rgb)
        blurred = canny.gaussian_blur(grey, self.gaussian_kernel_size, self.gaussian_sigma)
        low: float | Tensor
        high: float | Tensor
        low, high = self.thresholds
        if self.threshold_mode == "median":
            median = canny.median(blurred)
            low, high = ((median * factor).clamp(max=255) for factor in self.median_factors)
        edges = canny.edges(blurred, low, high)
        if self.morphology_kernel_size:
            edges = canny.closing(edges, torch.from_numpy(self._element()))
        return edges[:, None].to(torch.uint8)

    def _opencv_edges(self, pixels: np.ndarray, input_format: str) -> Tensor:
        """uint8 (B, H, W, C) -> uint8 (B, 1, H, W) in {0, 1}."""
        to_grey = _FORMATS[input_format][0]
        edges = torch.empty(len(pixels), 1, *pixels.shape[1:3], dtype=torch.uint8)
        for picture, edge in zip(pixels, edges, strict=True):
            grey = picture[..., 0] if to_grey is None else cv2.cvtColor(picture, to_grey)
            edge[0] = torch.from_numpy(self._canny(grey))
        return edges

    def _canny(self, grey: np.ndarray) -> np.ndarray:
        """Grey uint8 (H, W) -> uint8 (H, W) in {0, 1}."""
        side = self.gaussian_kernel_size
        blurred = cv2.GaussianBlur(grey, (side, side), self.gaussian_sigma)
        low, high = self.thresholds
        if self.threshold_mode == "median":
            median = float(np.median(blurred))
            low, high = (int(min(255.0, factor * median)) for factor in self.median_factors)
        edges = cv2.Canny(blurred, low, high)
        if self.morphology_kernel_size:
            edges = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, self._element())
        return edges // 255

    def _element(self) -> np.ndarray:
        """The closing's ellipse, uint8 (side, side)."""
        return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self.morphology_kernel_size, self.morphology_kernel_size))
