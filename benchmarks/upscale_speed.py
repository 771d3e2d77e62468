"""Upscaling against a straightforward implementation of the published loop: seconds and peak memory, same result.

    python benchmarks/upscale_speed.py [--steps 2] [--rounds 3] [--side 256] [--base YAML --ckpt FILE] [--device cpu]

The loop of StableSR's canvas scripts, written plainly: at every step the tile weights and the prompt's context are
computed again, and tiles go through the networks one at a time. Same weights, tiles and noise; a photograph of --side
pixels becomes four times as large. Encoding and decoding are the same in both but for one row: the published scripts
give the autoencoder the whole picture. All run in turns; other programs disturb CPU time less than the clock. Peak
memory is that of a process of its own each (resident on the CPU, allocated on a GPU). Exit status 1 where the results
differ by more than 1e-3.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import skimage.data
import torch
from torch import Tensor
from tqdm import tqdm

from basicsr.utils.rng import torch_rng
from benchmarks.memory import peak_rss
from ldm.inference.networks import Networks, demo_files
from ldm.inference.picture import Picture
from ldm.inference.pipeline import Upscaler
from ldm.inference.settings import DEMO_DEFAULTS
from ldm.inference.tiled_vae import TiledAutoencoder
from ldm.models.diffusion.process import Noisy, Process
from ldm.models.diffusion.sampling import noise_of_pictures
from ldm.models.diffusion.schedule import Schedule, respace, space_timesteps
from ldm.models.diffusion.tiling import tile_starts

VARIANTS = ("this project", "published loop", "published loop, whole-picture autoencoder")


def bell_weights(side: int) -> np.ndarray:
    """The published Gaussian weights of a tile, element by element."""
    x = [math.exp(-((i - (side - 1) / 2) ** 2) / side**2 / (2 * 0.01)) for i in range(side)]
    y = [math.exp(-((i - side / 2) ** 2) / side**2 / (2 * 0.01)) for i in range(side)]
    return np.outer(y, x)


def predict_canvas(networks: Networks, x: Tensor, z_lq: Tensor, t: Tensor, tile: int, overlap: int) -> Tensor:
    """The network's output for a canvas, with nothing kept from the step before."""
    model = networks.model
    weights = torch.from_numpy(bell_weights(tile)).float().to(x.device)
    context = model.cond_stage_model([""]).to(x.device)  # type: ignore[misc]  # its tower is kept
    summed, total = torch.zeros_like(x), torch.zeros_like(x)
    for top in tile_starts(x.shape[-2], tile, overlap):
        for left in tile_starts(x.shape[-1], tile, overlap):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            structure = model.structcond_stage_model(z_lq[place], t)
            summed[place] += weights * model.model.diffusion_model(x[place], t, context, structure)
            total[place] += weights
    return summed / total


def published(upscaler: Upscaler, picture: Picture, *, whole_autoencoder: bool) -> Tensor:
    """The published pipeline, (3, H, W) in [0, 1]."""
    networks, chosen = upscaler.networks, upscaler.settings
    model, device = networks.model, networks.device
    assert upscaler.tile is not None
    rng = torch_rng("cpu", "upscale", chosen.seed)
    noise = noise_of_pictures([rng], device)
    vae = TiledAutoencoder(
        model.first_stage_model,
        None,
        model.scale_factor,
        device,
        None if whole_autoencoder else upscaler.tile,
        upscaler.overlap,
    )
    lq_pm1 = upscaler.enlarged(picture).rgb_01[None] * 2 - 1
    z_lq = vae.encode(lq_pm1, rng).to(device)
    betas = model.betas_of_process
    kept = space_timesteps(len(betas), chosen.steps)
    whole, schedule = (Schedule.from_betas(b).to(device) for b in (betas, respace(betas, kept)))
    process = Process(schedule, torch.tensor(kept, device=device), model.parameterization)
    x = whole.q_sample(z_lq, t=torch.tensor([len(betas) - 1], device=device), noise=noise(z_lq.shape))
    for i in reversed(range(chosen.steps)):
        t = torch.tensor([kept[i]], device=device)
        output = predict_canvas(networks, x, z_lq, t, upscaler.tile, upscaler.overlap)
        n = Noisy(x_t=x, t=torch.tensor([i], device=device))
        x = schedule.posterior_mean(process.x0(output, n), x_t=x, t=n.t)
        if i > 0:
            x = x + torch.exp(0.5 * schedule.posterior_log_variance_clipped[i]) * noise(x.shape)
    return upscaler._finished(upscaler.enlarged(picture), vae.decode(x.cpu(), lq_pm1)).rgb_01


