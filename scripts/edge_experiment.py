"""Does the edge loss pay? Train the demo's upscaler on with and without it, over several seeds, and compare edges.

    python scripts/demo_photos.py && python scripts/edge_experiment.py [key.path=value ...]

The arms are the configs in configs/demo/edge_experiment/. Each is trained from the same weights and evaluated twice:
after --steps steps, and after as many as fit into the time that the plain arm takes for its. That number comes from
seconds per step measured in turns at the start (timing.json), so a busy machine does not favour an arm. Evaluated are
few-step samples of frames of the held-out photographs: F1 of Canny edges within one pixel, PSNR of the edge maps, PSNR.

Finished runs are kept in --out and not repeated: the same command goes on after an interruption. It ends with means and
95 % intervals (Student's t over seeds), also of the difference to the first arm with the same seed, and results.csv.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from basicsr.data.pair_pool import Pair
from basicsr.metrics.edge_metrics import edge_precision_recall_f1, edge_psnr
from basicsr.utils import checks
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import UserError
from basicsr.utils.files import write_whole
from basicsr.utils.rng import torch_rng
from ldm.config import Config, check_paths, load_config
from ldm.console import OneLineParser, exit_status, path_argument
from ldm.evaluation.report.statistics import student_half_width
from ldm.evaluation.report.summary import write_csv
from ldm.models import build
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.sampling import Sampling
from ldm.util import instantiate_from_config

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("none", "plain", "crop_gate", "gradient")
METRICS = {"f1": "edge F1", "edge_psnr": "edge PSNR, dB", "psnr": "PSNR, dB"}
EVALUATION = [
    "data.params.batch_size=5",
    "degradation.gt_size=128",
    "data.params.validation.params.crop_size=128",
    "data.params.validation.params.gt_size=128",
]


@dataclass(frozen=True)
class ArmResult:
    """One evaluation: means over the frames."""

    arm: str
    seed: int
    stop: str  # "steps" or "time"
    steps: int
    f1: float
    edge_psnr: float
    psnr: float


def arm_file(arm: str) -> Path:
    """An arm's config."""
    return ROOT / "configs/demo/edge_experiment" / f"{arm}.yaml"


def build_model(config: Config) -> LatentDiffusionSRTextWT:
    """A config's model, with its learning rate."""
    model: LatentDiffusionSRTextWT = build.build_model(config, learning_rate=config.get("model.base_learning_rate"))
    return model


def pair_of(config: Config, seed: int) -> Pair:
    """The first validation batch: frames and degradations are decided by the seed."""
    handed = {"sf": config.get("sf", 4), "use_usm": config.get("model.params.use_usm", False), "seed": seed}
    data = instantiate_from_config(config.values["data"], degradation=config.get("degradation"), **handed)
    data.setup()
    pair: Pair = data.example_pair(torch.device("cpu"))
    return pair


def measure_seconds(words: Sequence[str], rounds: int) -> dict[str, float]:
    """Mean seconds per training step by arm, in turns; every round has its own timesteps, the same for all arms."""
    configs = {arm: load_config([arm_file(arm)], words) for arm in ARMS}
    pair = pair_of(configs["none"], 0)
    models = {arm: build_model(config) for arm, config in configs.items()}
    optimizers = {arm: model.configure_optimizers() for arm, model in models.items()}
    seconds = dict.fromkeys(ARMS, 0.0)
    for index in tqdm(range(rounds + 1), desc="seconds per step"):
        for arm, model in models.items():
            start = time.perf_counter()
            loss = model.training_step(pair, index)
            optimizers[arm].zero_grad()
            loss.backward()
            optimizers[arm].step()
            seconds[arm] += (time.perf_counter() - start) * (index > 0)  # the first round warms up
    return {arm: total / rounds for arm, total in seconds.items()}


def edges_of(images_pm1: Tensor) -> np.ndarray:
    """RGB images (B, 3, H, W) in [-1, 1] -> where they have edges, bool (B, H, W)."""
    return EdgeMapGenerator().edges_01(images_pm1)[:, 0].bool().numpy()


@torch.no_grad()
def evaluate(config: Config, sampling_steps: int) -> dict[str, float]:
    """The metrics of few-step samples, as means over two frames of each photograph."""
    model = build_model(config).eval()
    rows = []
    for seed in (1, 2):
        pair, rng = pair_of(config, seed), torch_rng("cpu", "edge experiment", seed)
        latents, noise = model.encode(pair, rng), model.noise(rng)
        guidance = Guidance(model.context(len(pair)), z_struct=latents.z_struct)
        z = model.sample(latents.z_lq, guidance, Sampling(sampling_steps, "ddim"), noise=noise)
        sample_pm1 = model.decode(z).clamp(-1, 1)
        for pred, true, mine, gt in zip(
            edges_of(sample_pm1), edges_of(pair.gt_pm1), sample_pm1, pair.gt_pm1, strict=True
        ):
            psnr = 10 * float((4 / (mine - gt).square().mean()).log10())  # peak to peak is 2
            rows.append((edge_precision_recall_f1(pred, true, tolerance=1).f1, edge_psnr(pred, true), psnr))
    return dict(zip(METRICS, np.mean(rows, axis=0).tolist(), strict=True))


