"""How to upscale: everything a user may choose, checked. Loads neither torch nor any other heavy package."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from basicsr.utils import checks
from basicsr.utils.errors import FieldError, closest
from ldm.models.diffusion.reference import ReferencePull

Sampler = Literal["ddpm", "ddim", "dpmpp", "unipc"]
ColorFix = Literal["adain", "wavelet", "none"]
Edges = Literal["auto", "lq", "none", "dummy", "file", "input"]
Start = Literal["auto", "input", "noise"]
PRECISIONS = ("fp32", "bf16", "fp16")
PRECISION_CHOICES = ("auto", *PRECISIONS)
MIN_TILE = 64  # pixels of the result
MAX_FACTOR = 16


def check_choice(field: str, value: str, valid: Iterable[str]) -> str:
    """`value`, where it is one of `valid`. Raises FieldError, with the closest one."""
    valid = list(valid)
    if value not in valid:
        near = closest(str(value), valid)
        raise FieldError(field, f"is {value!r}: " + (f"did you mean {near!r}?" if near else f"use {', '.join(valid)}"))
    return value


@dataclass(frozen=True)
class UpscaleSettings:
    """Options of an upscale.

    upscale: factor on the sides, 1 to 16. steps: of the sampler, counted from where it starts; start_t: the step of the
    whole process to start from, the last one by default: the lower, the closer to the input.
    eta: noise of DDIM, 0 to 1. guidance_scale: of `prompt` against `negative_prompt`; 1 means no guidance.
    dec_w: weight of the input's features in a CFW decoder, 0 to 1. colorfix: see `color_fix`.
    tile: side of the tiles that the networks see, in pixels of the result: auto is the size that the networks were
        trained at, none the whole picture at once. tile_overlap: pixels, a third of a tile by default.
    batch: tiles, of one picture or of several small ones, that go through the network at once; auto: as many as fit.
    reference_rate, reference_steps, reference_range: of a reference picture, where there is one; see `ReferencePull`.

    Raises:
        FieldError: a value that cannot be.
    """

    upscale: float = 4
    steps: int = 200
    sampler: Sampler = "ddpm"
    eta: float = 0.0
    start_t: int | None = None
    start: Start = "auto"
    guidance_scale: float = 1.0
    edges: Edges = "auto"
    edge_scale: float = 1.0
    prompt: str = ""
    negative_prompt: str = ""
    dec_w: float = 0.5
    colorfix: ColorFix = "adain"
    tile: int | Literal["auto", "none"] = "auto"
    tile_overlap: int | None = None
    seed: int = 42
    batch: int | Literal["auto"] = 1
    reference_rate: float = ReferencePull.rate
    reference_steps: int = ReferencePull.steps
    reference_range: tuple[int, int] = ReferencePull.between

    def __post_init__(self) -> None:
        checks.number("upscale", self.upscale, 1, MAX_FACTOR)
        checks.whole_number("steps", self.steps, 1)
        checks.number("eta", self.eta, 0, 1)
        checks.number("guidance_scale", self.guidance_scale)
        checks.number("edge_scale", self.edge_scale)
        checks.number("dec_w", self.dec_w, 0, 1)
        if isinstance(self.batch, str):
            if self.batch != "auto":
                raise FieldError("batch", f"is {self.batch!r}: give auto or a whole number from 1 on")
        else:
            checks.whole_number("batch", self.batch, 1)
        checks.whole_number("seed", self.seed, 0)
        check_choice("sampler", self.sampler, get_args(Sampler))
        check_choice("colorfix", self.colorfix, get_args(ColorFix))
        check_choice("edges", self.edges, get_args(Edges))
        check_choice("start", self.start, get_args(Start))
        if self.start == "noise" and self.start_t is not None:
            raise FieldError(
                "start", f"is noise, which is all there is at the last step, not at start_t {self.start_t}"
            )
        self.pull()
        if self.start_t is not None and self.steps > checks.whole_number("start_t", self.start_t, 0) + 1:
            raise FieldError(
                "steps", f"is {self.steps}: from start_t {self.start_t} on at most {self.start_t + 1} can be taken"
            )
        if isinstance(self.tile, str):
            if self.tile not in ("auto", "none"):
                raise FieldError("tile", f"is {self.tile!r}: give auto, none or a number of pixels from {MIN_TILE} on")
        elif checks.whole_number("tile", self.tile, -math.inf) < MIN_TILE:
            raise FieldError("tile", f"is {self.tile}: give {MIN_TILE} pixels or more; less shows too little")
        if self.tile_overlap is not None:
            checks.whole_number("tile_overlap", self.tile_overlap, 0)

    def pull(self) -> ReferencePull:
        """How a reference draws."""
        return ReferencePull(self.reference_rate, self.reference_steps, self.reference_range)


DEFAULTS = UpscaleSettings()
# More steps cost time and give more texture, but the small networks' texture is further from the truth. Their colours
# are off by region, which adain, one for the whole picture, cannot mend.
DEMO_DEFAULTS = UpscaleSettings(steps=4, batch=16, colorfix="wavelet")
