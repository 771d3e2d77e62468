"""Stop a training at random moments, start it again each time, and compare its end with an undisturbed run's."""

import os
import random
import shutil
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import skimage.data
import torch
from faults.toy import BATCHES, CONFIG, FORMAT, PHASES
from PIL import Image

from ldm.training.cli import main
from ldm.training.options import REQUEUE

STATE = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "DataModuleFromConfig", "epoch", "global_step")
HANGS = 120.0  # seconds after which a process that was asked to stop, or whose partner died, counts as hanging


@dataclass
class Report:
    """What happened, in numbers."""

    signals: int = 0
    starts: int = 0
    runs: int = 0  # that were brought to their end, from first start to last step
    phases: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)  # values of the checkpoint, bit by bit
    rows: int = 0  # of metrics.csv, that were compared
    missing_rows: int = 0
    changed_rows: int = 0
    unexpected: list[str] = field(default_factory=list)
    slowest_end: float = 0.0  # seconds from a signal to the end of all processes

    @property
    def clean(self) -> bool:
        return not (self.differing or self.missing_rows or self.changed_rows or self.unexpected)

    def lines(self) -> Iterator[str]:
        yield f"{self.signals} signals, {self.starts} starts, {self.runs} runs brought to their end"
        yield "moments: " + ", ".join(f"{phase} {self.phases[phase]}" for phase in PHASES)
        yield f"values that differ: {dict(self.differing) or 0}"
        yield f"rows of metrics.csv: {self.rows} compared, {self.missing_rows} missing, {self.changed_rows} changed"
        yield f"slowest end after a signal: {self.slowest_end:.1f} s"
        yield from (f"unexpected: {line}" for line in self.unexpected)


