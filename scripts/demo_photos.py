"""Write the demo's pictures, cut from the photographs that come with scikit-image.

    python scripts/demo_photos.py [FOLDER]          default: data/demo

FOLDER/train holds tiles of the photographs to train on: small files, so that a sample costs no decoding of a whole
photograph. For these few to teach more, there are tiles at half size too, and in other colours. FOLDER/validation holds
whole photographs that are never trained on.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
from PIL import Image
from tqdm import tqdm

TRAIN = (
    "astronaut.png",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
    "clock_motion.png",
)
VALIDATION = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "moon.png")
TILE = 192  # pixels
CHANNEL_ORDERS = ((0, 1, 2), (2, 1, 0), (1, 2, 0))
SEPIA = np.array([1.0, 0.8, 0.55])


def recoloured(photo: np.ndarray) -> Iterator[np.ndarray]:
    """The photograph (H, W, 3) uint8 and its copies: with channels exchanged, or, where it is grey, in sepia."""
    if np.ptp(photo, axis=2).any():
        yield from (photo[..., order] for order in CHANNEL_ORDERS)
    else:
        yield from (photo, (photo * SEPIA).astype(np.uint8))


def tiles(photo: np.ndarray) -> Iterator[np.ndarray]:
    """Tiles side by side; the last row and column are moved inside."""
    starts = [[*range(0, side - TILE, TILE), side - TILE] for side in photo.shape[:2]]
    yield from (photo[y : y + TILE, x : x + TILE] for y in starts[0] for x in starts[1])


def write(folder: Path) -> None:
    """Write both folders; files that are there already are left alone."""
    source = Path(skimage.__file__).parent / "data"
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "validation").mkdir(parents=True, exist_ok=True)
    for name in tqdm(VALIDATION + TRAIN, desc=f"photographs to {folder}"):
        photo = Image.open(source / name).convert("RGB")
        if name in VALIDATION:
            save(photo, folder / "validation" / f"{Path(name).stem}.png")
            continue
        half = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.LANCZOS)
        sizes = [photo, half] if min(half.size) >= TILE else [photo]
        cut = (tile for size in sizes for copy in recoloured(np.asarray(size)) for tile in tiles(copy))
        for number, tile in enumerate(cut):
            save(Image.fromarray(np.ascontiguousarray(tile)), folder / "train" / f"{Path(name).stem}_{number:03d}.png")


def save(picture: Image.Image, path: Path) -> None:
    """Write the picture unless the file is there."""
    if not path.exists():
        picture.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/demo"))
    write(parser.parse_args().folder)