@torch.no_grad()
def run(variant: str, upscaler: Upscaler, picture: Picture) -> tuple[float, float, Tensor]:
    """Seconds by the clock, seconds of all CPU threads, and the result."""
    on_gpu = upscaler.networks.device.type == "cuda"
    synchronize: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None
    synchronize()
    start, start_cpu = time.perf_counter(), time.process_time()
    if variant == VARIANTS[0]:
        result = upscaler.upscale([picture])[0].rgb_01
    else:
        result = published(upscaler, picture, whole_autoencoder=variant == VARIANTS[2])
    synchronize()
    return time.perf_counter() - start, time.process_time() - start_cpu, result


def peak_memory(upscaler: Upscaler) -> float:
    """MB that this process has had at most so far: on the GPU where it works there."""
    if upscaler.networks.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return peak_rss() / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=256, help="of the picture, pixels")
    parser.add_argument("--base", default=demo_files()[0])
    parser.add_argument("--ckpt", default=demo_files()[1])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory_of", choices=VARIANTS, help="run this once and print its peak memory, in MB")
    args = parser.parse_args()
    settings = replace(DEMO_DEFAULTS, steps=args.steps)
    upscaler = Upscaler.from_checkpoint(args.base, args.ckpt, settings=settings, device=args.device)
    pixels = skimage.data.chelsea()[: args.side, 100 : 100 + args.side]
    picture = Picture(torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255)
    if args.memory_of:
        before = peak_memory(upscaler)
        run(args.memory_of, upscaler, picture)
        print(f"{before:.0f} {peak_memory(upscaler):.0f}")
        return 0
    return compare(args, upscaler, picture)


def compare(args: argparse.Namespace, upscaler: Upscaler, picture: Picture) -> int:
    """Measure all variants, print the table; 1 where the results differ."""
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    cpu_times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    results = {}
    for _ in tqdm(range(args.rounds), desc="rounds", leave=False):
        for variant in VARIANTS:
            seconds, cpu_seconds, results[variant] = run(variant, upscaler, picture)
            times[variant].append(seconds)
            cpu_times[variant].append(cpu_seconds)
    print(
        f"{args.side} -> {4 * args.side} pixels, {args.steps} steps, tiles of {upscaler.tile} latent cells, batch "
        f"{upscaler.batch}, {upscaler.networks.device}, {torch.get_num_threads()} threads"
    )
    print(f"{'':44}{'seconds, median (least)':>26}{'CPU seconds':>14}{'peak MB (loaded)':>20}")
    for variant in VARIANTS:
        words = [
            "--memory_of",
            variant,
            "--side",
            str(args.side),
            "--steps",
            "1",
            "--base",
            str(args.base),
            "--ckpt",
            str(args.ckpt),
            "--device",
            args.device,
        ]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
        before, peak = done.stdout.split()
        spread = f"{statistics.median(times[variant]):.2f} ({min(times[variant]):.2f})"
        print(f"{variant:44}{spread:>26}{statistics.median(cpu_times[variant]):14.2f}{f'{peak} ({before})':>20}")
    for name, taken in (("time", times), ("CPU time", cpu_times)):
        ratios = sorted(slow / fast for slow, fast in zip(taken[VARIANTS[1]], taken[VARIANTS[0]], strict=True))
        print(
            f"the published loop takes {statistics.median(ratios):.2f} times the {name} ({ratios[0]:.2f}.."
            f"{ratios[-1]:.2f})"
        )
    difference = float((results[VARIANTS[0]] - results[VARIANTS[1]]).abs().max())
    print(f"largest difference of the results: {difference:.1e} of [0, 1]")
    return int(difference > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
