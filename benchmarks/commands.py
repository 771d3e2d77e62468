"""Start-up, checkpoints, and whole commands, which are measured from outside: seconds, and the memory held at most.

As a command of its own it starts up: python -m benchmarks.commands ours|baseline SIZE WORK
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case, Ready, Row
from benchmarks.networks import ROOT, config_of, model_of, picture_folder, weights_file
from ldm.models.build import build_model
from ldm.training.callbacks.checkpoint_io import AtomicCheckpointIO


def run_command(words: list[str], cwd: Path = ROOT) -> int:
    """Run Python with these arguments to its end; bytes that the process (not its children) held at most.

    Raises:
        RuntimeError: it fails; the message has the end of what it said.
    """
    process = subprocess.Popen([sys.executable, *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        peak = max(peak, _peak(status))
        time.sleep(0.01)
    said = process.stdout.read().decode(errors="replace") if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {said[-2000:]}")
    return peak


def _peak(status: Path) -> int:
    """Of a process that may just be ending; 0 where nothing is told any more."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return found[0] if found else 0


def command(words_of: Callable[[Case], list[str]]) -> Callable[[Case], Ready]:
    """A row of a command: its arguments from the case."""

    def prepare(case: Case) -> Ready:
        words, peaks = words_of(case), [0]
        return Ready(lambda _: peaks.append(run_command(words)), peak=lambda: max(peaks))

    return prepare


def start_up_words(case: Case) -> list[str]:
    """Interpreter, imports, network, weights."""
    weights_file(case.size, case.work)
    return ["-m", "benchmarks.commands", case.side, case.size, case.work]


def start_up(side: str, size: str, work: str) -> None:
    """Build the training model with a checkpoint's weights: by our builder, or drawn at random first as published."""
    weights = weights_file(size, work)
    if side == "ours":
        build_model(config_of(size, f"model.params.ckpt_path={weights}"))
        return
    model = build_model(config_of(size))
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict(state, strict=False)


def first_step_words(case: Case) -> list[str]:
    """A run of one step on photographs of the full size, with the demo's networks, to its end."""
    pictures = picture_folder("small", case.work)
    data = [f"data.params.{role}.params.gt_path={pictures}" for role in ("train", "validation")]
    flags = ["--max_steps", "1", "--logger", "csv", "--no-test", "true", "--logdir", str(Path(case.work) / "logs")]
    return ["main.py", "--base", "configs/demo/edge_cpu.yaml", *flags, *data]


def saving(*overrides: str) -> Callable[[Case], Ready]:
    """Write a training checkpoint with AdamW's state, as the trainer does; the baseline simply with torch.save."""

    def prepare(case: Case) -> Ready:
        checkpoint, path = checkpoint_of(case, *overrides), Path(case.work) / f"{case.side}.ckpt"
        write = AtomicCheckpointIO().save_checkpoint if case.side == "ours" else torch.save
        return Ready(lambda _: write(checkpoint(), path))

    return prepare


def checkpoint_of(case: Case, *overrides: str) -> Callable[[], dict[str, Any]]:
    """What makes the checkpoint of a model that has taken a step."""
    model = model_of(case, *overrides)
    if case.side == "ours":
        model.on_fit_start()
    optimizer = model.configure_optimizers()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()

    def checkpoint() -> dict[str, Any]:
        content = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 1}
        if case.side == "ours":
            model.on_save_checkpoint(content)
        return content

    return checkpoint


def loading(case: Case) -> Ready:
    """Read a training checkpoint into a model and its optimizer, as resuming does."""
    path = Path(case.work) / f"{case.side}.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint_of(case)(), path)
    model = model_of(case)
    optimizer = model.configure_optimizers()

    def call(_index: int) -> None:
        if case.side == "ours":
            content = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
            model.on_load_checkpoint(content)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(content["state_dict"])
        optimizer.load_state_dict(content["optimizer_states"][0])

    return Ready(call)


OURS, ONCE = ("ours",), ("fp32",)
ROWS: dict[str, Row] = {
    "start-up": Row(command(start_up_words), "start", precisions=ONCE, fixed=(1, 512)),
    "help": Row(command(lambda _: ["main.py", "--help"]), "start", OURS, ONCE, fixed=(1, 512)),
    "first-step": Row(command(first_step_words), "run", OURS, ONCE, fixed=(1, 512)),
    "save": Row(saving(), "file", precisions=ONCE, fixed=(1, 512)),
    "save-trained": Row(saving("model.params.save_trainable_only=true"), "file", OURS, ONCE, fixed=(1, 512)),
    "load": Row(loading, "file", precisions=ONCE, fixed=(1, 512)),
}

if __name__ == "__main__":
    start_up(*sys.argv[1:])
