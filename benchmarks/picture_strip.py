"""The README's strip: crops of held-out photographs as input, bicubic, ours at 1, 4 and 20 steps, and truth.

    python benchmarks/picture_strip.py TRUE LQ [--also NAME=RESULTS] [--base YAML --ckpt FILE] [--output strip.jpg]

TRUE and LQ are folders of pictures with the same names, LQ's smaller by a whole factor. Of each photograph that square
is shown in which the truth has most edges: where a method has most to do, whatever it makes of it. The JPEG's quality
is the highest that keeps the file under --bytes.
"""

import argparse
import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from basicsr.data.picture_folders import by_name
from basicsr.metrics.edge_metrics import edge_map
from basicsr.utils.errors import UserError
from basicsr.utils.files import write_whole
from basicsr.utils.grid import labelled_grid
from basicsr.utils.img_util import read_rgb_01
from basicsr.utils.ranges import to_pm1
from ldm.console import OneLineParser, exit_status, some_path
from ldm.inference.pipeline import Upscaler
from ldm.inference.settings import DEMO_DEFAULTS

STEPS = (1, 4, 20)
ROWS = 6  # photographs
QUALITIES = range(95, 40, -5)


def read(file: Path) -> Tensor:
    """(3, H, W) in [0, 1]."""
    return torch.from_numpy(read_rgb_01(file)).permute(2, 0, 1)


def enlarged(image_01: Tensor, factor: int, how: Image.Resampling) -> Tensor:
    """A picture on sides `factor` times as long."""
    pixels = Image.fromarray((image_01 * 255).round().byte().permute(1, 2, 0).numpy())
    larger = pixels.resize((factor * pixels.width, factor * pixels.height), how)
    return torch.from_numpy(np.asarray(larger).copy()).permute(2, 0, 1).float() / 255


def busiest(gt_01: Tensor, side: int) -> tuple[int, int]:
    """Top and left of the square with most edge pixels."""
    sums = cv2.boxFilter(edge_map(gt_01).astype(np.float32), -1, (side, side), anchor=(0, 0), normalize=False)
    places = sums[: gt_01.shape[1] - side + 1, : gt_01.shape[2] - side + 1]
    top, left = np.unravel_index(int(np.argmax(places)), places.shape)
    return int(top), int(left)


def versions(
    name: str, folders: dict[str, dict[str, Path]], gt_01: Tensor, lq_01: Tensor, upscalers: dict[str, Upscaler]
) -> dict[str, Tensor]:
    """Every column's whole picture, of the true one's size."""
    factor = gt_01.shape[-1] // lq_01.shape[-1]
    found = {
        "input": enlarged(lq_01, factor, Image.Resampling.NEAREST),
        "bicubic": enlarged(lq_01, factor, Image.Resampling.BICUBIC).clamp(0, 1),
    }
    for label, upscaler in upscalers.items():
        result = Upscaler(upscaler.networks, replace(upscaler.settings, upscale=factor))(lq_01)
        if not isinstance(result, Tensor):
            raise TypeError(f"{label}: a tensor was expected")
        found[label] = result
    for label, files in folders.items():
        if name not in files:
            raise UserError(f"--also {label}: there is no picture called {name}")
        found[label] = read(files[name])
    return {**found, "truth": gt_01}


def strip(args: argparse.Namespace) -> int:
    """Make the strip."""
    truths, lqs = by_name("true", args.true), by_name("lq", args.lq)
    names = [name for name in truths if name in lqs][: args.rows]
    if not names:
        raise UserError(f"{args.true} and {args.lq} have no picture of the same name")
    also = (word.partition("=") for word in args.also)
    folders = {label: by_name("also", Path(folder)) for label, _, folder in also}
    settings = {f"ours, {steps} step{'s' * (steps > 1)}": replace(DEMO_DEFAULTS, steps=steps) for steps in STEPS}
    first = Upscaler.from_checkpoint(args.base, args.ckpt)
    upscalers = {label: Upscaler(first.networks, each) for label, each in settings.items()}
    rows: dict[str, list[Tensor]] = {}
    for name in tqdm(names, desc="photographs"):
        gt_01 = read(truths[name])
        side = min(args.side, *gt_01.shape[1:])
        top, left = busiest(gt_01, side)
        for label, image in versions(name, folders, gt_01, read(lqs[name]), upscalers).items():
            rows.setdefault(label, []).append(image[:, top : top + side, left : left + side])
    grid = labelled_grid({label: to_pm1(torch.stack(images)) for label, images in rows.items()})
    for quality in QUALITIES:
        buffer = io.BytesIO()
        grid.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= args.bytes:
            write_whole(args.output, buffer.getvalue())
            print(f"{args.output}: {grid.width} x {grid.height}, {buffer.tell() / 1e3:.0f} kB, quality {quality}")
            return 0
    raise UserError(f"{len(names)} rows do not fit into {args.bytes} bytes: give fewer --rows or a smaller --side")


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = OneLineParser("picture_strip.py", description=__doc__)
    add = parser.add_argument
    add("true", type=some_path, metavar="TRUE", help="true pictures, not trained on")
    add("lq", type=some_path, metavar="LQ", help="degraded ones, smaller by a whole factor")
    add("--also", action="append", default=[], metavar="NAME=FOLDER", help="one more column, restored elsewhere")
    add("--base", help="config (default: the demo's)")
    add("--ckpt", help="checkpoint (default: the demo's)")
    add("--rows", type=int, default=ROWS, help=f"photographs, by name (default: {ROWS})")
    add("--side", type=int, default=176, help="pixels of a crop (default: 176)")
    add("--bytes", type=int, default=1_000_000, help="at most (default: 1000000)")
    add("--output", type=some_path, default=Path("results/strip.jpg"))
    return exit_status(lambda: strip(parser.parse_args()), interrupted="stopped")


if __name__ == "__main__":
    raise SystemExit(main())
