"""Edges as a condition: an edge map that the time-aware encoder sees beside the LQ latent, or in its place."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.data.pair_pool import Pair
from basicsr.utils import checks
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import FieldError, fields_named
from basicsr.utils.ranges import to_pm1
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.checkpoint import StateDict
from ldm.models.diffusion.first_stage import FirstStage
from ldm.util import check_arguments

log = logging.getLogger(__name__)

USES = ("beside", "alone")
SOURCES = ("lq", "gt", "file")
ENCODINGS = ("vae", "resize")
EMPTY = -1.0  # every pixel of a map that says nothing: no edge anywhere
FIRST_CONVOLUTION = "structcond_stage_model.input_blocks.0.0"
_IN_CHANNELS = "structcond_stage_config.params.in_channels"

# Pictures (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, H/f, W/f)
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EdgeCondition:
    """The options of a model's `edge_condition:` block.

    A map is (B, 3, H, W) in [-1, 1], three equal channels, 1 on edges, `EMPTY` where it says nothing.

    use: `beside` makes the encoder's input cat([z_lq, z_edge], 1); `alone` z_edge in place of z_lq: edge to picture.
    source: whose edges, always of the same sample: those of the LQ picture, as the model sees it (`lq`), which are
        there at inference too; of the true picture (`gt`), beside z_lq an oracle that no real use has; of a drawn map
        that comes with the picture (`file`).
    generator: arguments of `EdgeMapGenerator`, which makes the maps that are not drawn.
    dropout: the share of training samples whose map is emptied, so that the model works without edges, too, and can be
        guided by them.
    encode: z_edge is the autoencoder's latent of the map (`vae`), or the map itself at the latent's size, the same in
        every channel (`resize`).

    Raises:
        FieldError: an unknown or impossible value; the field is such as `edge_condition.use`.
    """

    use: str = "beside"
    source: str = "lq"
    generator: Mapping[str, Any] | None = None
    dropout: float = 0.1
    encode: str = "vae"

    def __post_init__(self) -> None:
        with fields_named(lambda field: f"edge_condition.{field}"):
            for name, valid in (("use", USES), ("source", SOURCES), ("encode", ENCODINGS)):
                if getattr(self, name) not in valid:
                    raise checks.unknown(name, str(getattr(self, name)), valid)
            checks.probability("dropout", self.dropout)
            if wrong := check_arguments(EdgeMapGenerator, self.generator or {}, name="EdgeMapGenerator"):
                raise FieldError("generator", f"does not fit: {wrong[1]}")
            with fields_named(lambda field: f"generator.{field}"):
                self.maps  # noqa: B018 (built now, for its own errors)

    @cached_property
    def maps(self) -> EdgeMapGenerator:
        """The one source of maps that are not drawn."""
        return EdgeMapGenerator(**(self.generator or {}))

    @property
    def is_oracle(self) -> bool:
        """Whether it tells the model what no real use could: the true picture's edges beside the LQ picture."""
        return self.source == "gt" and self.use == "beside"

    def map_of(self, picture_pm1: Tensor) -> Tensor:
        """The map (B, 3, H, W) of pictures of that shape in [-1, 1], on their device."""
        return as_map(self.maps.edges_01(picture_pm1)).to(picture_pm1.device)

    def map_of_pair(self, pair: Pair) -> Tensor:
        """The maps (B, 3, H, W) of a batch's own samples, by `source`.

        Raises:
            FieldError: they are to come from files, and the data set has none.
        """
        if self.source != "file":
            return self.map_of(pair.lq_pm1 if self.source == "lq" else pair.gt_pm1)
        if pair.edge_01 is None:
            raise FieldError(
                "edge_condition.source",
                "is 'file', and the data set gives no edge maps: set edge_map_path in its params, or choose lq",
            )
        return as_map(pair.edge_01)