def train_and_evaluate(args: argparse.Namespace, arm: str, seed: int, stops: dict[str, int]) -> list[ArmResult]:
    """Train an arm once, as far as the later stop, and evaluate its checkpoints at both."""
    first, last = min(stops.values()), max(stops.values())
    with tempfile.TemporaryDirectory(prefix="unfinished_", dir=args.out) as folder:
        command = [sys.executable, str(ROOT / "main.py"), "--base", str(arm_file(arm)), *args.words,
                   "--seed", str(seed), "--max_steps", str(last),
                   "--logger", "csv", "--logdir", folder, "lightning.callbacks=null",
                   f"lightning.modelcheckpoint.params.every_n_train_steps={first}",
                   "lightning.modelcheckpoint.params.save_top_k=-1"]  # fmt: skip
        log_file = args.out / f"{arm}_{seed}.log"
        with log_file.open("w") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise UserError(f"training of arm {arm} with seed {seed} failed: see {log_file}")
        results = []
        for stop, steps in stops.items():
            name = "last" if steps == last else f"step{steps:06d}"
            (file,) = Path(folder).glob(f"*/checkpoints/{name}.ckpt")
            trained = [*args.words, *EVALUATION, f"model.params.ckpt_path={file}", "model.params.ignore_keys=[]"]
            metrics = evaluate(load_config([arm_file(arm)], trained), args.sampling_steps)
            results.append(ArmResult(arm, seed, stop, steps, **metrics))
        return results


def run(args: argparse.Namespace) -> list[ArmResult]:
    """All runs that are not there yet; returns the results of all."""
    timing = cached(args.out / "timing.json", lambda: measure_seconds(args.words, args.timing_rounds))
    budget = timing["plain"] * args.steps
    results: list[ArmResult] = []
    bar = tqdm([(seed, arm) for seed in range(1, args.seeds + 1) for arm in ARMS], desc="runs")
    for seed, arm in bar:
        bar.set_postfix_str(f"{arm}, seed {seed}")
        stops = {"steps": args.steps, "time": max(1, round(budget / timing[arm]))}

        def make(arm: str = arm, seed: int = seed, stops: dict[str, int] = stops) -> list[dict[str, Any]]:
            return [asdict(result) for result in train_and_evaluate(args, arm, seed, stops)]

        results += [ArmResult(**row) for row in cached(args.out / f"{arm}_{seed}.json", make)]
    return results


def cached(file: Path, make: Callable[[], Any]) -> Any:
    """What is in a JSON file, made and written as a whole where it is not there or damaged."""
    if file.exists():
        try:
            if kept := json.loads(file.read_bytes()):
                return kept
        except ValueError:
            kept = None
        print(f"{file} is damaged: what it held is made again", file=sys.stderr)
    write_whole(file, json.dumps(make(), indent=1))
    return json.loads(file.read_text())


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:8.4f} (one seed)"
    return f"{statistics.mean(values):8.4f} ± {student_half_width(values):.4f}"


def table(results: Sequence[ArmResult], start: dict[str, float], timing: dict[str, float]) -> str:
    """Means and intervals by arm, at the same steps and at the same time, and differences to the first arm."""
    lines = ["starting weights: " + ", ".join(f"{METRICS[key]} {value:.4f}" for key, value in start.items())]
    for stop, title in (("steps", "after the same steps"), ("time", "after the same time")):
        for metric, name in METRICS.items():
            lines += [
                "",
                f"{name}, {title}",
                f"{'arm':12}{'steps':>7}{'s/step':>8}{'mean':>20}{'minus ' + ARMS[0]:>20}",
            ]
            values = {
                arm: {r.seed: getattr(r, metric) for r in results if (r.arm, r.stop) == (arm, stop)} for arm in ARMS
            }
            for arm, by_seed in values.items():
                steps = next(r.steps for r in results if (r.arm, r.stop) == (arm, stop))
                off = [value - values[ARMS[0]][seed] for seed, value in by_seed.items()]
                lines.append(
                    f"{arm:12}{steps:7}{timing[arm]:8.2f}{interval(list(by_seed.values())):>20}"
                    f"{'' if arm == ARMS[0] else interval(off):>20}"
                )
    return "\n".join(lines)


def check_same_settings(args: argparse.Namespace) -> None:
    """Raise UserError where --out holds runs of other settings."""
    settings = {"steps": args.steps, "sampling_steps": args.sampling_steps, "words": args.words}
    if cached(args.out / "settings.json", lambda: settings) != settings:
        raise UserError(f"{args.out} holds runs of other settings (settings.json): choose another --out")


def main() -> int:
    """Run the command line; returns the exit status: 0, 2 after bad input, 130 after Ctrl-C."""
    parser = OneLineParser("edge_experiment.py", description=__doc__)
    parser.add_argument("--out", type=path_argument, default=Path("logs/edge_experiment"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sampling-steps", type=int, default=4, help="DDIM steps of a sample")
    parser.add_argument("--timing-rounds", type=int, default=8)
    parser.add_argument("words", nargs="*", help="overrides for all arms: model.params.ckpt_path=null starts anew")
    warnings.filterwarnings("ignore", message=".*self.log.*")
    logging.getLogger("ldm").setLevel(logging.ERROR)
    return exit_status(
        lambda: experiment(parser.parse_args()), interrupted="stopped; the same command goes on from here"
    )


def experiment(args: argparse.Namespace) -> int:
    """Train and sample every arm, and write the table."""
    checks.whole_number("seeds", args.seeds, 1)
    check_paths(load_config([arm_file("none")], args.words))
    args.out.mkdir(parents=True, exist_ok=True)
    check_same_settings(args)
    results = run(args)
    begin = load_config([arm_file("none")], [*args.words, *EVALUATION])
    start = cached(args.out / "start.json", lambda: evaluate(begin, args.sampling_steps))
    write_csv(args.out / "results.csv", [asdict(result) for result in results])
    text = table(results, start, json.loads((args.out / "timing.json").read_text()))
    write_whole(args.out / "table.txt", f"{text}\n")
    print(f"{text}\n\nin {args.out}: results.csv, table.txt, and a log for each run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
