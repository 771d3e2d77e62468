"""Pictures per second of both Canny backends on tensors of one device, in turns within one run.

    python benchmarks/canny_speed.py [--batch 16] [--size 512] [--seconds 10] [--device cpu|cuda]

Both start from float32 RGB in [-1, 1] on the device and end with the weight map there, as the edge loss needs it: with
CUDA the OpenCV backend's time therefore holds the way to the CPU and back. The maps are compared too. Exit status 1
where they differ.
"""

import argparse
import statistics
import sys
import time

import cv2
import torch
from tqdm import tqdm

from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.rng import numpy_rng
from benchmarks.canny_exactness import cut_out, photographs

BACKENDS = ("opencv", "torch")


def photograph_batch(batch: int, size: int, device: str) -> torch.Tensor:
    """float32 (B, 3, size, size) in [-1, 1], cut from scikit-image's photographs."""
    photos, rng = photographs(), numpy_rng("canny speed")
    cuts = [torch.from_numpy(cut_out(photos[i % len(photos)], size, size, rng).copy()) for i in range(batch)]
    return (torch.stack(cuts).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous().to(device)


def _wait_for(images: torch.Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()


def timed(generator: EdgeMapGenerator, images: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds that one batch takes, and its maps."""
    _wait_for(images)
    start = time.perf_counter()
    maps = generator.edges_01(images)
    _wait_for(images)
    return time.perf_counter() - start, maps


def measure(mode: str, images: torch.Tensor, seconds: float) -> tuple[dict[str, list[float]], int]:
    """Each backend's seconds per batch, in turns for `seconds` in all, and the pixels in which the maps differ."""
    generators = {name: EdgeMapGenerator(threshold_mode=mode, backend=name) for name in BACKENDS}
    maps = {name: timed(generator, images)[1] for name, generator in generators.items()}  # warm-up
    times: dict[str, list[float]] = {name: [] for name in BACKENDS}
    end = time.perf_counter() + seconds
    with tqdm(desc=mode, unit="round") as bar:
        while time.perf_counter() < end or bar.n < 3:
            for name in BACKENDS:
                times[name].append(timed(generators[name], images)[0])
            bar.update()
    return times, int((maps["opencv"] != maps["torch"]).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=10, help="for each threshold mode")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    images = photograph_batch(args.batch, args.size, args.device)
    name = torch.cuda.get_device_name(images.device) if images.is_cuda else "CPU"
    print(
        f"batch {args.batch} at {args.size} x {args.size} on {name}; threads: OpenCV {cv2.getNumThreads()}, "
        f"PyTorch {torch.get_num_threads()}; PyTorch {torch.__version__}, OpenCV {cv2.__version__}"
    )
    print(f"{'mode':8}" + "".join(f"{backend + ' pictures/s':>20}" for backend in BACKENDS) + f"{'torch / opencv':>28}")
    differing = 0
    for mode in ("fixed", "median"):
        times, different = measure(mode, images, args.seconds)
        differing += different
        speeds = [args.batch / statistics.median(times[backend]) for backend in BACKENDS]
        ratios = sorted(slow / fast for slow, fast in zip(times["opencv"], times["torch"], strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})"
        print(f"{mode:8}" + "".join(f"{speed:20.1f}" for speed in speeds) + f"{spread:>28}")
    print(f"pixels that differ: {differing}")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
