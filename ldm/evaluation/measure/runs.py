"""Training runs and their checkpoints, as an evaluation sees them."""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import digest
from ldm.config import Config, load_config
from ldm.run_folder import RunFolder, checkpoint_outline

SELECTIONS = "all, last, best or every:N"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint file of a run."""

    path: Path
    step: int
    identity: str  # of its content: the same after a copy, another after the file is written anew


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder and the newest config in it."""

    folder: Path
    config: Config

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def label(self) -> str:
        """The name without the time that begins it."""
        return re.sub(r"^\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d_", "", self.name)

    @property
    def edge_loss_weight(self) -> float | str:
        """A number, or `auto:FRACTION`."""
        weight = self.config.get("model.params.edge_loss_weight", 0.0)
        return weight if isinstance(weight, str) else float(weight)

    @property
    def checkpoints(self) -> Path:
        """Where ModelCheckpoint was told to write."""
        return Path(self.config.get("lightning.modelcheckpoint.params.dirpath", self.folder / "checkpoints"))

    @property
    def max_steps(self) -> int:
        """The step that training ends at; -1 for none."""
        return int(self.config.get("lightning.trainer.max_steps", -1))


def open_runs(folders: Sequence[str]) -> list[TrainedRun]:
    """The runs in these folders.

    Raises:
        UserError: a folder that is not there, is no run's, or is called like another one.
    """
    runs: list[TrainedRun] = []
    for given in folders:
        folder = RunFolder(Path(given).resolve())
        if not folder.path.is_dir():
            raise FieldError(
                "run", f"{given}: there is no such folder; give a run's, such as logs/2026-01-31T12-00-00_A"
            )
        if not folder.configs():
            raise FieldError("run", f"{given}: {folder.path / 'configs'} holds no config, so this is no run's folder")
        if folder.path.name in [run.name for run in runs]:
            raise FieldError("run", f"{given}: another run is called {folder.path.name} too; rename one of the folders")
        runs.append(TrainedRun(folder.path, load_config([folder.saved_config()])))
    return runs


def select_checkpoints(run: TrainedRun, which: str) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints that `which` (see `SELECTIONS`) means, by step, and a line for each that cannot be read.

    `every:N` counts back from the newest. Of several files at one step, such as last.ckpt and step000100.ckpt, one that
    is not called last is taken. `best` is what the run's ModelCheckpoint monitors.

    Raises:
        UserError: `which` is none of these, or `best` of a run that monitors nothing.
    """
    every = re.fullmatch(r"every:([1-9]\d*)", which)
    if which not in ("all", "last", "best") and not every:
        raise FieldError("checkpoints", f"is {which!r}: give {SELECTIONS}")
    found, unreadable = _by_step(run.checkpoints)
    if which == "best" and found:
        found = [_best(run, found)]
    elif which == "last":
        found = found[-1:]
    elif every:
        found = found[:: -int(every[1])][::-1]
    return found, unreadable


def read_checkpoint(path: Path) -> Checkpoint:
    """Step and identity of a file.

    Raises:
        UserError: it cannot be read; perhaps it is still being written.
    """
    try:
        before = _identity(path)
        outline = checkpoint_outline(path)
        whole = before == _identity(path)
    except (UserError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a checkpoint: it is being written, or damaged") from error
    if not whole:
        raise UserError(f"{path} is being written right now")
    if "state_dict" not in outline or "global_step" not in outline:
        raise UserError(f"{path} is not a checkpoint of a training run")
    return Checkpoint(path, int(outline["global_step"]), before)


def _identity(path: Path) -> str:
    """From the table at a checkpoint's end, which holds name, size and CRC-32 of every tensor: quick for gigabytes."""
    with zipfile.ZipFile(path) as archive:
        entries = [(each.filename.partition("/")[2], each.file_size, each.CRC) for each in archive.infolist()]
    return digest(repr(entries))


def _by_step(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """One checkpoint a step, and a line for each file that cannot be read."""
    found: dict[int, Checkpoint] = {}
    unreadable = []
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: (path.stem.startswith("last"), path.name)):
        try:
            checkpoint = read_checkpoint(path)
            found.setdefault(checkpoint.step, checkpoint)
        except UserError as error:
            unreadable.append(str(error))
    return [found[step] for step in sorted(found)], unreadable


def _best(run: TrainedRun, found: list[Checkpoint]) -> Checkpoint:
    """What the newest checkpoint remembers as ModelCheckpoint's best."""
    for state in checkpoint_outline(found[-1].path).get("callbacks", {}).values():
        if isinstance(state, dict) and state.get("monitor") and state.get("best_model_path"):
            name = Path(state["best_model_path"]).name  # the run's folder may have been moved
            if best := [checkpoint for checkpoint in found if checkpoint.path.name == name]:
                return best[0]
            raise FieldError("checkpoints", f"best: {run.checkpoints / name}, the best by {state['monitor']}, is gone")
    raise FieldError(
        "checkpoints",
        f"best: {run.name} monitors no metric while training; set "
        "lightning.modelcheckpoint.params.monitor (such as val/edge_f1, mode max) there, or evaluate all",
    )
