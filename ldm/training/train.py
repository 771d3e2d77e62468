"""A training run from its parsed command line to its end."""

import logging
import shlex
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.callbacks import Callback, LambdaCallback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from basicsr.utils import checks
from basicsr.utils.errors import UserError, fields_named, first_line
from ldm.config import Config, check_config, check_paths, load_config
from ldm.data.datamodule import DataModuleFromConfig
from ldm.training.callbacks.checkpoint_io import AtomicCheckpointIO
from ldm.training.callbacks.checkpoints import Interrupted, KeepLast, StepCheckpoint
from ldm.training.callbacks.edge_probe import EdgeProbe
from ldm.training.callbacks.learning_rate import UseLearningRate
from ldm.training.callbacks.progress import StepProgress, last_losses
from ldm.training.callbacks.skip_not_finite import SkipNotFinite
from ldm.training.cli import INTERRUPTED, REQUEUE, Options, tell
from ldm.training.loggers import finish_loggers, make_loggers, read_metrics, wandb_folder
from ldm.training.plots import save_loss_curves
from ldm.training.resume import check_changes
from ldm.training.run_folder import RunFolder, RunSettings, checkpoint_step, new_wandb_id
from ldm.util import instantiate_from_config

log = logging.getLogger(__name__)

# Weights stay in 32 bits: the pairs do, and what trains in pure half precision loses its small updates.
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16", 32, 16)


@dataclass(frozen=True)
class Run:
    """A run before anything heavy is built."""

    folder: RunFolder
    settings: RunSettings
    config: Config
    checkpoint: Path | None = None  # to go on from
    step: int = 0  # that it stands at


def train(options: Options) -> int:
    """Run a parsed command line: check, build, fit; returns the exit status.

    Raises:
        UserError: what the user can mend.
    """
    quieten_libraries()
    try:
        run = begin(options)
        if 0 <= run.config.get("lightning.trainer.max_steps", -1) <= run.step and run.checkpoint:
            done = f"{run.checkpoint} stands at step {run.step}, the last of this run: pass a higher --max_steps"
            if options.resume == "auto":
                log.info("nothing to do: %s", done)
                return 0
            raise UserError(done)
        check_config(run.config, trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint)
        check_paths(run.config)
        pl.seed_everything(run.settings.seed, verbose=False)
        return fit_and_test(run, options)
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


def fit_and_test(run: Run, options: Options) -> int:
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
    keep_last = KeepLast(run.folder.last_checkpoint)
    # A former run's config stays the newest one until this one is seen to fit its checkpoint.
    callbacks: list[Callback] = [LambdaCallback(on_train_start=save)] if run.checkpoint else []
    trainer = build_trainer(run, [*callbacks, *yaml_callbacks(run.config), keep_last], loggers)
    data = build_data(run.config, run.settings, "data")
    data.setup()
    data.check_sizes(trainer.world_size)
    model = build_model_of(run, trainer)
    if not run.checkpoint:
        save()
    log.info("run folder: %s%s", run.folder.path, f" (resumed at step {run.step})" if run.checkpoint else "")
    started = time.monotonic()
    try:
        if options.train:
            trainer.fit(model, datamodule=data, ckpt_path=run.checkpoint, weights_only=True)
        if not options.no_test:
            test(run, model, None if options.train else run.checkpoint)
    except Interrupted:
        return stopped(run, keep_last, f"stopped after step {trainer.global_step} with everything saved")
    except SystemExit:  # Lightning's answer to KeyboardInterrupt
        if keep_last.asked is None:
            raise
        return stopped(run, keep_last, "stopped at once: the newest steps are lost")
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
    text = str(error)
    if "loading state_dict" in text or "parameter group" in text:
        return UserError(
            f"{checkpoint} does not fit the config's model: {first_line(error, 1):.200}; to start anew "
            f"from its weights, pass model.params.ckpt_path={checkpoint}"
        )
    if any(known in text for known in ("val_check_interval", "Early stopping conditioned", "ModelCheckpoint(monitor")):
        return UserError(f"lightning: {first_line(error)}")
    return None


def yaml_callbacks(config: Config) -> list[Callback]:
    """The callbacks that `lightning.callbacks` describes.

    Raises:
        UserError: one that is not a callback, or an argument out of range.
    """
    callbacks: list[Callback] = []
    for name, block in config.get("lightning.callbacks", {}).items():
        with fields_named(lambda field, name=name: f"lightning.callbacks.{name}.params.{field}"):  # type: ignore[misc]
            callback = instantiate_from_config(block)
        if not isinstance(callback, Callback):
            raise UserError(f"lightning.callbacks.{name}: {callback!r} is not a callback of Lightning's")
        callbacks.append(callback)
    return callbacks


def build_trainer(run: Run, callbacks: list[Callback], loggers: list[Logger]) -> pl.Trainer:
    """The Trainer that `lightning:` describes, with our callbacks."""
    arguments = trainer_arguments(run.config)
    if arguments.get("enable_progress_bar") is not False:
        callbacks = [StepProgress(), *callbacks]
    if not any(isinstance(callback, SkipNotFinite) for callback in callbacks):
        callbacks = [SkipNotFinite(), *callbacks]
    checkpoint = StepCheckpoint(**checkpoint_arguments(run.config, run.folder))
    try:
        return pl.Trainer(
            **arguments,
            # The last two save: KeepLast what StepCheckpoint knows.
            callbacks=[UseLearningRate(), *callbacks[:-1], checkpoint, callbacks[-1]],
            logger=loggers,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=run.folder.path,
            use_distributed_sampler=False,  # the data module's own sampler deals to the ranks
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"lightning: the trainer cannot be built: {first_line(error)}") from error


