"""Reference pictures of an upscale: which belongs to which input, brought to the result's size."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.img_util import find_pictures
from ldm.inference.picture import Picture

OTHER_SHAPE = 0.02  # more than so much in the ratio of the sides is no rounding


def references_of(inputs: Sequence[Path], source: Path, reference: Path) -> list[Path]:
    """The reference of each input: one file for one input, or in a folder the picture of its name, whatever its type.

    inputs: pictures below `source`, or `source` itself.

    Raises:
        FieldError: there is none, for one input or for some of several.
    """
    if not reference.exists():
        raise FieldError("reference", f"is {reference}, which is not there: give a picture or a folder of pictures")
    if not reference.is_dir():
        if source.is_dir():
            raise FieldError("reference", f"is {reference}, one picture for all of {source}: give a folder of them")
        return [reference]
    by_name = {file.relative_to(reference).with_suffix(""): file for file in find_pictures(reference, name="reference")}
    names = [(file.relative_to(source) if source.is_dir() else Path(file.name)).with_suffix("") for file in inputs]
    if missing := [str(name) for name in names if name not in by_name]:
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise FieldError("reference", f"is {reference}, which has no picture for {len(missing)} inputs: {shown}")
    return [by_name[name] for name in names]


def fitted(reference: Picture, size: tuple[int, int]) -> Picture:
    """The reference at the result's size (height, width).

    Raises:
        UserError: it has another shape, and so cannot show the same face at the same place.
    """
    (height, width), (wanted_h, wanted_w) = reference.size, size
    if abs(height * wanted_w / (width * wanted_h) - 1) > OTHER_SHAPE:
        raise UserError(
            f"its reference has {width} x {height} pixels, another shape than the result's {wanted_w} x {wanted_h}: "
            "give one of the same face, aligned alike"
        )
    resized = F.interpolate(reference.opaque()[None], size=list(size), mode="bicubic", antialias=True)
    return replace(reference, rgb_01=resized[0].clamp(0, 1), alpha_01=None)
