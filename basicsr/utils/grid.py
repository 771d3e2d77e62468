"""Pictures beside each other, with their names."""

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from basicsr.utils.ranges import from_pm1, to_u8

MIN_TILE = 160  # pixels: small frames are enlarged so that the labels stay readable
GAP = 4
LABEL_HEIGHT = 22


def labelled_grid(columns: Mapping[str, Tensor]) -> Image.Image:
    """One picture: a column per entry with its label on top, a row per sample.

    Args:
        columns: by label, each (N, 3, H, W) in -1 to 1, all of one size; values beyond are clamped.
    """
    first = next(iter(columns.values()))
    zoom = max(1, -(-MIN_TILE // first.shape[-1]))
    height, width = first.shape[-2] * zoom, first.shape[-1] * zoom
    rows = min(len(batch) for batch in columns.values())
    size = (len(columns) * (width + GAP) + GAP, rows * (height + GAP) + LABEL_HEIGHT + GAP)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(14)
    for column, (name, batch) in enumerate(columns.items()):
        left = GAP + column * (width + GAP)
        draw.text((left + width // 2, LABEL_HEIGHT // 2), name, fill="black", anchor="mm", font=font)
        for row in range(rows):
            pixels = to_u8(from_pm1(batch[row].detach().float().cpu())).permute(1, 2, 0).numpy()
            tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            grid.paste(tile, (left, LABEL_HEIGHT + row * (height + GAP)))
    return grid


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
