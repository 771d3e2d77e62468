"""What the edge loss costs: FLOPs, seconds and peak memory of a training step without it, with it, and with windows.

    python benchmarks/edge_overhead.py [--device cpu|cuda] [--rounds 8] [--frame PIXELS] [--batch 1]
                                       [--seconds-for SIZE ...]

`full` is configs/stableSRNew/v2-finetune_text_T_512_edge_800.yaml, `small` the demo's networks; both have random
weights, which cost as much as trained ones. FLOPs are PyTorch's counter's: convolutions, matrix products and attention.
They are counted on tensors without data, so that they need neither a GPU nor memory: of the two encodings, the main
loss, and the decodings one by one. The gate's figure is the mean over timesteps.

Seconds are of whole steps, optimiser included, the arms in turns within each round. A gated step decodes or does not,
so beside the median of the rounds' ratios to the first arm stands the ratio of the sums over all rounds.
"""

import argparse
import logging
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from basicsr.data.pair_pool import Pair
from basicsr.utils.edge_utils import EdgeMapGenerator
from benchmarks.canny_speed import photograph_batch
from benchmarks.memory import peak_rss
from ldm.config import load_config
from ldm.models.build import build_model
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.edge_term import EdgeTerm
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_options import EdgeOptions
from ldm.modules.losses.edge_weight import EdgeWeight

CONFIGS = {"small": "configs/demo/edge_cpu.yaml", "full": "configs/stableSRNew/v2-finetune_text_T_512_edge_800.yaml"}
FRAMES = {"small": 256, "full": 512}  # pixels: 64 latent cells a side in both
CROP, LAST_STEP = 16, 400
ARMS = {
    "no edge loss": (EdgeWeight(0.0), EdgeOptions()),
    "full frame": (EdgeWeight(0.1), EdgeOptions()),
    f"crop {CROP}": (EdgeWeight(0.1), EdgeOptions(crop=CROP)),
    f"crop {CROP}, t <= {LAST_STEP}": (EdgeWeight(0.1), EdgeOptions(crop=CROP, max_timestep=LAST_STEP)),
}


def build(size: str, device: str) -> LatentDiffusionSRTextWT:
    """The model of a config with random weights, in training mode."""
    overrides = [
        "model.params.ckpt_path=null",
        "model.params.first_stage_config.params.ckpt_path=null",
        "model.params.edge_loss_weight=0",
        "model.params.edge_decoder_checkpoint=false",
    ]
    with torch.device(device):
        model: LatentDiffusionSRTextWT = build_model(load_config([CONFIGS[size]], overrides))
    return model


def set_arm(model: LatentDiffusionSRTextWT, weight: EdgeWeight, options: EdgeOptions) -> None:
    """Give the model an arm's edge loss, which holds no weights."""
    loss = EdgeLoss(EdgeMapGenerator(), options)
    model.edge_term = EdgeTerm(weight, loss, model.decode, timesteps=len(model.betas_of_process))


