"""Blur and sinc kernels, and their random draws (Real-ESRGAN, Wang et al. 2021, sections 3.1 and 3.4).

Kernels are float64 arrays (size, size) that sum to 1. Lengths are in pixels, angles in radians.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basicsr.utils import checks
from basicsr.utils.errors import FieldError

KERNEL_SIZE = 21  # every drawn kernel is zero-padded to this side, so that a batch of them is one array
SMALLEST_SIZE = 7
Kernel = NDArray[np.float64]


def _offsets(size: int) -> tuple[Kernel, Kernel]:
    """x and y (size, size) of each kernel element, from the kernel's centre."""
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    return x, y


def _squared_distance(size: int, sigma_x: float, sigma_y: float, theta: float, *, isotropic: bool) -> Kernel:
    """Squared Mahalanobis distance from the centre; the axis of sigma_x is turned by theta from x towards y."""
    x, y = _offsets(size)
    if isotropic:
        return (x**2 + y**2) / sigma_x**2
    along = x * math.cos(theta) + y * math.sin(theta)
    across = y * math.cos(theta) - x * math.sin(theta)
    return (along / sigma_x) ** 2 + (across / sigma_y) ** 2


def _normalised(kernel: Kernel) -> Kernel:
    return np.asarray(kernel / kernel.sum())


def bivariate_gaussian(size: int, sigma_x: float, sigma_y: float, theta: float, *, isotropic: bool) -> Kernel:
    """exp(-d^2 / 2). If isotropic, sigma_x alone matters; so in the next two."""
    return _normalised(np.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, theta, isotropic=isotropic)))


def bivariate_generalized_gaussian(
    size: int, sigma_x: float, sigma_y: float, theta: float, beta: float, *, isotropic: bool
) -> Kernel:
    """exp(-(d^2)^beta / 2) (Liu et al. 2020, Estimating Generalized Gaussian Blur Kernels for Out-of-Focus Images)."""
    return _normalised(np.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, theta, isotropic=isotropic) ** beta))


def bivariate_plateau(
    size: int, sigma_x: float, sigma_y: float, theta: float, beta: float, *, isotropic: bool
) -> Kernel:
    """1 / (1 + (d^2)^beta): flat in the middle, with heavy tails."""
    return _normalised(1 / (1 + _squared_distance(size, sigma_x, sigma_y, theta, isotropic=isotropic) ** beta))


def _bessel_j1(x: Kernel) -> Kernel:
    """J1 by Bessel's integral, the mean of cos(t - x sin t); with 64 midpoints exact to float64 while |x| < 60."""
    t = (np.arange(64) + 0.5) * (math.pi / 64)
    return np.asarray(np.cos(t - x[..., None] * np.sin(t)).mean(-1))


def circular_lowpass_kernel(cutoff: float, size: int, pad_to: int = 0) -> Kernel:
    """The ideal low-pass filter for frequencies below `cutoff` (radians per pixel, up to pi): c J1(c r) / (2 pi r).

    Its ringing is what sharpening and compression leave around edges. `pad_to`: side after zero padding, 0 for none.
    """
    r = np.hypot(*_offsets(size))
    centre = cutoff**2 / (4 * math.pi)  # the limit for r -> 0
    kernel = np.where(r == 0, centre, cutoff * _bessel_j1(cutoff * r) / (2 * math.pi * np.where(r == 0, 1, r)))
    return padded(_normalised(kernel), pad_to or size)


