"""Compare the PyTorch Canny with OpenCV's, pixel by pixel, on random pictures with random settings.

    python benchmarks/canny_exactness.py [--pictures 2000] [--seed 0] [--device cpu|cuda]

Synthetic pictures and cut-outs of scikit-image's photographs, 3x3 to 1024x768 pixels, in batches of one to four. Every
step is compared: grey, blur, Canny on its own (thresholds up to 1200, in either order), and the whole map of
`EdgeMapGenerator(backend="torch")`, in both threshold modes, with and without the morphology. Exit status 1 where a
pixel differs. Takes less than a minute.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage
import torch
from PIL import Image
from tqdm import tqdm

from basicsr.utils import canny
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.rng import numpy_rng

SMALLEST, LARGEST = 3, (768, 1024)
PHOTOGRAPHS = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
               "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
               "rocket.jpg")  # fmt: skip
STEPS = ("grey", "blur", "canny", "map")


def photographs() -> list[np.ndarray]:
    """scikit-image's photographs, uint8 (H, W, 3)."""
    folder = Path(skimage.__file__).parent / "data"
    return [np.asarray(Image.open(folder / name).convert("RGB")) for name in PHOTOGRAPHS]


def cut_out(photo: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of a photograph, at a random scale between one that just covers the part and the photograph's."""
    least = max(height / photo.shape[0], width / photo.shape[1])
    scale = rng.uniform(least, max(least, 1.0))
    size = [max(wanted, round(side * scale)) for wanted, side in zip((height, width), photo.shape[:2], strict=True)]
    scaled = cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    y, x = (int(rng.integers(0, side - wanted + 1)) for side, wanted in zip(size, (height, width), strict=True))
    return np.asarray(scaled[y : y + height, x : x + width])


def spiral(height: int, width: int, pitch: float, contrast: np.ndarray) -> np.ndarray:
    """Two long edges that wind from the middle to the border. `contrast` (3,) in the middle, a third of it outside."""
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
    radius = np.hypot(y, x)
    inside = (radius / pitch - np.arctan2(y, x) / (2 * np.pi)) % 1 < 0.5
    fade = 1 - radius / radius.max() * (2 / 3)
    return np.asarray((inside * fade)[..., None] * contrast, np.uint8)


def synthetic(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, 3): noise, few levels (many ties), soft blobs, rings (every direction), a spiral, or shapes."""
    kind = rng.integers(0, 6)
    if kind == 0:
        return np.asarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if kind == 1:
        return rng.integers(0, 4, (height, width, 1), dtype=np.uint8).repeat(3, 2) * np.uint8(rng.integers(0, 86))
    if kind == 2:
        blobs = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 3)), (0, 0), rng.uniform(0.5, 8))
        return np.asarray(np.clip(128 + 90 * blobs / blobs.std(), 0, 255).astype(np.uint8))
    if kind == 3:
        y, x = np.mgrid[:height, :width] - rng.uniform(-1, 1, (2, 1, 1)) * np.array([height, width])[:, None, None]
        rings = np.sin(np.hypot(y, x) / rng.uniform(0.5, 20))[..., None]
        return np.asarray(np.clip(127.5 + rng.uniform(0, 160, 3) * rings, 0, 255).astype(np.uint8))
    if kind == 4:
        return spiral(height, width, rng.uniform(4, 24), rng.integers(0, 256, 3))
    canvas = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(int(rng.integers(1, 30))):
        start, end = (tuple(int(v) for v in rng.integers(0, (width, height))) for _ in range(2))
        cv2.line(canvas, start, end, [int(v) for v in rng.integers(0, 256, 3)], int(rng.integers(1, 12)))
    return canvas


def draw_batch(rng: np.random.Generator, photos: list[np.ndarray], most: int, largest: tuple[int, int]) -> np.ndarray:
    """uint8 (B, H, W, 3), B up to `most`; sides from SMALLEST to `largest`, every order of magnitude alike."""
    height, width = (round(float(np.exp(rng.uniform(np.log(SMALLEST), np.log(side))))) for side in largest)
    pictures = []
    for _ in range(int(rng.integers(1, most + 1))):
        if rng.random() < 0.5:
            pictures.append(cut_out(photos[rng.integers(len(photos))], height, width, rng))
        else:
            pictures.append(synthetic(height, width, rng))
    return np.stack(pictures)


def draw_settings(rng: np.random.Generator) -> dict[str, Any]:
    """Arguments of EdgeMapGenerator: the usual blur half of the time, everything else random."""
    usual = rng.random() < 0.5
    low, high = sorted(rng.uniform(0, 255, 2) * rng.choice([0.2, 1.0, 4.0]))
    low_factor, high_factor = sorted(rng.uniform(0, 2, 2))
    return {
        "gaussian_kernel_size": 5 if usual else int(rng.choice([1, 3, 5, 7, 9, 15, 31])),
        "gaussian_sigma": 1.4 if usual else float(np.exp(rng.uniform(np.log(0.2), np.log(12)))),
        "threshold_mode": str(rng.choice(["fixed", "median"])),
        "low_threshold": float(low),
        "high_threshold": float(high),
        "median_low_factor": float(low_factor),
        "median_high_factor": float(high_factor),
        "morph_kernel_size": int(rng.choice([0, 0, 1, 3, 5, 9])),
    }


def with_opencv(picture: np.ndarray, settings: dict[str, Any], low: float, high: float) -> dict[str, np.ndarray]:
    """Each step's result for one uint8 (H, W, 3), by OpenCV alone; `low` and `high` are for step "canny"."""
    side = settings["gaussian_kernel_size"]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    blurred = cv2.GaussianBlur(grey, (side, side), settings["gaussian_sigma"])
    thresholds = [settings["low_threshold"], settings["high_threshold"]]
    if settings["threshold_mode"] == "median":
        factors = settings["median_low_factor"], settings["median_high_factor"]
        thresholds = [int(min(255.0, factor * float(np.median(blurred)))) for factor in factors]
    edges = cv2.Canny(blurred, *thresholds)
    if side := settings["morph_kernel_size"]:
        ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        edges = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, ellipse)
    return {"grey": grey, "blur": blurred, "canny": cv2.Canny(grey, low, high) // 255, "map": edges // 255}


def with_torch(
    images: torch.Tensor, settings: dict[str, Any], low: torch.Tensor, high: torch.Tensor
) -> dict[str, np.ndarray]:
    """Each step's results for uint8 (B, 3, H, W), by PyTorch alone on its device; low and high (B, 1, 1)."""
    grey = canny.rgb_to_grey(images)
    blurred = canny.gaussian_blur(grey, (settings["gaussian_kernel_size"],) * 2, settings["gaussian_sigma"])
    generator = EdgeMapGenerator(**settings, backend="torch")
    maps = generator.generate_from_tensor(images, normalize_range=(0, 255))[:, 0] / 255
    results = {"grey": grey, "blur": blurred, "canny": canny.edges(grey, low, high), "map": maps}
    return {step: result.cpu().numpy() for step, result in results.items()}


def compare(pictures: int, seed: int, device: str, largest: tuple[int, int] = LARGEST) -> dict[str, dict[str, int]]:
    """For each step the pixels compared, those above 0 and those that differ."""
    photos = photographs()
    counts = {step: {"pixels": 0, "above 0": 0, "differing": 0} for step in STEPS}
    with tqdm(total=pictures, unit="picture") as bar:
        while (done := int(bar.n)) < pictures:
            rng = numpy_rng("canny exactness", seed, done)
            batch = draw_batch(rng, photos, min(4, pictures - done), largest)
            settings, thresholds = draw_settings(rng), rng.uniform(0, 1200, (2, len(batch))) * rng.choice([0.1, 0.3, 1])
            low, high = (torch.from_numpy(values).view(-1, 1, 1).to(device) for values in thresholds)
            got = with_torch(torch.from_numpy(batch).permute(0, 3, 1, 2).to(device), settings, low, high)
            wanted = [with_opencv(picture, settings, *thresholds[:, i]) for i, picture in enumerate(batch)]
            for step, count in counts.items():
                want = np.stack([results[step] for results in wanted])
                differing = int((got[step] != want).sum())
                if differing:
                    bar.write(f"{step}: {differing} pixels differ from picture {bar.n} on, {batch.shape}, {settings}")
                count["pixels"] += want.size
                count["above 0"] += int(np.count_nonzero(want))
                count["differing"] += differing
            bar.update(len(batch))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    counts = compare(args.pictures, args.seed, args.device)
    print(f"{args.pictures} pictures, PyTorch {torch.__version__} on {args.device}, OpenCV {cv2.__version__}")
    print(f"{'step':8}{'pixels':>14}{'above 0':>14}{'differing':>14}")
    for step, count in counts.items():
        print(f"{step:8}{count['pixels']:14,}{count['above 0']:14,}{count['differing']:14,}")
    return int(any(count["differing"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