def as_map(edge_01: Tensor) -> Tensor:
    """Edges (B, 1, H, W) in [0, 1] -> a map (B, 3, H, W) in [-1, 1]."""
    return to_pm1(edge_01).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Structure:
    """Makes what the time-aware encoder is given, `z_struct` (B, channels, h, w); `condition` None means z_lq alone."""

    condition: EdgeCondition | None
    first_stage: FirstStage
    channels: int

    @classmethod
    def of(cls, options: Mapping[str, Any] | None, channels: int, first_stage: FirstStage) -> "Structure":
        """From a model's `edge_condition:` block, or None, and the `in_channels` of its time-aware encoder.

        Raises:
            FieldError: the two do not go together.
        """
        latent = first_stage.vae.post_quant_conv.in_channels
        if options is None and channels == latent:
            return cls(None, first_stage, channels)
        condition = EdgeCondition(**(options or {}))
        structure = cls(condition, first_stage, channels)
        own = structure.picture_channels
        if condition.encode == "vae" and channels != own + latent:
            raise FieldError(_IN_CHANNELS, f"is {channels}: edges {condition.use} make it {own + latent}")
        if channels <= own:
            raise FieldError(_IN_CHANNELS, f"is {channels}, of which z_lq takes {own}: edges beside it need more")
        structure._tell()
        return structure

    @property
    def picture_channels(self) -> int:
        """How many of the channels are z_lq's: the first ones. Those that follow are the edges'."""
        alone = self.condition is not None and self.condition.use == "alone"
        return 0 if alone else self.first_stage.vae.post_quant_conv.in_channels

    def __call__(
        self,
        z_lq: Tensor,
        edge_pm1: Tensor | None = None,
        rng: torch.Generator | None = None,
        encode: Encode | None = None,
    ) -> Tensor:
        """The encoder's input for LQ latents z_lq (B, 4, h, w) and maps edge_pm1 (B, 3, f h, f w), None for empty ones.

        rng draws a sample of the map's latent; without it the draw is always the same. encode: stands in for the
        model's own autoencoder.
        """
        if self.condition is None:
            return z_lq
        if edge_pm1 is None:
            height, width = (side * self.first_stage.vae.config.downsampling for side in z_lq.shape[-2:])
            edge_pm1 = z_lq.new_full((len(z_lq), 3, height, width), EMPTY)
        own = self.picture_channels
        if self.condition.encode == "resize":
            z_edge = F.interpolate(edge_pm1[:, :1], z_lq.shape[-2:], mode="area").expand(
                -1, self.channels - own, -1, -1
            )
        else:
            rng = torch_rng(z_lq.device, "edge condition") if rng is None else rng
            z_edge = self.first_stage.encode(edge_pm1, rng) if encode is None else encode(edge_pm1)
        return torch.cat([z_lq, z_edge.to(z_lq)], dim=1) if own else z_edge

    def of_pair(self, z_lq: Tensor, pair: Pair, rng: torch.Generator, *, drop: bool = False) -> Tensor:
        """The same for a batch of training pairs, with their own maps; with `drop` a share of them is emptied.

        What is drawn comes from a stream named after that of rng, which is left as it is: a model without edges draws
        the same numbers.
        """
        if self.condition is None:
            return z_lq
        own = torch_rng(z_lq.device, "edge condition", rng.initial_seed())
        edge_pm1 = self.condition.map_of_pair(pair)
        if drop:
            dropped = torch.rand(len(pair), generator=own, device=z_lq.device) < self.condition.dropout
            edge_pm1 = edge_pm1.masked_fill(dropped[:, None, None, None], EMPTY)
        return self(z_lq, edge_pm1, own)

    def zero_start(self, state: StateDict, ignore_keys: Sequence[str]) -> StateDict:
        """The weights of a model that saw less, with zeros for the edges' channels of the encoder's first convolution.

        At step 0 the model is then the file's, whatever the map (Zhang et al., ControlNet, 2023, section 3.1).
        """
        key = f"{FIRST_CONVOLUTION}.weight"
        lacking = self.channels - state[key].shape[1] if key in state else 0
        if self.condition is None or self.condition.use == "alone" or lacking <= 0:
            return state
        kept = (
            f"the file's {state[key].shape[1]} channels are kept and the {lacking} new ones, for edges, begin at zero"
        )
        if any(key.startswith(prefix) for prefix in ignore_keys):
            log.warning("ignore_keys makes %s random. Better: leave it out of ignore_keys; %s", FIRST_CONVOLUTION, kept)
            return state
        log.info("%s: %s", FIRST_CONVOLUTION, kept)
        return {**state, key: F.pad(state[key], (0, 0, 0, 0, 0, lacking))}

    def _tell(self) -> None:
        """Say in the log what the encoder sees, and whether that is an oracle."""
        if self.condition is None:
            return
        told = f"{self.condition.use} the LQ latent" if self.condition.use == "beside" else "alone (edge to picture)"
        log.info("Edges as a condition: %s, source %s", told, self.condition.source)
        if self.condition.is_oracle:
            log.warning(
                "edge_condition.source is gt, an ORACLE: the true picture's edges tell what no LQ picture does, "
                "and every figure of this model that uses them is too good"
            )
