"""Write the demo's photographs, those that come with scikit-image, as folders of pictures.

    python scripts/demo_photos.py [FOLDER]          default: data/demo

FOLDER/train holds the pictures to train on: each photograph, at half its size too where it is large, and, so that a few
photographs teach more colours, with red and blue exchanged. FOLDER/validation holds photographs that are never trained on.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage
from PIL import Image
from tqdm import tqdm

TRAIN = ("astronaut.png", "motorcycle_left.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "brick.png",
         "grass.png", "gravel.png", "coins.png", "clock_motion.png")
VALIDATION = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "moon.png")
LARGE = 500  # pixels on the longer side, from which on a half-size copy is still worth cropping from


def variants(photo: Image.Image) -> dict[str, Image.Image]:
    """The photograph and its copies, by the suffix of their file names."""
    made = {"": photo}
    if max(photo.size) >= LARGE:
        made["_half"] = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.LANCZOS)
    if np.ptp(np.asarray(photo), axis=2).any():
        made |= {f"{suffix}_swapped": Image.fromarray(np.asarray(copy)[..., ::-1].copy()) for suffix, copy in made.items()}
    return made


def write(folder: Path) -> None:
    """Write both folders; files that are there already are left alone."""
    source = Path(skimage.__file__).parent / "data"
    for split, names in (("train", TRAIN), ("validation", VALIDATION)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name in tqdm(names, desc=f"{folder / split}"):
            photo = Image.open(source / name).convert("RGB")
            for suffix, copy in (variants(photo) if split == "train" else {"": photo}).items():
                path = folder / split / f"{Path(name).stem}{suffix}.png"
                if not path.exists():
                    copy.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/demo"))
    write(parser.parse_args().folder)
