"""A sitting: run what of a study is still missing, several runs at a time, and leave one file for each."""

import json
import logging
import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path

from tqdm import tqdm

from basicsr.utils.errors import UserError
from basicsr.utils.files import write_whole
from ldm.study.plan import VALIDATION, Arm, Study
from ldm.study.results import read_json, read_result

Run = tuple[Arm, int]


@dataclass(frozen=True)
class Sharing:
    """How runs are shared out.

    jobs: at a time. devices: of CUDA, one job each in turn; none means the CPU, or the first GPU. share: (k, n), this
    machine's part of all runs, where n machines work on one study.
    """

    jobs: int = 1
    devices: tuple[str, ...] = ()
    share: tuple[int, int] = (1, 1)

    def mine(self, runs: Sequence[Run]) -> list[Run]:
        """Every n-th run, from the k-th on."""
        k, n = self.share
        return list(runs[k - 1 :: n])


def missing_runs(study: Study, out: Path) -> list[Run]:
    """The runs whose result is not there yet.

    Raises:
        UserError: some were made with other settings.
    """
    return [(arm, seed) for arm, seed in study.runs if read_result(out, VALIDATION, study, arm, seed) is None]


def sit(study: Study, out: Path, sharing: Sharing, *, timing_rounds: int = 8) -> list[str]:
    """Do this machine's part of what is missing.

    Returns:
        A line for each run that failed: the others are done all the same.
    """
    mine = sharing.mine(study.runs)
    runs = [run for run in missing_runs(study, out) if run in mine]
    if not runs:
        return []
    seconds = seconds_per_step(study, out, timing_rounds)
    problems = []
    for run, problem in _done(study, out, runs, seconds, sharing):
        if problem:
            problems.append(f"{run[0].name}, seed {run[1]}: {problem}")
    return problems


def seconds_per_step(study: Study, out: Path, rounds: int) -> dict[str, float]:
    """By arm, from timing.json where it has them; a study's machines must all use the same file.

    Arms that are new are timed beside the one whose time is the budget, and brought to its former figure.
    """
    file = out / "timing.json"
    known: dict[str, float] = read_json(file)
    if study.budget_of is None or study.arms.keys() <= known.keys():
        return known
    from ldm.study.train import measure_seconds  # torch

    names = dict.fromkeys([study.budget_of, *(name for name in study.arms if name not in known)])
    found = measure_seconds(study, [study.arms[name] for name in names], rounds)
    scale = known.get(study.budget_of, found[study.budget_of]) / found[study.budget_of]
    known = {name: value * scale for name, value in found.items()} | known
    write_whole(file, json.dumps(known, indent=1))
    return known


def _done(
    study: Study, out: Path, runs: Sequence[Run], seconds: dict[str, float], sharing: Sharing
) -> list[tuple[Run, str]]:
    """Each run with what went wrong, or nothing, as they end."""
    context = get_context("spawn")
    devices: Queue[str] = context.Queue()
    for index in range(sharing.jobs):
        devices.put(sharing.devices[index % len(sharing.devices)] if sharing.devices else "")
    done = []
    with ProcessPoolExecutor(sharing.jobs, context, _begin, (devices,)) as pool:
        futures: dict[Future[str], Run] = {pool.submit(_run, study, out, *run, seconds): run for run in runs}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="runs"):
                done.append((futures[future], future.result()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


def _begin(devices: "Queue[str]") -> None:
    """A worker takes a device for all its runs, and ends with the sitting, however that ends."""
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    if device := devices.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.environ.setdefault("WANDB_MODE", "disabled")


def _end_with(parent: BaseProcess | None) -> None:
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(study: Study, out: Path, arm: Arm, seed: int, seconds: dict[str, float]) -> str:
    """Do one run; returns what went wrong."""
    from ldm.study.train import run_arm  # torch

    warnings.filterwarnings("ignore")
    logging.getLogger("ldm.models").setLevel(logging.ERROR)
    try:
        run_arm(study, out, arm, seed, seconds)
    except UserError as error:
        return str(error)
    return ""
