"""Where the numbers go: metrics.csv always, W&B by default, TensorBoard on request."""

import csv
import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from basicsr.utils.errors import UserError

log = logging.getLogger(__name__)

CHOICES = ("wandb", "tensorboard", "csv")
WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


def is_first_process() -> bool:
    """Whether this process is rank 0, which alone prints and writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


class MetricsFile(Logger):
    """One CSV file for a whole run, resumed or not: a row per call, a column per metric, `step` first.

    When a metric turns up for the first time, the file is rewritten with the wider header. When a resumed run goes back
    to an earlier step, the rows from there on are dropped: they are about to be made again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] | None = None  # None: the file has not been looked at yet

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config is saved beside the file, as YAML."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, **metrics}
        rows: list[dict[str, Any]] = []
        rewrite = False
        if self._columns is None:
            rows = [old for old in _read_rows(self.path) if step is None or int(old["step"]) < step]
            self._columns = list(rows[0]) if rows else ["step"]
            rewrite = True
        new = [key for key in row if key not in self._columns]
        if new and not rewrite:
            rows = _read_rows(self.path)
        self._columns += new
        if new or rewrite:
            self._write([*rows, row])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        assert self._columns is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")  # never a moment without the old rows
        with draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        draft.replace(self.path)


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
    kind: str, folder: Path, *, name: str, project: str, wandb_id: str, resumed: bool, config: dict[str, Any]
) -> list[Logger]:
    """metrics.csv in the run's folder, and what `--logger` asks for.

    Raises:
        UserError: an unknown kind, or TensorBoard without its package.
    """
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv")]
    if kind == "tensorboard":
        try:
            loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
        except ModuleNotFoundError as error:
            raise UserError("--logger tensorboard needs a package: pip install tensorboard") from error
    elif kind == "wandb" and os.environ.get("WANDB_MODE") == "disabled":
        log.info("W&B is switched off (WANDB_MODE=disabled); the numbers go to metrics.csv alone")
    elif kind == "wandb" and is_first_process():
        loggers.append(_wandb_logger(folder, name, project, wandb_id, resumed, config))
    elif kind not in CHOICES:
        raise UserError(f"--logger {kind}: choose one of {', '.join(CHOICES)}")
    return loggers


def _wandb_logger(
    folder: Path, name: str, project: str, wandb_id: str, resumed: bool, config: dict[str, Any]
) -> WandbLogger:
    """A W&B run that never asks anything: offline without a key, and offline too when the server cannot be reached."""
    import wandb

    if (wanted := os.environ.get("WANDB_MODE")) and wanted not in WANDB_MODES:
        raise UserError(f"WANDB_MODE is {wanted!r}: choose one of {', '.join(WANDB_MODES)}, or unset it")
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_api_key() else "offline")
    why = "no API key and no WANDB_MODE" if not os.environ.get("WANDB_MODE") else f"WANDB_MODE={mode}"

    def start(mode: str) -> Any:
        quiet = wandb.Settings(silent=mode != "online", console="off", init_timeout=30)
        return wandb.init(
            project=project,
            name=name,
            id=wandb_id,
            dir=folder.resolve(),  # the writing is done by a process that may be elsewhere
            resume="allow" if resumed and mode == "online" else None,
            mode=mode,  # type: ignore[arg-type]
            config=config,
            settings=quiet,
        )

    try:
        run = start(mode)
    except Exception as error:  # W&B's own errors have no common base: no network, key refused, time out
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        if mode != "online":
            raise UserError(f"W&B cannot start with WANDB_MODE={mode}: {problem}") from error
        why = f"W&B cannot be reached: {problem}"
        wandb.teardown()  # the attempt still holds the run's id
        mode, run = "offline", start("offline")
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    if mode in ("offline", "dryrun"):
        log.info("W&B runs offline (%s); send this run later with: wandb sync %s", why, Path(run.dir).parent)
    return WandbLogger(experiment=run, project=project, save_dir=folder)


def _has_api_key() -> bool:
    """Whether W&B would find credentials without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    servers = (os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url, "https://api.wandb.ai")
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for file in files:
        try:
            entries = netrc.netrc(os.path.expanduser(file))
            if any(entries.authenticators(urlsplit(server).netloc) for server in servers):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def wandb_folder(loggers: list[Logger]) -> Path | None:
    """Where W&B keeps this run on disk."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            return Path(logger.experiment.dir).parent
    return None


def finish_loggers(loggers: list[Logger]) -> None:
    """Close W&B's run, so that all of it is on disk or sent."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
