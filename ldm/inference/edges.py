"""What an upscale tells a model that sees edges: a map of the result's size, whatever it was made from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.utils.errors import FieldError
from basicsr.utils.ranges import from_pm1
from ldm.inference.canvas import cropped, padded
from ldm.inference.picture import LUMA, Picture
from ldm.inference.settings import Edges, UpscaleSettings
from ldm.models.diffusion.edge_condition import EMPTY, EdgeCondition, as_map

log = logging.getLogger(__name__)

SUFFIX = "_edge"  # of the name of a picture's edges
BLANK = 0.0  # every pixel of a dummy map: neither an edge nor none


@dataclass(frozen=True)
class EdgeTeller:
    """Makes the maps of one upscale's pictures; `condition` None: the model sees no edges.

    told: lq, the edges of the input as the model sees it; none, an empty map; dummy, a blank sheet that says nothing of
        the picture, as no map of edges looks; file, a picture of edges that comes with the input; input, the input
        itself as that picture.
    """

    condition: EdgeCondition | None
    told: Edges

    @classmethod
    def of(cls, condition: EdgeCondition | None, settings: UpscaleSettings) -> "EdgeTeller":
        """The one that the settings ask for.

        Raises:
            FieldError: edges for a model that sees none, or the input as the map that stands beside it.
        """
        if condition is None:
            chosen = {"edges": settings.edges not in ("auto", "none"), "edge_scale": settings.edge_scale != 1}
            for field in (field for field, is_chosen in chosen.items() if is_chosen):
                raise FieldError(
                    field,
                    f"is {getattr(settings, field)}: this model sees no edges; one whose config has "
                    "structcond_stage_config.params.in_channels: 8, or an edge_condition, does",
                )
            return cls(None, "none")
        usual: Edges = "input" if condition.use == "alone" else "lq"
        if settings.edges == "input" != usual:
            raise FieldError("edges", "is input: this model wants edges beside the input; choose lq, none or file")
        if settings.edge_scale != 1 and condition.dropout == 0:
            log.warning("edge_scale %s: the model was trained with dropout 0, never without edges", settings.edge_scale)
        return cls(condition, usual if settings.edges == "auto" else settings.edges)

    @property
    def alone(self) -> bool:
        """Whether the model sees edges in place of a picture."""
        return self.condition is not None and self.condition.use == "alone"

    @property
    def input_is_map(self) -> bool:
        """Whether there is no picture but the one of edges."""
        return self.told == "input"

    def map_of(self, enlarged: Picture, canvas_pm1: Tensor, given: Picture | None) -> Tensor | None:
        """The map (1, 3, H, W) in [-1, 1] for a canvas (1, 3, H, W) with the enlarged input; None for an empty one.

        given: the picture of edges, white on black, grey or RGB, of any size. It is brought to the input's, so that no
        line is lost, and mirrored beyond its borders like the input.

        Raises:
            FieldError: it is missing.
        """
        if self.condition is None or self.told == "none":
            return None
        if self.told == "lq":
            return self.condition.map_of(canvas_pm1)
        if self.told == "dummy":
            return torch.full_like(canvas_pm1, BLANK)
        if given is None:
            raise FieldError("edges", "is file, and no picture of edges is given")
        edge_01 = brought_to_size(edge_plane(given), enlarged.size)
        return padded(as_map(edge_01), canvas_pm1.shape[-2:])


def edge_plane(picture: Picture) -> Tensor:
    """The edges (1, 1, H, W) in [0, 1] of a picture of them; what is transparent is no edge."""
    grey = (picture.rgb_01 * torch.tensor(LUMA).view(3, 1, 1)).sum(dim=0, keepdim=True)
    return (grey if picture.alpha_01 is None else grey * picture.alpha_01)[None]


def brought_to_size(edge_01: Tensor, size: Sequence[int]) -> Tensor:
    """(1, 1, H, W) -> (1, 1, *size): each pixel is the brightest of those that it covers."""
    return F.adaptive_max_pool2d(edge_01, list(size))


def as_picture(map_pm1: Tensor | None, like: Picture) -> Picture:
    """The part of a canvas (1, 3, H, W) in [-1, 1] that belongs to `like`, to look at; for None an empty map."""
    if map_pm1 is None:
        map_pm1 = torch.full((1, 3, *like.size), EMPTY)
    return Picture(from_pm1(cropped(map_pm1, like.size)[0]).clamp(0, 1), grey=True)


def edge_file(picture: Path, place: Path | None, below: Path) -> Path:
    """The file of a picture's edges: NAME_edge.png beside it, or in a folder `place`, where NAME.png is one too.

    below: the picture's path below the input folder, and its edges' below `place`. Where there is no such file it is
    the first of these names.
    """
    folder = picture.parent if place is None else (place / below).parent
    own = folder / f"{picture.stem}{SUFFIX}.png"
    other = folder / f"{picture.stem}.png"
    return other if place is not None and other.is_file() and not own.is_file() else own


def without_edge_files(pictures: Sequence[Path]) -> list[Path]:
    """`pictures` but those that are another one's NAME_edge.png."""
    owned = {picture.with_name(f"{picture.stem}{SUFFIX}.png") for picture in pictures}
    return [picture for picture in pictures if picture not in owned]
