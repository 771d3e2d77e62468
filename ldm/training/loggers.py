"""Where the numbers go: metrics.csv always, W&B by default, TensorBoard on request."""

import csv
import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from basicsr.utils.errors import UserError, first_line
from basicsr.utils.files import OutputError, whole_file
from ldm.console import is_first_process
from ldm.training.options import LOGGERS

log = logging.getLogger(__name__)

WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


class MetricsFile(Logger):
    """One CSV file for a whole run, resumed or not: a row per call, a column per metric, `step` first.

    A row that is given twice in succession is written once. When a metric turns up for the first time, the file is
    rewritten with the wider header.

    Args:
        path: the file.
        resumed_at: the rows of this step and later ones are dropped, for they are about to be made again; None, for a
            new run, keeps none.
    """

    def __init__(self, path: Path, resumed_at: int | None = None) -> None:
        super().__init__()
        self.path = path
        self.resumed_at = resumed_at or 0
        self._newest: dict[str, Any] = {}  # row
        self._columns: list[str] | None = None  # None: the file has not been looked at yet

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for one."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the config is saved beside the file, as YAML."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row.

        Raises:
            OutputError: the file cannot be written.
        """
        row: dict[str, Any] = {"step": step, **metrics}
        if row == self._newest:
            return
        self._newest = row
        rows: list[dict[str, Any]] = []
        rewrite = False
        if self._columns is None:
            rows = [old for old in _read_rows(self.path) if int(old["step"]) < self.resumed_at]
            self._columns = list(rows[0]) if rows else ["step"]
            rewrite = True
        new = [key for key in row if key not in self._columns]
        if new and not rewrite:
            rows = _read_rows(self.path)
        self._columns += new
        if new or rewrite:
            self._write([*rows, row])
            return
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            raise OutputError(self.path, error) from error

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with whole_file(self.path) as draft, draft.open("w", newline="") as file:  # never a moment without the old rows
            writer = csv.DictWriter(file, self._columns or [])
            writer.writeheader()
            writer.writerows(rows)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv as numbers, without the empty cells; [] where there is no file."""
    return [{key: float(cell) for key, cell in row.items() if cell} for row in _read_rows(path)]


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Whole rows as they are written; one that was cut short, as by a full disk, is left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["step"] and None not in row.values()]


def make_loggers(
    kind: str, folder: Path, *, project: str, wandb_id: str, resumed_at: int | None, config: dict[str, Any]
) -> list[Logger]:
    """metrics.csv in the run's folder, and what `--logger` asks for. Nothing is written or started before first use.

    Args:
        resumed_at: the step that a resumed run goes on from; None for a new one.

    Raises:
        UserError: an unknown kind, or TensorBoard without its package.
    """
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv", resumed_at)]
    if kind == "tensorboard":
        try:
            loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
        except ModuleNotFoundError as error:
            raise UserError("--logger tensorboard needs a package: pip install tensorboard") from error
    elif kind == "wandb" and os.environ.get("WANDB_MODE") == "disabled":
        log.info("W&B is switched off (WANDB_MODE=disabled); the numbers go to metrics.csv alone")
    elif kind == "wandb" and is_first_process():
        if (wanted := os.environ.get("WANDB_MODE")) and wanted not in WANDB_MODES:
            raise UserError(f"WANDB_MODE is {wanted!r}: choose one of {', '.join(WANDB_MODES)}, or unset it")
        loggers.append(UnattendedWandb(folder, project, wandb_id, resumed=resumed_at is not None, config=config))
    elif kind not in LOGGERS:
        raise UserError(f"--logger {kind}: choose one of {', '.join(LOGGERS)}")
    return loggers


class UnattendedWandb(WandbLogger):
    """A W&B run that never asks anything: offline without a key, and offline too when the server cannot be reached.

    It starts when it is first used.
    """

    def __init__(self, folder: Path, project: str, wandb_id: str, *, resumed: bool, config: dict[str, Any]) -> None:
        super().__init__(name=folder.name, project=project, id=wandb_id, save_dir=folder)
        self.folder = folder
        self._about = (project, wandb_id)
        self._resumed = resumed
        self._config = config
        self._run: Any = None

    @property
    def started(self) -> bool:
        """Whether anything has been logged."""
        return self._run is not None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run.

        Raises:
            UserError: W&B cannot start offline either.
        """
        if self._run is None:
            self._run = self._start_somehow()
            self._run.define_metric("trainer/global_step")
            self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return self._run

    def finish(self) -> None:
        """See that all of it is on disk or sent."""
        if self._run is not None:
            self._run.finish()

    def _start_somehow(self) -> Any:
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if _has_api_key() else "offline")
        why = f"WANDB_MODE={mode}" if os.environ.get("WANDB_MODE") else "no API key and no WANDB_MODE"
        try:
            run = self._start(mode)
        except Exception as error:  # W&B's own errors have no common base: no network, key refused, time out
            if mode != "online":
                raise UserError(f"W&B cannot start with WANDB_MODE={mode}: {first_line(error)}") from error
            why = f"W&B cannot be reached: {first_line(error)}"
            wandb.teardown()  # the attempt still holds the run's id
            mode, run = "offline", self._start("offline")
        if mode in ("offline", "dryrun"):
            log.info("W&B runs offline (%s); send this run later with: wandb sync %s", why, Path(run.dir).parent)
        return run

    def _start(self, mode: str) -> Any:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        project, wandb_id = self._about
        return wandb.init(
            project=project,
            name=self.folder.name,
            id=wandb_id,
            dir=self.folder.resolve(),  # the writing is done by a process that may be elsewhere
            resume="allow" if self._resumed and mode == "online" else None,
            mode=mode,  # type: ignore[arg-type]  # mode is a str, W&B asks for its literals
            config=self._config,
            settings=wandb.Settings(silent=mode != "online", console="off", init_timeout=30),
        )


def _has_api_key() -> bool:
    """Whether W&B would find credentials without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    servers = (os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url, "https://api.wandb.ai")
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for file in files:
        try:
            entries = netrc.netrc(Path(file).expanduser())
            if any(entries.authenticators(urlsplit(server).netloc) for server in servers):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def wandb_folder(loggers: list[Logger]) -> Path | None:
    """Where W&B keeps this run on disk."""
    started = [logger for logger in loggers if isinstance(logger, UnattendedWandb) and logger.started]
    return Path(started[0].experiment.dir).parent if started else None


def finish_loggers(loggers: list[Logger]) -> None:
    """Close W&B's run, so that all of it is on disk or sent."""
    for logger in loggers:
        if isinstance(logger, UnattendedWandb):
            logger.finish()
