"""Gather photographs to train the demo's networks on, from Debian's wallpaper packages (no root needed, 170 MB).

    python scripts/gather_photographs.py [FOLDER]          default: data/photographs

FOLDER/train holds tiles of 256 pixels, cut from each photograph at 1920, 960 and 480 pixels on its longer side: small
files, so that a sample costs no decoding of a whole photograph. FOLDER/validation holds 512-pixel squares of
photographs that are never trained on. FOLDER/LICENCES.txt says whose they are.
Drawings and gradients in the packages are left out.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from tqdm import tqdm

# package -> (photographs to train on, photographs kept apart), by the names of their files or, in Plasma's, folders
PACKAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "lomiri-wallpapers-16.04": (
        ("Dragonfly_by_Bolly", "Picture_1A_by_freespace", "aitzgorri_by_Aitzol_Berasategi", "free_by_Peter_Nerlich",
         "friends_by_Aitzol_Berasategi", "greentock_by_Peter_Nerlich", "picosdeeuropa_by_Aitzol_Berasategi",
         "seeding_by_Clements_Engelhardt", "sunset_by_Aitzol_Berasategi"),
        ("Bridge_by_Sander_Klootwijk", "Picture_0B_by_freespace", "Wine_by_Jakkub_Mede",
         "life_by_Aitzol_Berasategi"),
    ),
    "lomiri-wallpapers-20.04": (("Kleiber_by_Lukas_Baubkus",), ()),
    "mate-backgrounds": (
        ("Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "RainDrops", "Storm", "TwoWings", "Wood",
         "YellowFlower"),
        ("LadyBird",),
    ),
    "plasma-workspace-wallpapers": (
        ("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite",
         "OneStandsOut", "Path", "summer_1am"),
        (),
    ),
}  # fmt: skip
TILE = 256  # pixels
LONGER_SIDES = (1920, 960, 480)
VALIDATION_SIDE = 512


def unpacked(package: str, folder: Path) -> Path:
    """Download and unpack a Debian package below `folder`; nothing of it is run or installed."""
    target = folder / package
    target.mkdir()
    subprocess.run(["apt-get", "download", "-qq", package], cwd=target, check=True, stderr=subprocess.DEVNULL)
    (archive,) = target.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=target, check=True)
    return target


def largest(root: Path, name: str) -> Path:
    """The picture of that name, or in the folder of that name, with the most pixels."""
    files = [
        path
        for path in root.rglob("*")
        if path.suffix in (".jpg", ".png") and not path.is_symlink() and name in (path.stem, *path.parts)
    ]
    return max(files, key=lambda path: _pixels(path))


def _pixels(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.width * picture.height


def tiles(photo: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Tiles side by side at each size, with their names; the last row and column are moved inside."""
    for side in LONGER_SIDES:
        scaled = photo.copy()
        scaled.thumbnail((side, side), Image.Resampling.LANCZOS)
        if min(scaled.size) < TILE:
            continue
        columns, rows = ([*range(0, length - TILE, TILE), length - TILE] for length in scaled.size)
        for y in rows:
            for x in columns:
                yield f"{side}_{y}_{x}", scaled.crop((x, y, x + TILE, y + TILE))


def middle(photo: Image.Image) -> Image.Image:
    """The square in the middle, at half the side of the photograph brought to twice the square's."""
    scaled = photo.copy()
    scaled.thumbnail((2 * VALIDATION_SIDE, 2 * VALIDATION_SIDE), Image.Resampling.LANCZOS)
    left, top = ((length - VALIDATION_SIDE) // 2 for length in scaled.size)
    return scaled.crop((left, top, left + VALIDATION_SIDE, top + VALIDATION_SIDE))


def gather(folder: Path) -> None:
    """Write both folders and the licences."""
    for part in ("train", "validation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    licences = []
    with TemporaryDirectory() as scratch:
        for package, (train, validation) in tqdm(PACKAGES.items(), desc=f"photographs to {folder}"):
            root = unpacked(package, Path(scratch))
            for name in train:
                with Image.open(largest(root, name)) as photo:
                    for place, tile in tiles(photo.convert("RGB")):
                        tile.save(folder / "train" / f"{name}_{place}.png")
            for name in validation:
                with Image.open(largest(root, name)) as photo:
                    middle(photo.convert("RGB")).save(folder / "validation" / f"{name}.png")
            (notice,) = root.glob("usr/share/doc/*/copyright")
            licences.append(f"{package}: {', '.join(train + validation)}\n\n{notice.read_text(encoding='utf-8')}")
    (folder / "LICENCES.txt").write_text("\n\n".join(licences), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/photographs"))
    arguments = parser.parse_args()
    try:
        gather(arguments.folder)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}; this needs Debian's or Ubuntu's apt-get (run `apt-get update` first) and dpkg-deb")
