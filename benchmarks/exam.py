"""Write the exam: eleven photographs that nothing was trained, validated or chosen on, and two small versions of each.

    python benchmarks/exam.py [FOLDER]          default: data/exam; Debian's package lxqt-themes, no root needed

FOLDER/true holds squares of 512 pixels; FOLDER/clean the same at 128 by bicubic reduction, and nothing else;
FOLDER/real blurred first (Gaussian, 1 pixel), then reduced, with noise (standard deviation 5 of 255), and through JPEG
of quality 75, kept as PNG.

    python benchmarks/picture_strip.py FOLDER/true FOLDER/real
    stablesr-edge upscale --input FOLDER/real --output RESULTS && stablesr-edge evaluate --also bicubic,RESULTS ...
"""

import argparse
import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from scripts.gather_photographs import largest, middle, unpacked

PACKAGE = "lxqt-themes"
PHOTOGRAPHS = (
    "Butterfly-Kenneth-Wimer", "Valendas", "after-the-rain", "appleflower", "beam", "butterfly", "cloud", "drop",
    "flowers", "fog", "this-is-not-windows",
)  # fmt: skip
FACTOR = 4
BLUR = 1.0  # pixels of the large picture, standard deviation
NOISE = 5.0  # of 255, standard deviation
QUALITY = 75


def smaller(picture: Image.Image) -> Image.Image:
    """Reduced by the factor, bicubic with antialiasing."""
    return picture.resize((picture.width // FACTOR, picture.height // FACTOR), Image.Resampling.BICUBIC)


def noisy(picture: Image.Image, seed: int) -> Image.Image:
    """With Gaussian noise, independent for every value."""
    pixels = np.asarray(picture, np.float64)
    pixels = pixels + np.random.default_rng(seed).normal(0, NOISE, pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def write(folder: Path) -> None:
    """Write the three folders and the package's licences."""
    for part in ("true", "clean", "real"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        root = unpacked(PACKAGE, Path(scratch))
        for seed, name in enumerate(tqdm(PHOTOGRAPHS, desc=f"photographs to {folder}")):
            with Image.open(largest(root, name)) as photo:
                true = middle(photo.convert("RGB"))
            true.save(folder / "true" / f"{name}.png")
            smaller(true).save(folder / "clean" / f"{name}.png")
            blurred = true.filter(ImageFilter.GaussianBlur(BLUR))
            buffer = io.BytesIO()
            noisy(smaller(blurred), seed).save(buffer, "JPEG", quality=QUALITY)
            Image.open(buffer).save(folder / "real" / f"{name}.png")  # by the true one's name
        (notice,) = root.glob("usr/share/doc/*/copyright")
        (folder / "LICENCES.txt").write_text(notice.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/exam"))
    try:
        write(parser.parse_args().folder)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}; this needs Debian's or Ubuntu's apt-get (run `apt-get update` first) and dpkg-deb")