def padded(kernel: Kernel, side: int) -> Kernel:
    """`kernel` in the middle of (side, side) zeros; both sides odd."""
    return np.pad(kernel, (side - len(kernel)) // 2)


# name in kernel_list -> (family, isotropic)
KERNELS = {
    "iso": ("gaussian", True),
    "aniso": ("gaussian", False),
    "generalized_iso": ("generalized", True),
    "generalized_aniso": ("generalized", False),
    "plateau_iso": ("plateau", True),
    "plateau_aniso": ("plateau", False),
}


@dataclass(frozen=True)
class KernelOptions:
    """What one stage's blur kernel is drawn from; the fields are the YAML's keys, less the 2 of the second stage.

    Raises:
        FieldError: a value that cannot be; the field is the YAML's key, with `suffix` ("" or "2").
    """

    blur_kernel_size: int  # largest side, odd, 7 to 21
    kernel_list: Sequence[str]  # names in KERNELS
    kernel_prob: Sequence[float]  # one for each name, scaled to a sum of 1
    sinc_prob: float  # probability of a sinc kernel in place of one in the list
    blur_sigma: Sequence[float]  # [lowest, highest] standard deviation, pixels
    betag_range: Sequence[float]  # exponents of the generalized Gaussians
    betap_range: Sequence[float]  # exponents of the plateaus
    suffix: str = ""

    @classmethod
    def of(cls, keys: Mapping[str, Any], suffix: str) -> "KernelOptions":
        """Those of the first round ("") or of the second ("2"), from all keys of a data set."""
        own = [field.name for field in fields(cls) if field.name != "suffix"]
        return cls(**{name: keys[name + suffix] for name in own}, suffix=suffix)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        key = {name: name + self.suffix for name in self.__dataclass_fields__}
        size = checks.whole_number(key["blur_kernel_size"], self.blur_kernel_size, SMALLEST_SIZE, KERNEL_SIZE)
        if size % 2 == 0:
            raise FieldError(key["blur_kernel_size"], f"is {size}: give an odd number")
        if not isinstance(self.kernel_list, Sequence) or isinstance(self.kernel_list, str):
            raise FieldError(key["kernel_list"], f"is {self.kernel_list!r}: give a list of {', '.join(KERNELS)}")
        for name in self.kernel_list:
            if name not in KERNELS:
                raise checks.unknown(key["kernel_list"], str(name), KERNELS)
        put("kernel_list", tuple(self.kernel_list))
        put("kernel_prob", checks.weights(key["kernel_prob"], self.kernel_prob, self.kernel_list))
        checks.probability(key["sinc_prob"], self.sinc_prob)
        for name in ("blur_sigma", "betag_range", "betap_range"):
            put(name, checks.interval(key[name], getattr(self, name), low=0.01))


def _random_size(rng: np.random.Generator, largest: int) -> int:
    """One of the odd sizes from 7 to `largest`."""
    return int(rng.integers(SMALLEST_SIZE // 2, largest // 2 + 1)) * 2 + 1


def _random_beta(rng: np.random.Generator, low: float, high: float) -> float:
    """An exponent, below 1 in half of the draws and above 1 in the others, as far as the range reaches there."""
    middle = min(max(1.0, low), high)
    return rng.uniform(low, middle) if rng.random() < 0.5 else rng.uniform(middle, high)


def random_blur_kernel(rng: np.random.Generator, options: KernelOptions, size: int) -> Kernel:
    """(size, size): a kind of the options' list, its widths, and its turn if it is anisotropic."""
    family, isotropic = KERNELS[str(rng.choice(options.kernel_list, p=options.kernel_prob))]
    low, high = options.blur_sigma
    sigma_x = sigma_y = rng.uniform(low, high)
    theta = 0.0
    if not isotropic:
        sigma_y, theta = rng.uniform(low, high), rng.uniform(-math.pi, math.pi)
    if family == "gaussian":
        return bivariate_gaussian(size, sigma_x, sigma_y, theta, isotropic=isotropic)
    if family == "generalized":
        beta = _random_beta(rng, *options.betag_range)
        return bivariate_generalized_gaussian(size, sigma_x, sigma_y, theta, beta, isotropic=isotropic)
    beta = _random_beta(rng, *options.betap_range)
    return bivariate_plateau(size, sigma_x, sigma_y, theta, beta, isotropic=isotropic)


def random_sinc_kernel(rng: np.random.Generator, size: int) -> Kernel:
    """(size, size), cutoff from pi/3 (small kernels, which cannot hold a lower one) or pi/5 up to pi."""
    return circular_lowpass_kernel(rng.uniform(math.pi / (3 if size < 13 else 5), math.pi), size)


def draw_kernel(rng: np.random.Generator, options: KernelOptions) -> NDArray[np.float32]:
    """The blur kernel of one stage for one picture: (21, 21)."""
    size = _random_size(rng, options.blur_kernel_size)
    sinc = rng.random() < options.sinc_prob
    kernel = random_sinc_kernel(rng, size) if sinc else random_blur_kernel(rng, options, size)
    return padded(kernel, KERNEL_SIZE).astype(np.float32)


def draw_final_sinc(rng: np.random.Generator, final_sinc_prob: float) -> NDArray[np.float32]:
    """The last filter for one picture: (21, 21), a sinc kernel with this probability, else the identity.

    Cutoff from pi/3 to pi at every size.
    """
    if rng.random() >= final_sinc_prob:
        return padded(np.ones((1, 1)), KERNEL_SIZE).astype(np.float32)
    size = _random_size(rng, KERNEL_SIZE)
    return circular_lowpass_kernel(rng.uniform(math.pi / 3, math.pi), size, KERNEL_SIZE).astype(np.float32)
