"""One run of a study: train an arm with a seed, and have judged what came of it."""

import contextlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from basicsr.data.pair_pool import Pair
from basicsr.utils.errors import UserError
from ldm.config import Config, load_config
from ldm.models.build import build_model
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.study.judging import evaluate, pair_of, pictures_words
from ldm.study.plan import CONFIRM, VALIDATION, Arm, Study
from ldm.study.results import STEPS, TIME, Evaluation, RunResult, write_result
from ldm.training.cli import main as train
from ldm.training.loggers import read_metrics

POINTS = 20  # of a loss curve
MAIN_LOSS = ("train/loss_simple", "train/rec_loss")  # of the first stage, and of the second


def run_arm(study: Study, out: Path, arm: Arm, seed: int, seconds: Mapping[str, float]) -> None:
    """Train an arm once, as far as its later stop, evaluate it at both, and write the result of each set of pictures.

    Raises:
        UserError: the training failed; the message names its log.
    """
    stops = stops_of(study, arm, seconds)
    first, last = min(stops.values()), max(stops.values())
    log_file = out / "logs" / f"{arm.name}_{seed}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished_", dir=out) as folder:
        words = [*pictures_words(study), *study.words, *arm.words]
        command = ["--base", str(study.config), *words, "--seed", str(seed), "--max_steps", str(last),
                   "--logger", "csv", "--logdir", folder, "--no-test", "lightning.callbacks=null",
                   f"lightning.modelcheckpoint.params.every_n_train_steps={first}",
                   "lightning.modelcheckpoint.params.save_top_k=-1"]  # fmt: skip
        with log_file.open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            status = train(command)
        if status:
            raise UserError(f"training of arm {arm.name} with seed {seed} failed: see {log_file}")
        (run,) = Path(folder).iterdir()
        losses = curve(read_metrics(run / "metrics.csv"))
        files = {steps: run / f"checkpoints/step{steps:06d}.ckpt" for steps in (first, last)}
        files[last] = run / "checkpoints/last.ckpt"
        for part in parts(study):
            judged = {steps: evaluate(study, part, [*arm.words, f"model.params.ckpt_path={files[steps]}"])
                      for steps in {*stops.values()}}  # fmt: skip
            evaluations = {stop: Evaluation(steps, judged[steps]) for stop, steps in stops.items()}
            result = RunResult(arm.name, seed, evaluations, losses, platform.processor() or platform.machine())
            write_result(out, part, study, arm, result)


def parts(study: Study) -> list[str]:
    """The sets of pictures that results are judged on."""
    return [part for part in (VALIDATION, CONFIRM) if study.pictures.get(part)]


def stops_of(study: Study, arm: Arm, seconds: Mapping[str, float]) -> dict[str, int]:
    """After how many steps an arm is judged: after the study's, and after what fits into the budget."""
    stops = {STEPS: study.steps}
    if study.budget_of is not None:
        stops[TIME] = max(1, round(seconds[study.budget_of] * study.steps / seconds[arm.name]))
    return stops


def curve(rows: Sequence[Mapping[str, float]]) -> tuple[tuple[int, float], ...]:
    """The main loss in at most `POINTS` means of neighbouring rows, at their middle steps."""
    points = [(row["step"], row[name]) for row in rows for name in MAIN_LOSS if name in row]
    groups = np.array_split(np.array(points), max(1, min(POINTS, len(points)))) if points else []
    return tuple((int(step), float(loss)) for step, loss in (group.mean(axis=0) for group in groups))


def measure_seconds(study: Study, arms: Sequence[Arm], rounds: int) -> dict[str, float]:
    """Seconds per training step by arm, medians, measured in turns, so that a busy machine favours none.

    Every round has its own timesteps, the same for all arms.
    """
    words = [*pictures_words(study), *study.words]
    configs = {arm.name: load_config([study.config], [*words, *arm.words]) for arm in arms}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pair = pair_of(next(iter(configs.values())), 0, device)
    steps = {name: _stepper(config, pair, device) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in tqdm(range(rounds + 1), desc="seconds per step"):
        for name, step in steps.items():
            seconds[name].append(step(index))
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}  # the first round warms up


def _stepper(config: Config, pair: Pair, device: torch.device) -> Callable[[int], float]:
    """Takes a training step and returns its seconds. Raises UserError for the second stage."""
    model = build_model(config, learning_rate=config.get("model.base_learning_rate")).to(device)
    if not isinstance(model, LatentDiffusionSRTextWT):
        raise UserError("budget_of: steps of the second stage are not timed: set it to null")
    optimizer = model.configure_optimizers()

    def step(index: int) -> float:
        start = time.perf_counter()
        loss = model.training_step(pair, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step
