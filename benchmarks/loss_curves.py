"""How the demo learns in fp32, in bf16, and from a pool of latents: the same loss at equal steps and at equal time.

    python scripts/demo_photos.py
    python benchmarks/loss_curves.py [--steps 200] [--every 20] [--work FOLDER] [--json FILE]

Each arm is a run of main.py with a fresh process, one after the other; its metrics.csv is read back. All train the
U-Net on batches of the config's size: with k draws a pair, data.params.batch_size is divided by k. The validation loss
is of one batch of photographs with fixed timesteps and noise, in fp32 for all. The first arm, fp32, takes `--steps`
steps; the others go on until they have taken as many steps and as much time. Seconds are those of training alone:
start-up and validation are left out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from basicsr.metrics.psnr_ssim import psnr
from basicsr.utils.files import write_whole
from basicsr.utils.img_util import read_rgb_01
from basicsr.utils.rng import torch_rng
from benchmarks.machine import machine_of
from benchmarks.networks import ROOT
from benchmarks.tables import losses_table
from ldm.training.loggers import read_metrics

LONGEST = 10  # times the first arm's steps: where an arm ends at the latest
DRAWS = 8  # of timesteps and noise, for each picture of the validation batch
CROP = 64  # pixels of the small pictures that are upscaled
ARMS: dict[str, tuple[str, int]] = {  # precision, draws from a pool of latents or 0
    "fp32": ("32-true", 0),
    "bf16": ("bf16-mixed", 0),
    "latents, k = 1": ("32-true", 1),
    "latents, k = 2": ("32-true", 2),
    "latents, k = 4": ("32-true", 4),
}


class Clock(Callback):
    """Logs seconds of training and, every few steps, the validation loss; ends the run when both limits are passed.

    Args:
        steps, seconds: both must be reached.
        every: steps from one validation to the next.
        batch: samples of the validation batch.
    """

    def __init__(self, steps: int, seconds: float, every: int, batch: int) -> None:
        self.steps, self.seconds, self.every, self.batch = steps, seconds, every, batch
        self._begun = self._cpu_begun = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 0:
            self._begun, self._cpu_begun = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        spent, cpu = time.perf_counter() - self._begun, time.process_time() - self._cpu_begun
        pl_module.log_dict({"curve/seconds": spent, "curve/cpu": cpu})
        if trainer.global_step % self.every == 0:
            pl_module.log("curve/loss", self._loss(trainer, pl_module))
        self._begun, self._cpu_begun = time.perf_counter() - spent, time.process_time() - cpu
        trainer.should_stop = trainer.global_step >= self.steps and spent >= self.seconds

    @torch.no_grad()
    def _loss(self, trainer: Any, model: Any) -> float:
        data = trainer.datamodule
        own, data.batch_size = data.batch_size, self.batch
        pair = data.example_pair(model.device)
        data.batch_size = own
        model.eval()
        draws = [model._step(pair, torch_rng(model.device, "loss curve", draw))[0] for draw in range(DRAWS)]
        model.train()
        return float(torch.stack(draws).mean())


def run_arm(args: argparse.Namespace, name: str, seconds: float) -> Path:
    """Train an arm; returns its folder."""
    precision, draws = ARMS[name]
    words = [f"lightning.trainer.{word}" for word in ("log_every_n_steps=1", "limit_val_batches=0")]
    clock = {"steps": args.steps, "seconds": seconds, "every": args.every, "batch": args.batch}
    words += [
        f"lightning.callbacks={{clock: {{target: benchmarks.loss_curves.Clock, params: {json.dumps(clock)}}}}}",
        f"lightning.modelcheckpoint.params={{every_n_train_steps: {args.steps}, save_top_k: -1}}",
        f"data.params.batch_size={args.batch // max(draws, 1)}",
        *([f"model.params.draws_per_pair={draws}", "model.params.pool=latents"] if draws else ()),
    ]
    label = name.replace(" ", "").replace(",", "_").replace("=", "")
    command = ["main.py", "--base", args.config, "-n", label, "-l", str(args.work), "--logger", "csv", "--trust_config"]
    limit = args.steps if not seconds else LONGEST * args.steps
    run_python(*command, "--max_steps", str(limit), "--precision", precision, *words)
    found: list[Path] = list(args.work.glob(f"*_{label}"))
    return max(found)


def run_python(*words: str) -> None:
    """A command of this project in a process of its own, whose last words are told where it fails."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(words[:5])} …: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")


