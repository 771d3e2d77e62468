"""How StableSR degrades faces: one blur, a far reduction, noise, JPEG and colours, picture by picture.

It is GFPGAN's (Wang et al., CVPR 2021, section 4.1): JPEG of ((x * k) reduced by r, plus noise), enlarged. Pictures are
RGB, float32 (H, W, 3) in [0, 1]; each step is a function of the picture and of numbers that were drawn before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from basicsr.data.kernels import KERNEL_SIZE, KernelOptions, random_blur_kernel
from basicsr.utils import checks
from basicsr.utils.errors import FieldError

Picture = NDArray[Any]  # float32


def blurred(img_01: Picture, kernel: NDArray[np.float64]) -> Picture:
    """Filtered by a kernel (k, k), mirrored at the borders without repeating the border pixel."""
    return cv2.filter2D(img_01, -1, kernel)


def reduced(img_01: Picture, scale: float) -> Picture:
    """Sides divided by `scale`, rounded down, at least one pixel: bilinear, without anti-aliasing."""
    height, width = (max(1, int(side / scale)) for side in img_01.shape[:2])
    return cv2.resize(img_01, (width, height), interpolation=cv2.INTER_LINEAR)


def with_noise(img_01: Picture, noise: Picture, sigma: float) -> Picture:
    """`noise`, standard normal of the picture's shape, added; sigma in grey levels of 255."""
    return _limited(img_01 + noise * np.float32(sigma / 255))


def compressed(img_01: Picture, quality: int) -> Picture:
    """Rounded to 8 bits, saved as JPEG at a quality from 0 to 100, and read again."""
    levels = np.round(_limited(img_01) * 255).astype(np.uint8)
    _, file = cv2.imencode(".jpg", cv2.cvtColor(levels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.cvtColor(np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    return decoded.astype(np.float32) / np.float32(255)


def enlarged(img_01: Picture, size: tuple[int, int]) -> Picture:
    """To (H, W), bilinear."""
    return cv2.resize(img_01, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def shifted(img_01: Picture, shift: NDArray[np.float64]) -> Picture:
    """Each channel moved by its own amount."""
    return _limited(img_01 + shift.astype(np.float32))


def grey(img_01: Picture) -> Picture:
    """Luma (ITU-R BT.601) in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(img_01, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def brightened(img_01: Picture, factor: float) -> Picture:
    """Every value times `factor`."""
    return _limited(img_01 * np.float32(factor))


def contrasted(img_01: Picture, factor: float) -> Picture:
    """Distances to the mean luma times `factor`."""
    mean = grey(img_01).mean()
    return _limited(mean + (img_01 - mean) * np.float32(factor))


def saturated(img_01: Picture, factor: float) -> Picture:
    """Distances to each pixel's luma times `factor`."""
    luma = grey(img_01)
    return _limited(luma + (img_01 - luma) * np.float32(factor))


def hue_turned(img_01: Picture, turn: float) -> Picture:
    """Hues turned by a part of the circle, from -0.5 to 0.5."""
    hsv = cv2.cvtColor(img_01, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def rounded(img_01: Picture) -> Picture:
    """In steps of 1/255, as an 8-bit file would hold it."""
    return np.round(_limited(img_01) * 255).astype(np.float32) / np.float32(255)


def _limited(img: Picture) -> Picture:
    limited: Picture = np.clip(img, 0, 1)
    return limited


@dataclass(frozen=True)
class FaceDegradation:
    """The published keys; a range is [lowest, highest], drawn from uniformly.

    Raises:
        FieldError: a value that cannot be.
    """

    blur_kernel_size: int  # the kernel's side, odd
    kernel_list: Sequence[str]  # names of `basicsr.data.kernels.KERNELS`
    kernel_prob: Sequence[float]
    blur_sigma: Sequence[float]  # standard deviations, pixels
    downsample_range: Sequence[float]  # GT's side over that of the reduced picture; below 1 it is enlarged
    noise_range: Sequence[float] | None  # standard deviation, grey levels of 255; None: no noise
    jpeg_range: Sequence[float] | None  # quality, None: no JPEG
    color_jitter_prob: float  # of a shift of each channel
    color_jitter_shift: float  # its largest amount, grey levels of 255
    color_jitter_pt_prob: float  # of brightness, contrast, saturation and hue, in random order
    brightness: Sequence[float]  # factors
    contrast: Sequence[float]
    saturation: Sequence[float]
    hue: Sequence[float]  # turns, from -0.5 to 0.5
    gray_prob: float  # of a grey LQ
    gt_gray: bool  # then GT is grey as well

    def __post_init__(self) -> None:
        size = checks.whole_number("blur_kernel_size", self.blur_kernel_size, 1)
        if size % 2 == 0:
            raise FieldError("blur_kernel_size", f"is {size}: give an odd number")
        self._kernel_options()  # checks them
        checks.interval("downsample_range", self.downsample_range, 0.1)
        for name, value, highest in (("noise_range", self.noise_range, 255), ("jpeg_range", self.jpeg_range, 100)):
            if value is not None:
                checks.interval(name, value, 0, highest)
        for name in ("color_jitter_prob", "color_jitter_pt_prob", "gray_prob"):
            checks.probability(name, getattr(self, name))
        checks.number("color_jitter_shift", self.color_jitter_shift, 0, 255)
        for name in ("brightness", "contrast", "saturation"):
            checks.interval(name, getattr(self, name), 0)
        checks.interval("hue", self.hue, -0.5, 0.5)

    def _kernel_options(self) -> KernelOptions:
        # The side and the exponents of generalised kernels are not read from here; the published ones stand in.
        return KernelOptions(
            KERNEL_SIZE, self.kernel_list, self.kernel_prob, 0.0, self.blur_sigma, (0.5, 4.0), (1.0, 2.0)
        )

    def __call__(self, gt_01: Picture, rng: np.random.Generator) -> tuple[Picture, Picture]:
        """GT (H, W, 3) -> LQ of the same size, in steps of 1/255, and GT, which changes where it turns grey too."""
        kernel = random_blur_kernel(rng, self._kernel_options(), self.blur_kernel_size)
        lq = reduced(blurred(gt_01, kernel), _uniform(rng, self.downsample_range))
        if self.noise_range is not None:
            sigma = _uniform(rng, self.noise_range)
            lq = with_noise(lq, rng.standard_normal(lq.shape, np.float32), sigma)
        if self.jpeg_range is not None:
            lq = compressed(lq, int(_uniform(rng, self.jpeg_range)))
        height, width = gt_01.shape[:2]
        lq = self._recoloured(enlarged(lq, (height, width)), rng)
        if rng.random() < self.gray_prob:
            return rounded(grey(lq)), grey(gt_01) if self.gt_gray else gt_01
        return rounded(lq), gt_01

    def _recoloured(self, lq: Picture, rng: np.random.Generator) -> Picture:
        if rng.random() < self.color_jitter_prob:
            lq = shifted(lq, rng.uniform(-1, 1, 3) * self.color_jitter_shift / 255)
        if rng.random() < self.color_jitter_pt_prob:
            changes = (
                (brightened, self.brightness),
                (contrasted, self.contrast),
                (saturated, self.saturation),
                (hue_turned, self.hue),
            )
            for i in rng.permutation(len(changes)):
                change, interval = changes[i]
                lq = change(lq, _uniform(rng, interval))
        return lq


def _uniform(rng: np.random.Generator, interval: Sequence[float]) -> float:
    low, high = interval
    return rng.uniform(low, high)
