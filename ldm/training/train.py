"""A training run from its parsed command line to its end."""

import logging
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.warnings import PossibleUserWarning
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import Callback, LambdaCallback, ModelCheckpoint

from basicsr.utils import checks
from basicsr.utils.errors import UserError, first_line
from ldm.config import Config, check_config, check_paths, load_config
from ldm.console import tell
from ldm.run_folder import RunFolder, RunSettings, checkpoint_step, new_wandb_id
from ldm.training.build import Run, build_data, build_trainer, build_training_model, trainer_arguments, yaml_callbacks
from ldm.training.callbacks.checkpoints import Interrupted, KeepLast
from ldm.training.callbacks.edge_probe import EdgeProbe
from ldm.training.callbacks.progress import last_losses
from ldm.training.check import check
from ldm.training.loggers import finish_loggers, make_loggers, read_metrics, wandb_folder
from ldm.training.options import Options
from ldm.training.plots import save_loss_curves
from ldm.training.resume import check_changes
from ldm.training.stop_signals import StopSignals

log = logging.getLogger(__name__)


def train(options: Options, signals: StopSignals) -> int:
    """Run a parsed command line: check, build, fit; returns the exit status.

    Raises:
        UserError: what the user can mend.
    """
    quiet_lightning()
    try:
        run = begin(options)
        if options.check:
            return check(run, trust=options.trust_config)
        last = run.config.get("lightning.trainer.max_steps", -1)
        if run.checkpoint and isinstance(last, int) and 0 <= last <= run.step:
            done = f"{run.checkpoint} stands at step {run.step}, the last of this run: pass a higher --max_steps"
            if options.resume == "auto":
                log.info("nothing to do: %s", done)
                return 0
            raise UserError(done)
        check_config(run.config, trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint, trust=options.trust_config)
        check_paths(run.config)
        pl.seed_everything(run.settings.seed, verbose=False)
        return fit_and_test(run, options, signals)
    except MisconfigurationException as error:
        raise UserError(first_line(error)) from error


def begin(options: Options) -> Run:
    """The run's folder, the checkpoint to resume, the settings and the merged config: new, or a former run's."""
    flags = {f"lightning.trainer.{name}": value for name, value in options.trainer.items()}
    given = {"seed": options.seed, "scale_lr": options.scale_lr, "project": options.project, "logger": options.logger}
    given = {key: value for key, value in given.items() if value is not None}
    if options.seed is not None:
        checks.whole_number("--seed", options.seed, 0, 2**32 - 1)
    name = (options.name or Path(options.base[0] if options.base else "").stem) + options.postfix
    logdir = options.logdir or "logs"
    target = options.resume
    if target == "auto":
        if not name:
            raise UserError("--resume auto finds a run by its name: give --name, or --base, whose first file names it")
        target = RunFolder.newest_of_name(logdir, name)
    elif target and (options.name or options.postfix or options.logdir):
        raise UserError("--name, --postfix and --logdir place a new run; one that is resumed keeps its folder")
    if target:
        folder, checkpoint = RunFolder.to_resume(target)
        saved = folder.saved_config()
        settings = RunSettings(**{**vars(folder.saved_settings()), **given})
        config = load_config([str(saved), *options.base], options.overrides, flags)
        check_changes(load_config([saved]), config)
        return Run(folder, settings, config, checkpoint, checkpoint_step(checkpoint))
    if not options.base:
        raise UserError("no config: python main.py --base CONFIG.yaml (--help explains all)")
    config = load_config(options.base, options.overrides, flags)
    defaults: dict[str, Any] = {"seed": 23, "scale_lr": False, "project": "stablesr-edge", "logger": "wandb"}
    settings = RunSettings(name=name, wandb_id=new_wandb_id(), **{**defaults, **given})
    return Run(RunFolder.new(logdir, name), settings, config)


def fit_and_test(run: Run, options: Options, signals: StopSignals) -> int:
    """Build all parts, each from those before it, train, and summarise."""
    save = rank_zero_only(lambda *_: run.folder.save(run.config.to_yaml(), run.settings))
    loggers = make_loggers(
        run.settings.logger,
        run.folder.path,
        project=run.settings.project,
        wandb_id=run.settings.wandb_id,
        resumed_at=run.step if run.checkpoint else None,
        config=run.config.values,
    )
    keep_last = KeepLast(run.folder.last_checkpoint, signals)
    # A former run's config stays the newest one until this one is seen to fit its checkpoint.
    callbacks: list[Callback] = [LambdaCallback(on_train_start=save)] if run.checkpoint else []
    trainer = build_trainer(run, [*callbacks, *yaml_callbacks(run.config), keep_last], loggers)
    data = build_data(run.config, run.settings, "data")
    data.check_sizes(trainer.world_size)
    model = build_training_model(run, trainer)
    if not run.checkpoint:
        save()
    log.info("run folder: %s%s", run.folder.path, f" (resumed at step {run.step})" if run.checkpoint else "")
    started = time.monotonic()
    try:
        if options.train:
            trainer.fit(model, datamodule=data, ckpt_path=run.checkpoint, weights_only=True)
        if signals.asked is not None:
            raise Interrupted  # by a signal that came after the last step
        if not options.no_test:
            test(run, model, None if options.train else run.checkpoint)
    except Interrupted:
        return stopped(trainer, run, signals, f"stopped after step {trainer.global_step} with everything saved")
    except SystemExit:  # Lightning's answer to KeyboardInterrupt
        if signals.asked is None:
            raise
        return stopped(trainer, run, signals, "stopped at once: the newest steps are lost")
    except (RuntimeError, ValueError) as error:
        if told := explained(error, run.checkpoint):
            raise told from error
        raise
    finally:
        finish_loggers(loggers)
    summarise(trainer, run.folder, time.monotonic() - started)
    return 0