def curve_of(run: Path) -> dict[str, Any]:
    """Of each step the training loss and the time until then; validation losses by step."""
    rows = [row for row in read_metrics(run / "metrics.csv") if "curve/seconds" in row]
    validated = {step: row["curve/loss"] for step, row in enumerate(rows, 1) if "curve/loss" in row}
    return {
        "train": [row["train/loss"] for row in rows],
        "seconds": [row["curve/seconds"] for row in rows],
        "cpu": [row["curve/cpu"] for row in rows],
        "validation": validated,
    }


def small_pictures(folder: Path) -> Path:
    """The middles of the demo's photographs, to upscale."""
    small = folder / "small"
    small.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "data/demo/validation").iterdir()):
        with Image.open(path) as photo:
            left, top = (photo.width // 2 - 2 * CROP, photo.height // 2 - 2 * CROP)
            middle = photo.convert("RGB").crop((left, top, left + 4 * CROP, top + 4 * CROP))
            middle.resize((CROP, CROP), Image.Resampling.BICUBIC).save(small / f"{path.stem}.png")
    return small


def pictures(args: argparse.Namespace, runs: dict[str, Path]) -> Iterator[tuple[str, list[float]]]:
    """PSNR of each picture to what the fp32 arm makes of it, in fp32: of its own weights in bf16, and of bf16's."""
    small = small_pictures(args.work)
    made: dict[str, Path] = {}
    kinds = {"fp32": ("fp32", "fp32"), "upscaled in bf16": ("fp32", "bf16"), "trained in bf16": ("bf16", "fp32")}
    for name, (arm, precision) in kinds.items():
        made[name] = args.work / "pictures" / name.replace(" ", "_")
        words = ("--ckpt", str(runs[arm] / "checkpoints" / f"step{args.steps:06d}.ckpt"), "--base", args.config)
        ends = ("--input", str(small), "--output", str(made[name]), "--overwrite", "--steps", "20")
        run_python("scripts/upscale.py", *words, *ends, "--precision", precision)
    for name in list(kinds)[1:]:
        results = sorted(made[name].glob("*.png"))
        yield name, [psnr(picture_01(path), picture_01(made["fp32"] / path.name)) for path in results]


def picture_01(path: Path) -> Tensor:
    """(3, H, W)."""
    return torch.from_numpy(read_rgb_01(path).transpose(2, 0, 1))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--config", default="configs/demo/edge_cpu.yaml")
    for name, default in {"steps": 200, "every": 20}.items():
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--batch", type=int, default=4, help="of the U-Net, in all arms: a multiple of 4")
    made.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="fp32 always comes first")
    made.add_argument("--work", type=Path, default=ROOT / "logs/loss_curves", help="runs and pictures (%(default)s)")
    made.add_argument("--json", type=Path, help="results to write")
    return made


def keep(content: dict[str, Any], file: Path | None) -> None:
    """Write what is known so far."""
    if file:
        write_whole(file, json.dumps(content, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parser().parse_args(argv)
    args.work = args.work.resolve()
    runs: dict[str, Path] = {}
    content: dict[str, Any] = {"machine": machine_of("cpu"), "steps": args.steps, "batch": args.batch, "arms": {}}
    for name in dict.fromkeys(["fp32", *args.arms]):
        seconds = content["arms"]["fp32"]["seconds"][-1] if runs else 0.0
        runs[name] = run_arm(args, name, seconds)
        content["arms"][name] = curve_of(runs[name])
        spent, steps = content["arms"][name]["seconds"][-1], len(content["arms"][name]["seconds"])
        print(f"{name}: {steps} steps in {spent:.1f} s", file=sys.stderr, flush=True)
    keep(content, args.json)  # for the pictures take minutes
    if "bf16" in runs:
        content["psnr"] = dict(pictures(args, runs))
        keep(content, args.json)
    print(losses_table(json.loads(json.dumps(content))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
