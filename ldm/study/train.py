"""One run of a study: train an arm with a seed, and judge what came of it."""

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
from basicsr.metrics.edge_metrics import edge_map, edge_precision_recall_f1, gradient_magnitude
from basicsr.metrics.measure import measure
from basicsr.metrics.psnr_ssim import luma
from basicsr.utils.errors import UserError
from basicsr.utils.ranges import from_pm1
from basicsr.utils.rng import torch_rng
from ldm.config import Config, load_config
from ldm.models.build import build_model
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.sampling import Sampling
from ldm.study.plan import CONFIRM, VALIDATION, Arm, Study
from ldm.study.results import STEPS, TIME, Evaluation, RunResult, write_result
from ldm.training.cli import main as train
from ldm.training.loggers import read_metrics
from ldm.util import instantiate_from_config

FRAMES = (1, 2)  # seeds of crop and degradation: so many frames of each photograph
SIDE = 128  # pixels of a frame
BORDER = 4  # pixels that are not measured
POINTS = 20  # of a loss curve


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
        losses = curve([row for row in read_metrics(run / "metrics.csv") if "train/loss_simple" in row])
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


def pictures_words(study: Study) -> list[str]:
    """Overrides that name the folders to train and to validate on."""
    words = [f"data.params.validation.params.gt_path={study.pictures[VALIDATION]}"]
    folder = study.pictures.get("train")
    return [*words, f"data.params.train.params.gt_path={folder}"] if folder else words


def curve(rows: Sequence[Mapping[str, float]]) -> tuple[tuple[int, float], ...]:
    """The main loss in at most `POINTS` means of neighbouring rows, at their middle steps."""
    groups = np.array_split(np.arange(len(rows)), max(1, min(POINTS, len(rows)))) if rows else []
    return tuple(
        (int(np.mean([rows[i]["step"] for i in group])), float(np.mean([rows[i]["train/loss_simple"] for i in group])))
        for group in groups
    )


@torch.no_grad()
def evaluate(study: Study, part: str, words: Sequence[str]) -> dict[str, float]:
    """The metrics of few-step samples of frames of each photograph, as means."""
    config = load_config([study.config], [*study.words, *words, *frame_words(study.pictures[part], SIDE)])
    model = build_model(config).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    rows: list[dict[str, float]] = []
    edges: list[tuple[np.ndarray, np.ndarray]] = []
    for seed in FRAMES:
        pair, rng = pair_of(config, seed, device), torch_rng(device, "edge experiment", seed)
        samples_01 = restored_01(model, pair, Sampling(study.sampling_steps, study.sampler), rng).cpu()
        for mine, gt in zip(samples_01, from_pm1(pair.gt_pm1).cpu(), strict=True):
            rows.append(metrics(mine, gt))
            edges.append((edge_map(mine), edge_map(gt)))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | pooled(edges)


@torch.no_grad()
def restored_01(model: LatentDiffusionSRTextWT, pair: Pair, sampling: Sampling, rng: torch.Generator) -> torch.Tensor:
    """What a model makes of a batch's LQ pictures: (B, 3, H, W) in [0, 1]."""
    latents, noise = model.encode(pair, rng), model.noise(rng)
    guidance = Guidance(model.context(len(pair)), z_struct=latents.z_struct)
    return from_pm1(model.decode(model.sample(latents.z_lq, guidance, sampling, noise=noise)).clamp(-1, 1))


def pooled(edges: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Of all frames' edge pixels, predicted and true, together: nearly empty frames would swing a mean over frames."""
    gap = ((0, 2), (0, 0))  # so that no edge meets one of the next frame
    mine, true = (np.concatenate([np.pad(each[i], gap) for each in edges]) for i in (0, 1))
    overlap = edge_precision_recall_f1(mine, true)
    return {"edge_f1": overlap.f1, "false_edges": 1 - overlap.precision}


def metrics(sr_01: torch.Tensor, gt_01: torch.Tensor) -> dict[str, float]:
    """Those of `METRICS` that are means over frames, of a restored frame (3, H, W) in [0, 1]."""
    found = measure(sr_01, gt_01, BORDER)
    mine, true = (gradient_magnitude(luma(image)).mean() for image in (sr_01, gt_01))
    own = {
        "gradient_error": 255 * 10 ** (-found["gradient_psnr"] / 20),
        "gradient_strength": float(mine / true),
    }
    return {name: found[name] for name in ("edge_psnr", "psnr_y", "ssim_y")} | own


def pair_of(config: Config, seed: int, device: torch.device) -> Pair:
    """The first validation batch: frames and degradations are decided by the seed."""
    handed = {"sf": config.get("sf", 4), "use_usm": config.get("model.params.use_usm", False), "seed": seed}
    data = instantiate_from_config(config.values["data"], degradation=config.get("degradation"), **handed)
    data.setup()
    pair: Pair = data.example_pair(device)
    return pair


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
    """Takes a training step and returns its seconds."""
    model = build_model(config, learning_rate=config.get("model.base_learning_rate")).to(device)
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


def frame_words(folder: str, side: int) -> list[str]:
    """Overrides for a validation batch of one frame of `side` pixels out of each picture of a folder."""
    pictures = sum(1 for file in Path(folder).iterdir() if file.is_file())
    words = [f"data.params.batch_size={pictures}", f"degradation.gt_size={side}"]
    own = [f"gt_path={folder}", f"crop_size={side}", f"gt_size={side}"]
    return [*words, *(f"data.params.validation.params.{word}" for word in own)]
