"""Canny edge maps of pictures, as numpy arrays or as tensors on any device.

J. Canny, "A Computational Approach to Edge Detection", PAMI 1986, in OpenCV's implementation.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from basicsr.utils import canny, checks
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.ranges import truncated_u8

# What turns each channel order into grey, and how many channels it has.
_FORMATS = {"RGB": (cv2.COLOR_RGB2GRAY, 3), "BGR": (cv2.COLOR_BGR2GRAY, 3), "GRAY": (None, 1)}
_BACKENDS = ("auto", "opencv", "torch")
_RANGES = {"[-1,1]": (-1.0, 1.0), "[0,1]": (0.0, 1.0)}
_SHAPES = (cv2.MORPH_RECT, cv2.MORPH_CROSS, cv2.MORPH_ELLIPSE)
# The steepest step of 8-bit pictures has the magnitude 1020 along each axis: all thresholds above 2040 are one.
_NO_EDGE = 2041.0
# Values up to this share of the range outside it are overshoot, which is clamped; others are of another range.
_OVERSHOOT = 0.75

T = TypeVar("T")
Side = int | Sequence[int]  # of a kernel: one for both axes, or (width, height) as in OpenCV


class EdgeMapGenerator:
    """Grey, Gaussian blur, Canny, optional morphological closing: a map that is 1 on edges and 0 elsewhere.

    Values slightly outside the stated input range are clamped; NaN counts as the range's lower end (black). No gradient
    flows. The arguments up to `device` have the names and the order of StableSR's edge fork.

    Args:
        gaussian_kernel_size: sides of the blur in pixels, odd; 1 means no blur.
        gaussian_sigma: standard deviation of the blur in pixels, at least 0.01.
        canny_threshold_lower_factor: `median_low_factor`; to give it or the next chooses the mode "median".
        canny_threshold_upper_factor: `median_high_factor`.
        morph_kernel_size: sides of the closing that joins broken edges, odd; 0 means none; None is the mode's own:
            3 in mode "median", none in mode "fixed".
        morph_kernel_shape: of the closing, OpenCV's MORPH_ELLIPSE, MORPH_RECT or MORPH_CROSS.
        device: where the tensors that are returned live; None means on their input's device.
        threshold_mode: "fixed" uses `low_threshold` and `high_threshold`; "median" derives both from each picture;
            None is "median" where the fork's factors are given, else "fixed".
        low_threshold: weak-edge gradient magnitude, 0 or more (mode "fixed").
        high_threshold: strong-edge gradient magnitude, not below `low_threshold` (mode "fixed"); above 2040 there are
            no edges.
        median_low_factor: low threshold as a multiple of the blurred picture's median grey value (mode "median").
        median_high_factor: the same for the high threshold, not below `median_low_factor` (mode "median").
        morphology_kernel_size: another name of `morph_kernel_size`.
        backend: "opencv" works on the CPU, picture by picture; "torch" on the input's device, the batch at once; both
            give the same map, bit for bit. "auto" is "torch" for CUDA tensors and "opencv" for all else.

    Raises:
        FieldError: an argument is outside the range given above, contradicts another, or names a device that is not
            there.
    """

    def __init__(
        self,
        gaussian_kernel_size: Side = 5,
        gaussian_sigma: float = 1.4,
        canny_threshold_lower_factor: float | None = None,
        canny_threshold_upper_factor: float | None = None,
        morph_kernel_size: Side | None = None,
        morph_kernel_shape: int = cv2.MORPH_ELLIPSE,
        device: torch.device | str | None = None,
        *,
        threshold_mode: str | None = None,
        low_threshold: float | None = None,
        high_threshold: float | None = None,
        median_low_factor: float | None = None,
        median_high_factor: float | None = None,
        morphology_kernel_size: Side | None = None,
        backend: str = "auto",
    ) -> None:
        lower = _either("canny_threshold_lower_factor", canny_threshold_lower_factor, median_low_factor)
        upper = _either("canny_threshold_upper_factor", canny_threshold_upper_factor, median_high_factor)
        forks = canny_threshold_lower_factor is not None or canny_threshold_upper_factor is not None
        fixed = low_threshold is not None or high_threshold is not None
        if forks and (fixed or threshold_mode == "fixed"):
            raise FieldError("canny_threshold_lower_factor", "and its like stand against fixed thresholds: give either")
        self.threshold_mode = threshold_mode or ("median" if forks else "fixed")
        if self.threshold_mode not in ("fixed", "median"):
            raise checks.unknown("threshold_mode", self.threshold_mode, ("fixed", "median"))
        self.gaussian_kernel_size = _sides("gaussian_kernel_size", gaussian_kernel_size)
        self.gaussian_sigma = checks.number("gaussian_sigma", gaussian_sigma, 0.01)
        thresholds = (_default(low_threshold, 100), _default(high_threshold, 200))
        self.thresholds = checks.interval("[low_threshold, high_threshold]", thresholds, 0)
        factors = (_default(lower, 0.7), _default(upper, 1.3))
        self.median_factors = checks.interval("[median_low_factor, median_high_factor]", factors, 0)
        closing = _either("morph_kernel_size", morph_kernel_size, morphology_kernel_size)
        if closing is None:
            closing = 3 if self.threshold_mode == "median" else 0
        self._element = _closing_element(closing, morph_kernel_shape)
        self.device = _usable(device)
        if backend not in _BACKENDS:
            raise checks.unknown("backend", str(backend), _BACKENDS)
        self.backend = backend

    def generate_from_numpy(
        self, img: NDArray[Any], input_format: str = "BGR", normalize_input: bool = True
    ) -> NDArray[np.float32]:
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
            raise FieldError(
                "normalize_input",
                f"is True, for floats in [0, 1], but these are {img.dtype}: pass normalize_input=False",
            )
        values = torch.from_numpy(np.ascontiguousarray(img, dtype=np.float32)).permute(2, 0, 1)
        high = 1.0 if normalize_input else 255.0
        _check_range(values, 0.0, high, ("normalize_input", normalize_input), integers=img.dtype.kind in "iu")
        edges = self._edges(values[None], input_format, 0.0, high)[0, 0].numpy()
        return np.repeat(edges[..., None], 3, axis=2).astype(np.float32)

    def generate_from_tensor(
        self, images: Tensor, input_format: str = "RGB", normalize_range: str | tuple[float, float] = "[-1,1]"
    ) -> Tensor:
        """The edges of one picture or of each in a batch.

        Args:
            images: (3, H, W) or (B, 3, H, W); one channel instead of three for "GRAY". Any device.
            input_format: channel order, "RGB", "BGR" or "GRAY".
            normalize_range: the pixel range of `images`. With a text, "[-1,1]" or "[0,1]", the map is in [-1, 1], as in
                the edge fork; with a pair (low, high) it is in that range.

        Returns:
            (3, H, W) or (B, 3, H, W), three equal channels that are 1 or `high` on edges and -1 or `low` elsewhere; the
            input's type where that is floating, else float32; on `device` or the input's device.

        Raises:
            UserError: the shape, the format or the range does not fit.
        """
        low, high = _range_of(normalize_range)
        integers = not images.is_floating_point()
        if integers and isinstance(normalize_range, str):
            raise FieldError(
                "normalize_range", f"is {normalize_range}, but these are {images.dtype}: pass normalize_range=(0, 255)"
            )
        _check_range(images, low, high, ("normalize_range", normalize_range), integers=integers)
        batch = images[None] if images.ndim == 3 else images
        edges = self._edges(batch, input_format, low, high)
        if isinstance(normalize_range, str):
            low, high = -1.0, 1.0
        dtype = torch.float32 if integers else images.dtype
        ranged = torch.where(edges.bool(), high, low).to(self._device_for(images), dtype).repeat(1, 3, 1, 1)
        return ranged[0] if images.ndim == 3 else ranged

    def edges_01(self, images_pm1: Tensor) -> Tensor:
        """The weight map of an edge loss: RGB images (B, 3, H, W) in [-1, 1] -> float32 (B, 1, H, W) in {0, 1}.

        What lies outside the range, however far, is clamped: a prediction may overshoot.
        """
        return self._edges(images_pm1, "RGB", -1.0, 1.0).to(self._device_for(images_pm1), torch.float32)

    def __call__(
        self,
        images: NDArray[Any] | Tensor,
        input_format: str | None = None,
        normalize_input: bool = True,
        normalize_range: str | tuple[float, float] = "[-1,1]",
    ) -> NDArray[np.float32] | Tensor:
        """`generate_from_tensor` for a tensor, `generate_from_numpy` for an array; None is that one's own format."""
        if isinstance(images, Tensor):
            return self.generate_from_tensor(images, input_format or "RGB", normalize_range)
        return self.generate_from_numpy(images, input_format or "BGR", normalize_input)

    def _device_for(self, images: Tensor) -> torch.device | str:
        return images.device if self.device is None else self.device

    def _edges(self, images: Tensor, input_format: str, low: float, high: float) -> Tensor:
        """Images (B, C, H, W) in [low, high] -> uint8 (B, 1, H, W) in {0, 1}, on the device that computed them."""
        if input_format not in _FORMATS:
            raise FieldError("input_format", f"is {input_format!r}: give one of {', '.join(_FORMATS)}")
        channels = _FORMATS[input_format][1]
        if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
            raise UserError(
                f"EdgeMapGenerator: {input_format} pictures have {channels} channel(s) and at least one pixel; "
                f"these, as (batch, channels, height, width), are {tuple(images.shape)}"
            )
        pixels = truncated_u8(images, low, high)
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
        low, high = (min(threshold, _NO_EDGE) for threshold in self.thresholds)
        if self.threshold_mode == "median":
            median = canny.median(blurred)
            low, high = ((median * factor).clamp(max=255) for factor in self.median_factors)
        edges = canny.edges(blurred, low, high)
        if self._element is not None:
            edges = canny.closing(edges, torch.from_numpy(self._element))
        return edges[:, None].to(torch.uint8)

    def _opencv_edges(self, pixels: NDArray[np.uint8], input_format: str) -> Tensor:
        """uint8 (B, H, W, C) -> uint8 (B, 1, H, W) in {0, 1}."""
        to_grey = _FORMATS[input_format][0]
        edges = torch.empty(len(pixels), 1, *pixels.shape[1:3], dtype=torch.uint8)
        for picture, edge in zip(pixels, edges, strict=True):
            grey = picture[..., 0] if to_grey is None else cv2.cvtColor(picture, to_grey)
            edge[0] = torch.from_numpy(self._canny(grey))
        return edges

    def _canny(self, grey: NDArray[Any]) -> NDArray[np.uint8]:
        """Grey uint8 (H, W) -> uint8 (H, W) in {0, 1}."""
        blurred = cv2.GaussianBlur(grey, self.gaussian_kernel_size, self.gaussian_sigma)
        low, high = (min(threshold, _NO_EDGE) for threshold in self.thresholds)
        if self.threshold_mode == "median":
            median = float(np.median(blurred))
            low, high = (int(min(255.0, factor * median)) for factor in self.median_factors)
        edges = cv2.Canny(blurred, low, high)
        if self._element is not None:
            edges = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, self._element)
        return np.asarray(edges // 255, np.uint8)


def generate_edge_map(
    images: NDArray[Any] | Tensor,
    input_format: str | None = None,
    normalize_input: bool = True,
    normalize_range: str | tuple[float, float] = "[-1,1]",
    **settings: Any,
) -> NDArray[np.float32] | Tensor:
    """`EdgeMapGenerator(**settings)` called once."""
    return EdgeMapGenerator(**settings)(images, input_format, normalize_input, normalize_range)


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


def _either(name: str, forks: T | None, ours: T | None) -> T | None:
    """The one of two names for one thing that was given; `name`: the fork's."""
    if forks is not None and ours is not None:
        raise FieldError(name, "is given under two names: give one")
    return ours if forks is None else forks


def _sides(name: str, value: object) -> tuple[int, int]:
    """Width and height of a kernel, both odd."""
    pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(pair) != 2:
        raise FieldError(name, f"is {value!r}: give one number, or a width and a height")
    width, height = (checks.whole_number(name, side, 1) for side in pair)
    if width % 2 == 0 or height % 2 == 0:
        raise FieldError(name, f"is {value}: give an odd number")
    return width, height


def _closing_element(size: object, shape: int) -> NDArray[np.uint8] | None:
    """uint8 (height, width), 1 where the closing reaches; None for size 0."""
    if shape not in _SHAPES:
        raise FieldError("morph_kernel_shape", f"is {shape!r}: give cv2.MORPH_ELLIPSE, MORPH_RECT or MORPH_CROSS")
    if size == 0:
        return None
    return np.asarray(cv2.getStructuringElement(shape, _sides("morph_kernel_size", size)), np.uint8)


def _usable(device: torch.device | str | None) -> torch.device | None:
    """A device that is there."""
    if device is None:
        return None
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise FieldError("device", f"is {device!r}, which PyTorch does not know: give cpu or cuda") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise FieldError("device", f"is {device}, but PyTorch sees {seen} CUDA device here: give cpu, or nothing")
    return wanted


def _range_of(normalize_range: str | tuple[float, float]) -> tuple[float, float]:
    if isinstance(normalize_range, str):
        found = _RANGES.get(normalize_range.replace(" ", ""))
        if found is None:
            raise FieldError("normalize_range", f"is {normalize_range!r}: give [-1,1], [0,1] or a pair (low, high)")
        return found
    low, high = checks.interval("normalize_range", normalize_range)
    if low == high:
        raise FieldError("normalize_range", f"is {normalize_range}: the first number must be below the second")
    return low, high


def _check_range(values: Tensor, low: float, high: float, stated: tuple[str, object], *, integers: bool) -> None:
    """Refuse pictures that are clearly of another range than [low, high]: their map would be wrong without a word.

    `stated`: the argument that says the range, and its value.
    """
    finite = values.detach()[values.isfinite()]
    if not finite.numel():
        return
    least, most = float(finite.min()), float(finite.max())
    slack = _OVERSHOOT * (high - low)
    if least < low - slack or most > high + slack:
        problem = f"{least:g} to {most:g}"
    elif not integers and high >= 128 and 0 <= least < most <= 1:
        problem = f"at most {most:g}"
    else:
        return
    name, value = stated
    choice = "True for [0, 1], False for [0, 255]" if name == "normalize_input" else "the range that they have"
    raise FieldError(name, f"is {value}, for values from {low:g} to {high:g}, but these are {problem}: pass {choice}")
