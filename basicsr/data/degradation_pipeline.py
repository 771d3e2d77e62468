"""The two-stage degradation that makes a low-quality picture from a good one (Real-ESRGAN, Wang et al. 2021, figure 2).

Each stage is blur, resize, noise, JPEG. It is run twice, for pictures on the web were often edited and saved again; the
second time with a sinc filter, whose ringing is that of sharpening and of compression.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.data.degradations import add_gaussian_noise, add_poisson_noise, uniform_per_sample
from basicsr.utils import checks
from basicsr.utils.diffjpeg import DiffJPEG
from basicsr.utils.errors import FieldError, did_you_mean
from basicsr.utils.img_process_util import USMSharp, filter2D
from basicsr.utils.ranges import rounded_01

RESIZE_DIRECTIONS = ("up", "down", "keep")
RESIZE_MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class DegradationConfig:
    """The YAML's `degradation:` block, whose keys are the fields, with the top level's `sf` and the model's `use_usm`.

    A name that ends with 2 belongs to the second stage. A range is [lowest, highest].

    Raises:
        FieldError: a value that cannot be.
    """

    resize_prob: Sequence[float]  # of enlarging, of reducing, of keeping the size
    resize_range: Sequence[float]  # factor on the side: [lowest when reducing, highest when enlarging]
    gaussian_noise_prob: float  # else Poisson noise
    noise_range: Sequence[float]  # Gaussian noise's standard deviation, grey levels of 255
    poisson_scale_range: Sequence[float]  # factor on the Poisson noise
    gray_noise_prob: float  # noise equal in the three channels
    jpeg_range: Sequence[float]  # quality, 1 to 100
    second_blur_prob: float
    resize_prob2: Sequence[float]
    resize_range2: Sequence[float]  # relative to 1/sf of the original side
    gaussian_noise_prob2: float
    noise_range2: Sequence[float]
    poisson_scale_range2: Sequence[float]
    gray_noise_prob2: float
    jpeg_range2: Sequence[float]
    gt_size: int | None = None  # side of the random crop of larger results, pixels; None for no crop
    no_degradation_prob: float = 0.0  # LQ = GT
    sf: int = 4  # GT's side over that of the degraded picture
    use_usm: bool = True  # sharpen GT first

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], **extra: Any) -> "DegradationConfig":
        """From the YAML's block and, as `extra`, the options that stand elsewhere in the YAML.

        Raises:
            FieldError: besides bad values, a key that is not known or one that is missing (field "degradation").
        """
        if not isinstance(mapping, Mapping):
            raise FieldError("degradation", f"is {mapping!r}: give a block of options, as in the shipped configs")
        given = {**mapping, **extra}
        for key in given:
            if key not in cls.__dataclass_fields__:
                raise FieldError(str(key), f"is not known{did_you_mean(str(key), cls.__dataclass_fields__)}")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in given]
        if missing:
            raise FieldError("degradation", f"lacks {', '.join(missing)}")
        return cls(**given)

    def stage(self, suffix: str) -> "Stage":
        """The options of the first stage ("") or of the second ("2")."""
        return Stage(**{field.name: getattr(self, field.name + suffix) for field in fields(Stage)})


@dataclass(frozen=True)
class Stage:
    """What both stages have; see DegradationConfig."""

    resize_prob: Sequence[float]
    resize_range: Sequence[float]
    gaussian_noise_prob: float
    noise_range: Sequence[float]
    poisson_scale_range: Sequence[float]
    gray_noise_prob: float
    jpeg_range: Sequence[float]


def _checked(name: str, value: Any) -> Any:
    """The clean value of the field `name`."""
    match name.removesuffix("2"):
        case "resize_prob":
            return checks.weights(name, value, RESIZE_DIRECTIONS)
        case "resize_range":
            low, high = checks.interval(name, value, low=0.01)
            if not low <= 1 <= high:
                raise FieldError(name, f"is [{low:g}, {high:g}]: 1, which keeps the size, must lie in it")
            return low, high
        case "noise_range" | "poisson_scale_range":
            return checks.interval(name, value, low=0)
        case "jpeg_range":
            return checks.interval(name, value, 1, 100)
        case "gt_size":
            return None if value is None else checks.whole_number(name, value, 1)
        case "sf":
            return checks.whole_number(name, value, 1)
        case "use_usm":
            return checks.switch(name, value)
        case _:
            return checks.probability(name, value)


class DegradationPipeline:
    """Ground truth => (low quality, ground truth), for a batch, on the batch's device, without gradient.

    As published, except that resizing is to whole sizes with the picture's borders kept in place: with the published
    scale factors LQ is stretched against GT, by up to 3 pixels at the far border.
    """

    def __init__(self, config: DegradationConfig) -> None:
        self.config = config
        self._first, self._second = config.stage(""), config.stage("2")
        self._usm = USMSharp()
        self._jpeg = DiffJPEG(differentiable=False)

    @torch.no_grad()
    def __call__(
        self, gt_01: Tensor, kernel1: Tensor, kernel2: Tensor, sinc_kernel: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Sharpen, degrade, enlarge LQ to GT's size, and crop both alike.

        Directions, modes and orders are drawn once for the batch, and so is whether LQ = GT; strengths of noise and
        JPEG for each sample.

        Args:
            gt_01: (B, 3, H, W) in [0, 1], float32 or float64, any size.
            kernel1, kernel2, sinc_kernel: (B, 21, 21), as `basicsr.data.kernels` draws them.
            rng: on gt_01's device; all randomness is from it.

        Returns:
            LQ and GT, (B, 3, H, W) or (B, 3, gt_size, gt_size) each, in [0, 1].
        """
        lq_01, gt_01, _ = self.with_maps(gt_01, kernel1, kernel2, sinc_kernel, rng, gt_01[:, :0])
        return lq_01, gt_01

    @torch.no_grad()
    def with_maps(
        self,
        gt_01: Tensor,
        kernel1: Tensor,
        kernel2: Tensor,
        sinc_kernel: Tensor,
        rng: torch.Generator,
        maps: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same, with `maps` (B, C, H, W) of the pictures, which are cropped alike and not degraded."""
        # Choices that steer the host come from a generator of its own, so that the device is waited for only once.
        host = np.random.default_rng(int(torch.randint(2**62, (), generator=rng, device=rng.device)))
        with torch.autocast(gt_01.device.type, enabled=False):
            if self.config.use_usm:
                gt_01 = self._usm.to(gt_01.device)(gt_01)
            if host.random() < self.config.no_degradation_prob:
                return self._cropped(gt_01.clone(), gt_01, maps, host)
            small = self._first_stage(gt_01, kernel1, host, rng)
            small = self._second_stage(small, gt_01.shape[-2:], kernel2, sinc_kernel, host, rng)
            lq_01 = _resized(rounded_01(small), gt_01.shape[-2:], "bicubic").clamp(0, 1)
            return self._cropped(lq_01, gt_01, maps, host)

    def _first_stage(self, img: Tensor, kernel: Tensor, host: np.random.Generator, rng: torch.Generator) -> Tensor:
        """Blur, resize, noise, JPEG."""
        img = _randomly_resized(filter2D(img, kernel), img.shape[-2:], self._first, host)
        img = _noisy(img, self._first, host, rng)
        return self._compressed(img, self._first, rng)

    def _second_stage(
        self,
        img: Tensor,
        gt_size: Sequence[int],
        kernel: Tensor,
        sinc_kernel: Tensor,
        host: np.random.Generator,
        rng: torch.Generator,
    ) -> Tensor:
        """Perhaps blur; resize, noise; then, to 1/sf of `gt_size`, sinc filter and JPEG in either order."""
        stage, sf = self._second, self.config.sf
        if host.random() < self.config.second_blur_prob:
            img = filter2D(img, kernel)
        img = _randomly_resized(img, gt_size, stage, host, sf)
        img = _noisy(img, stage, host, rng)
        jpeg_last = host.random() < 0.5
        if not jpeg_last:
            img = self._compressed(img, stage, rng)
        img = filter2D(_resized(img, _scaled(gt_size, 1, sf), host.choice(RESIZE_MODES)), sinc_kernel)
        return self._compressed(img, stage, rng) if jpeg_last else img

    def _compressed(self, img: Tensor, stage: Stage, rng: torch.Generator) -> Tensor:
        """In place: `img` is the caller's to give."""
        quality = uniform_per_sample(img, stage.jpeg_range, rng).flatten()
        compressed: Tensor = self._jpeg.to(img.device)(img.clamp_(0, 1), quality)
        return compressed

    def _cropped(
        self, lq: Tensor, gt: Tensor, maps: Tensor, host: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same random square of all, where they are larger than gt_size."""
        size = self.config.gt_size or max(gt.shape[-2:])
        top, left = (int(host.integers(max(side - size, 0) + 1)) for side in gt.shape[-2:])
        square = (..., slice(top, top + size), slice(left, left + size))
        return lq[square], gt[square], maps[square]


def _noisy(img: Tensor, stage: Stage, host: np.random.Generator, rng: torch.Generator) -> Tensor:
    if host.random() < stage.gaussian_noise_prob:
        return add_gaussian_noise(img, stage.noise_range, stage.gray_noise_prob, rng)
    return add_poisson_noise(img, stage.poisson_scale_range, stage.gray_noise_prob, rng)


def _randomly_resized(img: Tensor, base: Sequence[int], stage: Stage, host: np.random.Generator, sf: int = 1) -> Tensor:
    """To `base` (H, W) over `sf` times a random scale, in a random direction and mode."""
    low, high = stage.resize_range
    direction = host.choice(RESIZE_DIRECTIONS, p=stage.resize_prob)
    scale = {"up": host.uniform(1, high), "down": host.uniform(low, 1), "keep": 1.0}[str(direction)]
    return _resized(img, _scaled(base, scale, sf), host.choice(RESIZE_MODES))


def _scaled(size: Sequence[int], scale: float, sf: int) -> tuple[int, int]:
    """(H, W) times `scale` over `sf`, rounded down, at least one pixel."""
    return max(1, int(size[0] * scale / sf)), max(1, int(size[1] * scale / sf))


def _resized(img: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """Without anti-aliasing: the aliasing of careless tools is part of what is imitated."""
    if img.shape[-2:] == tuple(size):  # every mode then gives the picture itself, to the bit
        return img
    resized: Tensor = F.interpolate(img, size=tuple(size), mode=str(mode))
    return resized