def explained(error: Exception, checkpoint: Path | None) -> UserError | None:
    """The user's error that Lightning means by a bare one; None where it is something else."""
    text = f"{error} {error.__cause__}"  # of which the latter knows the signal that a worker died of
    if "shared memory" in text or "Bus error" in text:
        return UserError(
            "the loader's workers are out of shared memory: see how full /dev/shm is (docker run --shm-size=8g makes "
            "it larger), or lower data.params.num_workers; then --resume the run"
        )
    if "DataLoader worker" in text:
        return UserError(
            f"a worker of the loader died ({first_line(error):.160}): most often memory ran out; lower "
            "data.params.num_workers or data.params.batch_size, then --resume the run"
        )
    if any(known in text for known in ("Connection closed by peer", "Connection reset by peer", "Broken pipe")):
        return UserError("another process of this training has ended: its own message says why; then --resume the run")
    if "loading state_dict" in text or "parameter group" in text:
        return UserError(
            f"{checkpoint} does not fit the config's model: {first_line(error, 1):.200}; to start anew "
            f"from its weights, pass model.params.ckpt_path={checkpoint}"
        )
    if any(known in text for known in ("val_check_interval", "Early stopping conditioned", "ModelCheckpoint(monitor")):
        return UserError(f"lightning: {first_line(error)}")
    return None


def test(run: Run, model: pl.LightningModule, checkpoint: Path | None) -> None:
    """Where there is a `test_data:` block with pictures, tell validation's losses on them."""
    if run.config.get("test_data") is None:
        return
    try:
        check_paths(run.config, ["test_data"])
    except UserError as error:
        log.warning("no test pass: %s", first_line(error))
        return
    params = {key: value for key, value in run.config.get("test_data.params", {}).items() if key != "train"}
    values = {**run.config.values, "test_data": {**run.config.values["test_data"], "params": params}}
    data = build_data(Config(values, run.config.sources), run.settings, "test_data")
    # A trainer of its own, without loggers: these losses are not points of the validation curve.
    arguments = trainer_arguments(run.config) | {"enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(**arguments, logger=False, default_root_dir=run.folder.path, use_distributed_sampler=False)
    (losses,) = trainer.validate(model, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    log.info("test_data: %s", ", ".join(f"{key} {value:.4g}" for key, value in losses.items()))


def stopped(trainer: pl.Trainer, run: Run, signals: StopSignals, how: str) -> int:
    """What is said and returned after a signal."""
    signals.ignore()  # an impatient second one must not spoil the rest
    save_curves(run.folder)
    command = f"python {shlex.quote(sys.argv[0])} --resume {shlex.quote(str(run.folder.path))}"
    saved = run.folder.last_checkpoint.exists()
    resume = f"go on with: {command}" if saved else "there is no checkpoint yet to go on from"
    return tell(how, resume, status=signals.exit_status())


@rank_zero_only
def summarise(trainer: pl.Trainer, folder: RunFolder, seconds: float) -> None:
    """The table at the end."""
    curves = save_curves(folder)
    minutes = f"{int(seconds // 60)} min {int(seconds % 60)} s"
    rows = {"steps": str(trainer.global_step), "time": minutes}
    rows |= {f"last {key}": f"{value:.5g}" for key, value in last_losses(trainer).items()}
    rows["run folder"] = str(folder.path)
    places = {
        "last.ckpt": folder.last_checkpoint,
        "metrics.csv": folder.path / "metrics.csv",
        "loss curves": curves,
        "images": folder.path / "images",
        "W&B": wandb_folder(trainer.loggers),
    }
    rows |= {name: str(place) for name, place in places.items() if place and place.exists()}
    for name, value in rows.items():
        log.info("%-15s %s", name, value)
    for probe in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it, and declares it not
        if isinstance(probe, EdgeProbe) and probe.end:
            log.info("%s", probe.report())


@rank_zero_only
def save_curves(folder: RunFolder) -> Path | None:
    """Draw metrics.csv."""
    picture = folder.path / "loss_curves.png"
    return picture if save_loss_curves(read_metrics(folder.path / "metrics.csv"), picture) else None


def quiet_lightning() -> None:
    """Of Lightning's messages, only what matters."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for known in (".*LeafSpec.*", ".*ModelCheckpoint with manual optimization.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", message=known)
