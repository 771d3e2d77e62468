"""The parts of a training run, each built from its config and from the parts before it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from basicsr.utils import checks
from basicsr.utils.errors import UserError, fields_named, first_line
from ldm.config import TOP_LEVEL, Config
from ldm.data.datamodule import DataModuleFromConfig
from ldm.models.build import build_model
from ldm.run_folder import RunFolder, RunSettings
from ldm.training.callbacks.checkpoint_io import AtomicCheckpointIO
from ldm.training.callbacks.checkpoints import StepCheckpoint
from ldm.training.callbacks.edge_strength import EdgeStrength
from ldm.training.callbacks.learning_rate import UseLearningRate
from ldm.training.callbacks.progress import StepProgress
from ldm.training.callbacks.skip_not_finite import SkipNotFinite
from ldm.training.sharded import ShardedStrategy
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


def yaml_callbacks(config: Config) -> list[Callback]:
    """The callbacks that `lightning.callbacks` describes.

    Raises:
        UserError: one that is not a callback, or an argument out of range.
    """
    callbacks: list[Callback] = []
    for name, block in config.get("lightning.callbacks", {}).items():
        with fields_named(lambda field, name=name: f"lightning.callbacks.{name}.params.{field}"):  # type: ignore[misc]  # mypy infers no lambda with a default
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
            callbacks=[UseLearningRate(), EdgeStrength(), *callbacks[:-1], checkpoint, callbacks[-1]],
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
    if arguments.get("strategy") == "fsdp":
        arguments["strategy"] = ShardedStrategy()  # Lightning's own of that name knows neither our model nor CPUs
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


def build_data(config: Config, settings: RunSettings, block: str, *, set_up: bool = True) -> DataModuleFromConfig:
    """The data module of a top-level block, with what it needs from elsewhere in the config, and its data sets."""

    def name(field: str) -> str:
        return field if field.partition(".")[0] in TOP_LEVEL else f"{block}.params.{field}"

    with fields_named(name):
        data: DataModuleFromConfig = instantiate_from_config(
            config.values[block],
            degradation=config.get("degradation"),
            sf=config.get("sf", 4),
            use_usm=config.get("model.params.use_usm", False),
            random_size=config.get("model.params.random_size", False),
            seed=settings.seed,
        )
        if set_up:
            data.setup()
    return data


def build_training_model(run: Run, trainer: pl.Trainer) -> pl.LightningModule:
    """The run's model with its learning rate: base_learning_rate, scaled where --scale_lr asks for it."""
    rate, text = base_learning_rate(run.config), ""
    if run.settings.scale_lr:
        batch, accumulate = run.config.get("data.params.batch_size"), trainer.accumulate_grad_batches
        text = f" = {rate:g} (base) x {trainer.world_size} (processes) x {batch} (batch) x {accumulate} (accumulation)"
        rate *= trainer.world_size * batch * accumulate
    model: pl.LightningModule = build_model(run.config, learning_rate=rate)
    if task := task_at_size(run.config):
        log.info("%s", task)
    log.info("learning rate %g%s, on %d x %s", rate, text, trainer.world_size, trainer.strategy.root_device.type)
    return model


def task_at_size(config: Config) -> str | None:
    """What a config with `sf: 1` trains, which may not be what is meant; None for all others.

    Its picture size says nothing of edges, and the edge fork's file for edge to picture, of which only the fork's code
    knew what it trains, has no other mark.
    """
    channels = config.get("model.params.structcond_stage_config.params.in_channels", 4)
    if config.get("sf", 4) != 1 or config.get("model.params.edge_condition") or channels != 4:
        return None
    return (
        "sf is 1: trains to restore degraded pictures at their own size; for edge to picture, where a Canny map takes "
        "the degraded picture's place, set model.params.edge_condition={use: alone, source: gt}"
    )


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