class Stage:
    """A folder with pictures and a config, and the processes of one training in it."""

    def __init__(self, folder: Path, processes: int, steps: int) -> None:
        self.folder = folder
        self.processes = processes
        self.phases = folder / "phases"
        (folder / "pictures").mkdir(parents=True)
        photo = Image.fromarray(skimage.data.astronaut())
        for index in range(BATCHES):
            photo.crop((24 * index, 64, 24 * index + 24, 88)).save(folder / "pictures" / f"{index}.png")
        strategy = "ddp" if processes > 1 else "auto"
        config = CONFIG.format(phases=self.phases, processes=processes, strategy=strategy, steps=steps)
        (folder / "toy.yaml").write_text(config)

    def start(self, name: str, *more: str) -> list[int]:
        """Fork the processes of the one command that users give; returns their ids."""
        self.phases.write_bytes(bytes(struct.calcsize(FORMAT)))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        words = ["--base", "toy.yaml", "--trust_config", "--logger", "csv", "--name", name, "--resume", "auto", *more]
        sys.stdout.flush()
        return [self._fork(rank, port, words) for rank in range(self.processes)]

    def _fork(self, rank: int, port: str, words: list[str]) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.chdir(self.folder)
            log = os.open(f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if self.processes > 1:  # as torchrun and Lightning's own launcher tell further processes
                os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            status = main(words)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def now(self) -> tuple[str, dict[str, int]]:
        """The phase, and how often each was entered since the start."""
        phase, *entered = struct.unpack(FORMAT, self.phases.read_bytes())
        return PHASES[phase], dict(zip(PHASES, entered, strict=True))

    def outcome(self, name: str) -> tuple[dict[str, Any], list[str]]:
        """The newest checkpoint's state and the rows of metrics.csv of the run of this name."""
        run = max((self.folder / "logs").glob(f"*_{name}*"), key=lambda path: (path / "checkpoints/last.ckpt").exists())
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        return {key: state.get(key) for key in STATE}, (run / "metrics.csv").read_text().splitlines()


def wait(children: list[int], timeout: float) -> dict[int, int]:
    """The exit statuses of those that ended in time."""
    ended: dict[int, int] = {}
    until = time.monotonic() + timeout
    while len(ended) < len(children) and time.monotonic() < until:
        for child in set(children) - set(ended):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return ended


def await_moment(stage: Stage, children: list[int], rng: random.Random, start_up: float) -> dict[int, int]:
    """Wait for a moment of a random kind; returns those who ended before it came."""
    phase = rng.choice(PHASES)
    if phase == "start-up":
        return wait(children, rng.uniform(0.0, start_up))
    nth = rng.randint(1, 5)
    ended: dict[int, int] = {}
    while len(ended) < len(children) and stage.now()[1][phase] < nth:
        ended |= wait([child for child in children if child not in ended], 0.001)
    time.sleep(rng.uniform(0.0, 0.008))
    return ended


def disturb(stage: Stage, name: str, number: int, report: Report, rng: random.Random, start_up: float) -> bool:
    """Start once and stop at a random moment; whether the training reached its end instead."""
    children = stage.start(name)
    report.starts += 1
    ended = await_moment(stage, children, rng, start_up)
    left = [child for child in children if child not in ended]
    if left:
        report.phases[stage.now()[0]] += 1
        report.signals += 1
        # A machine that dies takes all; a process that is killed for memory leaves the others, which must end too.
        victims = left if number != signal.SIGKILL or rng.random() < 0.5 else [rng.choice(left)]
        for child in victims:
            os.kill(child, number)
        asked = time.monotonic()
        ended |= wait(left, HANGS)
        report.slowest_end = max(report.slowest_end, time.monotonic() - asked)
    for child in set(children) - set(ended):
        report.unexpected.append(f"{signal.Signals(number).name}: process {child} hangs")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    first = ended.get(children[0])
    expected = {0, REQUEUE} if number == signal.SIGTERM or not left else {0, -number, 1}
    if first is not None and first not in expected:
        report.unexpected.append(f"{signal.Signals(number).name}: the first process ended with {first}")
    return first == 0


def compare(report: Report, outcome: tuple[Any, list[str]], reference: tuple[Any, list[str]]) -> None:
    """Count what differs."""
    report.differing.update(differences("", outcome[0], reference[0]))
    rows, wanted = outcome[1], reference[1]
    report.rows += len(wanted)
    missing = sum((Counter(row.split(",")[0] for row in wanted) - Counter(row.split(",")[0] for row in rows)).values())
    report.missing_rows += missing
    report.changed_rows += sum((Counter(rows) - Counter(wanted)).values())


def differences(place: str, one: Any, other: Any) -> Iterator[str]:
    """The places in nested values where two are not the same to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from differences(f"{place}/{key}", one.get(key), other.get(key))
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, values in enumerate(zip(one, other, strict=True)):
            yield from differences(f"{place}/{index}", *values)
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or not torch.equal(one, other):
            yield place
    elif one != other:
        yield place


def stops(folder: Path, number: int, count: int, *, processes: int, steps: int, seed: int) -> Report:
    """`count` signals of a number, in as many runs as they take."""
    shutil.rmtree(folder, ignore_errors=True)
    stage, report, rng = Stage(folder, processes, steps), Report(), random.Random(seed)
    children = stage.start("straight")
    began = time.monotonic()
    while stage.now()[0] == "start-up" and time.monotonic() - began < HANGS:
        time.sleep(0.001)
    start_up = time.monotonic() - began
    statuses = wait(children, 600.0)
    if set(statuses.values()) != {0}:
        raise RuntimeError(f"the undisturbed run ended with {statuses}: see {folder}/log-0.txt")
    reference = stage.outcome("straight")
    while report.signals < count:
        name = f"run{report.runs}"
        while report.signals < count and not disturb(stage, name, number, report, rng, start_up):
            pass
        last = stage.start(name)
        report.starts += 1
        if set(wait(last, 600.0).values()) != {0}:
            report.unexpected.append(f"{name} does not come to its end: see {folder}/log-0.txt")
        report.runs += 1
        compare(report, stage.outcome(name), reference)
    return report
