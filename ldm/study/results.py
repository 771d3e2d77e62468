"""What runs leave behind, read from files alone: one for each arm, seed and set of pictures. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basicsr.utils.errors import UserError
from basicsr.utils.files import write_whole
from ldm.study.plan import Arm, Study

STEPS, TIME = "steps", "time"  # after the same steps, and after the same time
STOPS = {STEPS: "after the same steps", TIME: "after the same time"}


@dataclass(frozen=True)
class Metric:
    """How a metric of a study is shown."""

    label: str
    decimals: int
    higher_is_better: bool | None  # None where neither is


METRICS = {
    "edge_f1": Metric("edge F1", 4, True),
    "edge_psnr": Metric("edge PSNR, dB", 3, True),
    "psnr_y": Metric("PSNR, dB", 3, True),
    "ssim_y": Metric("SSIM", 4, True),
    "false_edges": Metric("false edges, share", 4, False),
    "gradient_error": Metric("gradient error, /255", 3, False),
    "gradient_strength": Metric("gradient strength, of the truth's", 3, None),
    "lpips": Metric("LPIPS", 4, False),
}


def metrics_of(study: Study) -> dict[str, Metric]:
    """Those that are measured in a study, by name."""
    return {name: metric for name, metric in METRICS.items() if name != "lpips" or study.lpips}


@dataclass(frozen=True)
class Evaluation:
    """Of one run at one stop: means over all frames."""

    steps: int
    means: Mapping[str, float]


@dataclass(frozen=True)
class RunResult:
    """One arm with one seed."""

    arm: str
    seed: int
    stops: Mapping[str, Evaluation]
    losses: tuple[tuple[int, float], ...]  # step and mean main loss around it
    machine: str


def result_file(out: Path, part: str, arm: str, seed: int) -> Path:
    """Where a run's result on a set of pictures lies."""
    return out / part / f"{arm}_{seed}.json"


def write_result(out: Path, part: str, study: Study, arm: Arm, result: RunResult) -> None:
    """Write one, with the settings that it holds for."""
    stops = {stop: {"steps": each.steps, "means": dict(each.means)} for stop, each in result.stops.items()}
    content = {"arm": arm.name, "seed": result.seed, "settings": study.settings(arm), "stops": stops}
    content |= {"losses": result.losses, "machine": result.machine}
    write_whole(result_file(out, part, arm.name, result.seed), json.dumps(content) + "\n")


def read_result(out: Path, part: str, study: Study, arm: Arm, seed: int) -> RunResult | None:
    """A run's result; None where there is none yet, or what there is was damaged.

    Raises:
        UserError: it was made with other settings than the study's.
    """
    path = result_file(out, part, arm.name, seed)
    content = read_json(path)
    if not content.keys() >= {"settings", "stops", "losses", "machine"}:
        return None
    if content["settings"] != json.loads(json.dumps(study.settings(arm))):
        raise UserError(f"{path} was made with other settings than {study.file} has now: choose another --out")
    stops = {stop: Evaluation(each["steps"], each["means"]) for stop, each in content["stops"].items()}
    losses = tuple((int(step), float(value)) for step, value in content["losses"])
    return RunResult(arm.name, seed, stops, losses, content["machine"])


def read_results(out: Path, part: str, study: Study) -> list[RunResult]:
    """All that are there."""
    found = [read_result(out, part, study, arm, seed) for arm, seed in study.runs]
    return [each for each in found if each is not None]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content; empty where it is not there or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