def trainer_arguments(config: Config) -> dict[str, Any]:
    """The Trainer's arguments as `lightning.trainer` gives them, over our defaults.

    Raises:
        UserError: a value out of range.
    """
    defaults = {"num_sanity_val_steps": 0, "enable_model_summary": False}
    arguments: dict[str, Any] = {**defaults, **config.get("lightning.trainer", {})}
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        if arguments.get(name) is not None:
            checks.whole_number(f"lightning.trainer.{name}", arguments[name], 1)
    if (arguments.get("precision") or 32) not in PRECISIONS:
        known = ", ".join(map(str, PRECISIONS))
        raise UserError(f"lightning.trainer.precision is {arguments['precision']!r}: choose one of {known}")
    # Around a hundred points for a short run's curves; every 50th step of a long one.
    arguments.setdefault("log_every_n_steps", min(50, max(1, arguments.get("max_steps", -1) // 100)))
    return arguments


def checkpoint_arguments(config: Config, folder: RunFolder) -> dict[str, Any]:
    """ModelCheckpoint's arguments as `lightning.modelcheckpoint.params` gives them, over our defaults."""
    arguments: dict[str, Any] = {"save_last": True, "enable_version_counter": False}
    arguments |= config.get("lightning.modelcheckpoint.params", {})
    arguments.setdefault("dirpath", str(folder.last_checkpoint.parent))
    if "filename" not in arguments:
        arguments |= {"filename": "step{step:06d}", "auto_insert_metric_name": False}
    # What monitors a metric saves after each validation, which is when there is a new value: Lightning's default.
    if not {"every_n_train_steps", "every_n_epochs", "train_time_interval", "monitor"} & set(arguments):
        arguments["every_n_train_steps"] = 1000
    return arguments


def build_data(config: Config, settings: RunSettings, block: str) -> DataModuleFromConfig:
    """The data module of a top-level block, with what it needs from elsewhere in the config."""
    with fields_named(lambda field: field if "." in field else f"{block}.params.{field}"):
        data: DataModuleFromConfig = instantiate_from_config(
            config.values[block],
            degradation=config.get("degradation"),
            sf=config.get("sf", 4),
            use_usm=config.get("model.params.use_usm", False),
            random_size=config.get("model.params.random_size", False),
            seed=settings.seed,
        )
    return data


def build_model_of(run: Run, trainer: pl.Trainer) -> pl.LightningModule:
    """The run's model with its learning rate: base_learning_rate, scaled where --scale_lr asks for it."""
    rate, text = base_learning_rate(run.config), ""
    if run.settings.scale_lr:
        batch, accumulate = run.config.get("data.params.batch_size"), trainer.accumulate_grad_batches
        text = f" = {rate:g} (base) x {trainer.world_size} (processes) x {batch} (batch) x {accumulate} (accumulation)"
        rate *= trainer.world_size * batch * accumulate
    block = dict(run.config.values["model"])
    block.pop("base_learning_rate", None)
    model: pl.LightningModule = instantiate_from_config(block)
    model.learning_rate = rate  # type: ignore[assignment]
    log.info("learning rate %g%s, on %d x %s", rate, text, trainer.world_size, trainer.strategy.root_device.type)
    return model


def base_learning_rate(config: Config) -> float:
    """The config's learning rate; YAML 1.1 reads 1e-5 as a text, which is taken as the number that it means.

    Raises:
        UserError: it is not a number above 0.
    """
    base = config.get("model.base_learning_rate")
    try:
        rate = float("nan") if isinstance(base, bool) else float(base)
    except (TypeError, ValueError):
        rate = float("nan")
    if not 0 < rate < float("inf"):
        raise UserError(f"model.base_learning_rate is {base!r}: it must be a number above 0, such as 5.0e-05")
    return rate


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
    data.setup()
    # A trainer of its own, without loggers: these losses are no points of the validation curve.
    arguments = trainer_arguments(run.config) | {"enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(**arguments, logger=False, default_root_dir=run.folder.path, use_distributed_sampler=False)
    (losses,) = trainer.validate(model, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    log.info("test_data: %s", ", ".join(f"{key} {value:.4g}" for key, value in losses.items()))


def stopped(run: Run, keep_last: KeepLast, how: str) -> int:
    """What is said and returned after a signal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # an impatient second one must not spoil the rest
        signal.signal(number, signal.SIG_IGN)
    save_curves(run.folder)
    if rank_zero_only.rank != 0:
        return 0  # Lightning takes another status of a further process for a crash, and kills the first one
    command = f"python {shlex.quote(sys.argv[0])} --resume {shlex.quote(str(run.folder.path))}"
    saved = run.folder.last_checkpoint.exists()
    resume = f"go on with: {command}" if saved else "there is no checkpoint yet to go on from"
    return tell(how, resume, status=INTERRUPTED if keep_last.asked in (None, signal.SIGINT) else REQUEUE)


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
    for probe in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(probe, EdgeProbe) and probe.end:
            log.info("%s", probe.report())


@rank_zero_only
def save_curves(folder: RunFolder) -> Path | None:
    """Draw metrics.csv."""
    picture = folder.path / "loss_curves.png"
    return picture if save_loss_curves(read_metrics(folder.path / "metrics.csv"), picture) else None


def quieten_libraries() -> None:
    """Of Lightning's messages, only what matters."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for known in (".*LeafSpec.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", message=known)
