"""Pictures per second that the loader gives, by number of workers, and what a picture's CPU time goes to.

    python benchmarks/loader.py [--workers 0 1 2] [--pictures 96]

Photographs of 2040 x 1356 pixels, PNG and JPEG by turns, cropped to 512 by the 512 config's data set. The file cache of
the kernel is warm: what is measured is decoding, cropping, and drawing kernels.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from basicsr.utils.img_util import read_rgb
from benchmarks.case import Case
from benchmarks.networks import WORK
from benchmarks.rows import dataset_of
from benchmarks.tables import markdown

BATCH = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--work", type=Path, default=WORK, help="pictures (default: %(default)s)")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # as workers have
    where = {"size": args.size, "pixels": {"full": 512, "tiny": 32}[args.size], "work": str(args.work)}
    case = Case("loader", "ours", "fp32", batch=1, device="cpu", seconds=0, **where)
    dataset = dataset_of(case)
    indices = [index % len(dataset) for index in range(args.pictures)]
    rows = []
    for workers in args.workers:
        # The first batch stands for the workers' start.
        batches = iter(DataLoader(Subset[Any](dataset, [0] * BATCH + indices), BATCH, num_workers=workers))
        next(batches)
        begun = time.perf_counter()
        done = sum(len(batch["gt"]) for batch in batches)
        rows.append([str(workers), f"{done / (time.perf_counter() - begun):.1f}"])
    print(markdown(["workers", "pictures a second"], rows))
    begun = time.process_time()
    for index in range(len(dataset)):
        dataset[index]
    whole = time.process_time() - begun
    begun = time.process_time()
    for path in dataset.paths:
        read_rgb(path)
    decoding = time.process_time() - begun
    count = len(dataset)
    print(f"\nCPU seconds a picture: {whole / count:.4f}, of them {decoding / count:.4f} to read and decode the file")
    return 0


if __name__ == "__main__":
    sys.exit(main())
