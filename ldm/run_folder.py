"""A run's folder: its name, what is remembered in it, and how to find it again."""

import logging
import os
import re
import secrets
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from basicsr.utils.errors import UserError, first_line
from basicsr.utils.files import OutputError, write_whole
from ldm.launched import chosen_by_first, launched_processes

log = logging.getLogger(__name__)

# Lightning starts further processes by running the same command again; they inherit the first one's environment.
RUN_FOLDER_VARIABLE = "STABLESR_EDGE_RUN_FOLDER"
STAMP = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d"  # the time that a run folder's name begins with
RESUMED_VARIABLE = "STABLESR_EDGE_RESUMED"
MAX_NAME = 200  # file systems allow 255 bytes, of which the time takes some


@dataclass(frozen=True)
class RunSettings:
    """What a resumed run must know beside its config."""

    name: str
    seed: int
    scale_lr: bool
    project: str
    logger: str
    wandb_id: str


@dataclass(frozen=True)
class RunFolder:
    """`<logdir>/<time>_<name>/{checkpoints,configs,images,metrics.csv}`."""

    path: Path

    @property
    def last_checkpoint(self) -> Path:
        """Where the newest state is."""
        return self.path / "checkpoints" / "last.ckpt"

    @classmethod
    def new(cls, logdir: str, name: str) -> "RunFolder":
        """A folder named by the time, the same one in every process that this one starts; nothing is made yet.

        Raises:
            UserError: `name` cannot be a part of a folder's name.
        """
        if not logdir or os.sep in name or len(name.encode()) > MAX_NAME:
            raise UserError(
                f"--logdir {logdir!r}, --name {name!r}: give a folder, and a name of at most {MAX_NAME} "
                f"letters without {os.sep}"
            )

        def choose() -> str:
            path = Path(logdir) / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}_{name}"
            taken = 1
            while path.exists():  # two runs within one second
                taken += 1
                path = path.with_name(f"{path.name.removesuffix(f'_{taken - 1}')}_{taken}")
            return str(path)

        return cls(Path(_of_first_process(RUN_FOLDER_VARIABLE, choose)))

    @classmethod
    def to_resume(cls, target: str) -> tuple["RunFolder", Path]:
        """The folder and the checkpoint that `--resume DIR|FILE` means.

        Where a folder's last.ckpt cannot be read, the newest other checkpoint stands in, and a warning says so.

        Raises:
            UserError: there is no such thing, no checkpoint in it, or a file that is not in a run's folder.
        """
        path = Path(target).expanduser().resolve() if Path(target).is_file() else Path(target).expanduser()
        if not path.exists():
            raise UserError(f"--resume {target}: there is no such folder or file")
        folder = cls(path if path.is_dir() else path.parent.parent)
        checkpoint = folder.newest_checkpoint() if path.is_dir() else path
        if checkpoint is None:
            missing = folder.last_checkpoint
            raise UserError(f"--resume {target}: {missing} is not there; give a run's folder or a .ckpt file of one")
        if not folder.configs():
            raise UserError(
                f"--resume {target}: {folder.path / 'configs'} holds no config of a run; to start a new run from these "
                f"weights, pass model.params.ckpt_path={checkpoint}"
            )
        return folder, checkpoint

    @classmethod
    def newest_of_name(cls, logdir: str, name: str) -> str | None:
        """The newest run's folder of this name that has a checkpoint and a config to go on with.

        It is the same one in every process that this one starts.
        """

        def choose() -> str:
            same = re.compile(STAMP + re.escape(f"_{name}") + r"(_\d+)?")
            runs = [cls(path) for path in sorted(Path(logdir).glob("*"), reverse=True) if same.fullmatch(path.name)]
            found = next((run for run in runs if run.configs() and _readable(run.checkpoints())), None)
            return str(found.path) if found else ""

        return _of_first_process(RESUMED_VARIABLE, choose) or None

    def checkpoints(self) -> list[Path]:
        """Checkpoint files to go on from: last.ckpt, then the others, newest first."""
        files = (self.path / "checkpoints").glob("*.ckpt")
        return sorted(files, key=lambda file: (file != self.last_checkpoint, -file.stat().st_mtime))

    def newest_checkpoint(self) -> Path | None:
        """The first of `checkpoints` that can be read; None where there is no file at all.

        Raises:
            UserError: there are files, and none of them can be read.
        """
        files = self.checkpoints()
        readable = _readable(files)
        if files and not readable:
            checkpoint_step(files[0])  # says what it is
            raise UserError(f"{files[0]} cannot be read as a checkpoint, and there is no other: it is damaged")
        if readable and readable != self.last_checkpoint:
            log.warning("%s is damaged or missing: going on from %s instead", self.last_checkpoint, readable)
        return readable

    def save(self, config_yaml: str, settings: RunSettings) -> None:
        """Write the config and the settings; a resumed run's config goes beside the earlier ones.

        Raises:
            UserError: the folder cannot be written.
        """
        configs = self.path / "configs"
        try:
            for name in ("checkpoints", "configs", "images"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            write_whole(configs / "run.yaml", yaml.safe_dump(asdict(settings), sort_keys=False))
            write_whole(configs / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-config.yaml", config_yaml)
        except (OSError, OutputError) as error:
            reason = error.reason if isinstance(error, OutputError) else error.strerror
            raise UserError(
                f"the run folder {self.path} cannot be written ({reason}); choose another place with --logdir"
            ) from error

    def saved_config(self) -> Path:
        """The newest saved config."""
        return self.configs()[-1]

    def saved_settings(self) -> RunSettings:
        """What `save` wrote.

        Raises:
            UserError: the file is missing or corrupt.
        """
        file = self.path / "configs" / "run.yaml"
        try:
            saved: Any = yaml.safe_load(file.read_text())
            return RunSettings(**{field.name: saved[field.name] for field in fields(RunSettings)})
        except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
            raise UserError(
                f"{file} cannot be read: without it this run cannot be resumed ({first_line(error)})"
            ) from error

    def configs(self) -> list[Path]:
        """The saved configs, oldest first."""
        return sorted((self.path / "configs").glob("*-config.yaml"))


def _of_first_process(variable: str, choose: Callable[[], str]) -> str:
    """What a training's first process chooses; those that Lightning starts on this machine find it in `variable`."""
    if launched_processes() > 1:
        return chosen_by_first(variable, choose)
    if variable not in os.environ or int(os.environ.get("LOCAL_RANK", 0)) == 0:
        os.environ[variable] = choose()
    return os.environ[variable]


def new_wandb_id() -> str:
    """A random name for a W&B run, which a resumed run takes up again."""
    return secrets.token_hex(4)


def checkpoint_step(file: Path) -> int:
    """The step that a training checkpoint stands at.

    Raises:
        UserError: the file is not a checkpoint, or one that holds weights only.
    """
    checkpoint = checkpoint_outline(file)
    if "loops" not in checkpoint or not checkpoint.get("optimizer_states"):
        raise UserError(f"{file} holds weights, no training state; start from it with model.params.ckpt_path={file}")
    return int(checkpoint["global_step"])


def checkpoint_outline(file: Path) -> dict[str, Any]:
    """A checkpoint whose tensors have shapes but no values: little is read, however large the file.

    Raises:
        UserError: the file is not a checkpoint.
    """
    if file.is_dir():
        raise UserError(
            f"{file} is a folder of DeepSpeed's: its zero_to_fp32.py makes a file for model.params.ckpt_path"
        )
    try:
        checkpoint = torch.load(file, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is cut short or something else altogether
        raise UserError(f"{file} cannot be read as a checkpoint: it is damaged or something else") from error
    return checkpoint if isinstance(checkpoint, dict) else {}


def _readable(files: Iterable[Path]) -> Path | None:
    """The first of these files that is a complete checkpoint of a training."""
    for file in files:
        try:
            checkpoint_step(file)
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is None:  # every part has the checksum that was written
                    return file
        except (UserError, OSError, zipfile.BadZipFile) as error:
            log.debug("%s is passed over: %s", file, error)
    return None