def flops_without_data(size: str, frame: int) -> dict[str, float]:
    """FLOPs of a step with one picture of frame x frame pixels, by arm."""
    model = build(size, "meta")
    cells = frame // model.first_stage_model.config.downsampling

    def latent(side: int) -> torch.Tensor:
        return torch.empty(1, 4, side, side, device="meta")

    def decode(side: int) -> float:
        """Of the prediction, forward and backward to the latent, and of the truth."""
        with FlopCounterMode(display=False) as counter:
            model.decode(latent(side).requires_grad_()).sum().backward()
            with torch.no_grad():
                model.decode(latent(side))
        return float(counter.get_total_flops())

    with FlopCounterMode(display=False) as counter:
        picture, t = torch.empty(1, 3, frame, frame, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
        for _ in ("truth", "degraded"):
            with torch.no_grad():
                model.first_stage_model.encode(picture)
        width = load_config([CONFIGS[size]]).get("model.params.unet_config.params.context_dim")
        context = torch.empty(1, 77, width, device="meta")
        model.p_losses(latent(cells), context, model.structcond_stage_model(latent(cells), t), t, t)[0].backward()
    plain = counter.get_total_flops()
    window = decode(min(CROP, cells))
    return dict(
        zip(
            ARMS,
            (
                plain,
                plain + decode(cells),
                plain + window,
                plain + window * (LAST_STEP + 1) / len(model.betas_of_process),
            ),
            strict=True,
        )
    )


class Bench:
    """Training steps of one model on one batch of photographs."""

    def __init__(self, size: str, device: str, frame: int, batch: int) -> None:
        torch.manual_seed(0)
        self.model = build(size, device)
        self.optimizer = self.model.configure_optimizers()
        gt_pm1 = photograph_batch(batch, frame, device)
        lq_pm1 = (gt_pm1 + 0.1 * torch.randn_like(gt_pm1)).clamp(-1, 1)
        self.pair = Pair(lq_pm1, gt_pm1, ("photograph",) * batch)
        self.model.context(1)  # the text is encoded once, not at every step
        self.synchronize: Callable[[], None] = torch.cuda.synchronize if gt_pm1.is_cuda else lambda: None

    def step(self, arm: str, index: int) -> float:
        """Seconds of one step; the index decides timesteps, noise and windows."""
        set_arm(self.model, *ARMS[arm])
        self.synchronize()
        start = time.perf_counter()
        loss = self.model.training_step(self.pair, index)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.synchronize()
        return time.perf_counter() - start


def peak_on_cpu(size: str, arm: str, frame: int, batch: int) -> float:
    """GB of a fresh process that takes two steps which decode."""
    warnings.simplefilter("ignore")
    logging.getLogger("ldm").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    bench = Bench(size, "cpu", frame, batch)
    # Whatever the gate: memory must be there for the step that passes it.
    bench.model.original_timesteps.clamp_(max=LAST_STEP)
    for index in range(2):
        bench.step(arm, index)
    return peak_rss() / 1e9


def peak_memory(bench: Bench, size: str, frame: int, batch: int) -> dict[str, float]:
    """GB by arm: of the GPU what was allocated at once, of the CPU what a process of that arm alone held."""
    peaks = {}
    for arm in tqdm(ARMS, desc="memory"):
        if bench.pair.gt_pm1.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            for index in range(8):
                bench.step(arm, index)
            peaks[arm] = torch.cuda.max_memory_allocated() / 1e9
        else:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks[arm] = pool.apply(peak_on_cpu, (size, arm, frame, batch))
    return peaks


def compare(size: str, device: str, rounds: int, frame: int, batch: int) -> None:
    """Print the measured table of one size."""
    bench = Bench(size, device, frame, batch)
    for arm in ARMS:
        bench.step(arm, 0)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for index in tqdm(range(1, rounds + 1), desc=f"{size}: rounds"):
        for arm in ARMS:
            seconds[arm].append(bench.step(arm, index))
    peaks = peak_memory(bench, size, frame, batch)
    plain = next(iter(ARMS))
    print(f"\n{size}, {frame} pixels, batch {batch}, {device}, {rounds} rounds")
    print(f"{'':20}{'s/step':>9}{'median ratio':>14}{'lowest..highest':>18}{'sum ratio':>11}{'peak GB':>9}")
    for arm in ARMS:
        ratios = sorted(mine / base for mine, base in zip(seconds[arm], seconds[plain], strict=True))
        spread = f"{ratios[0]:.2f}..{ratios[-1]:.2f}"
        total = sum(seconds[arm]) / sum(seconds[plain])
        print(
            f"{arm:20}{statistics.median(seconds[arm]):9.3f}{statistics.median(ratios):14.2f}{spread:>18}"
            f"{total:11.2f}{peaks[arm]:9.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--frame", type=int, help="pixels; default: 256 for small, 512 for full")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds-for", nargs="*", choices=tuple(CONFIGS), help="default: small; with CUDA, full too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*self.log.*")
    logging.getLogger("ldm").setLevel(logging.ERROR)
    frames = {size: args.frame or frame for size, frame in FRAMES.items()}
    for size, frame in frames.items():
        flops = flops_without_data(size, frame)
        print(f"\n{size}, {frame} pixels, batch 1: TFLOP per step")
        for arm, count in flops.items():
            print(f"{arm:20}{count / 1e12:9.3f}{count / next(iter(flops.values())) - 1:+9.1%}")
    default = list(CONFIGS) if args.device.startswith("cuda") else ["small"]
    for size in default if args.seconds_for is None else args.seconds_for:
        compare(size, args.device, args.rounds, frames[size], args.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
