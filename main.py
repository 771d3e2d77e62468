"""Train: `python main.py --base A.yaml [B.yaml ...] [key.path=value ...]`. `--help` explains all."""

import errno
import logging
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.warnings import PossibleUserWarning
from pytorch_lightning.callbacks import Callback, LambdaCallback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from basicsr.utils import checks
from basicsr.utils.errors import UserError, first_line
from ldm.callbacks import (
    EdgeProbe,
    ImageLogger,
    Interrupted,
    KeepLast,
    StepCheckpoint,
    StepProgress,
    WholeFiles,
    last_losses,
)
from ldm.callbacks_validation import SampleMetrics
from ldm.cli import Options, parse_arguments
from ldm.config import Config, check_config, check_paths, load_config
from ldm.console import speak
from ldm.data.datamodule import DataModuleFromConfig
from ldm.loggers import CHOICES, finish_loggers, is_first_process, make_loggers, read_metrics, wandb_folder
from ldm.models import build
from ldm.plots import save_loss_curves
from ldm.run_folder import RunFolder, RunSettings, checkpoint_step, new_wandb_id
from ldm.util import instantiate_from_config

# What YAMLs call main.*: defined elsewhere, for this file runs as __main__ and would make a second class of each name.
__all__ = ["DataModuleFromConfig", "EdgeProbe", "ImageLogger", "SampleMetrics", "main"]

log = logging.getLogger("main")

# Weights stay in 32 bits: the pairs do, and what trains in pure half precision loses its small updates.
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16", 32, 16)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 after bad input, 130 after Ctrl-C."""
    set_up_output()
    try:
        return run(parse_arguments(argv, pl.Trainer, CHOICES))
    except UserError as error:
        return tell(*(f"error: {line}" for line in str(error).splitlines()), status=2)
    except MisconfigurationException as error:
        return tell(f"error: {first_line(error)}", status=2)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return tell(f"error: {error.filename or 'a file could not be written'}: {error.strerror}", status=2)
    except KeyboardInterrupt:
        return tell("interrupted", status=130)


def run(options: Options) -> int:
    """Parse, build, fit."""
    folder, checkpoint, settings, config = begin(options)
    check_config(config, trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint)
    check_paths(config)
    step = checkpoint_step(checkpoint) if checkpoint else 0
    if checkpoint and 0 <= config.get("lightning.trainer.max_steps", -1) <= step:
        raise UserError(f"{checkpoint} stands at step {step}, the last of this run: pass a higher --max_steps")
    pl.seed_everything(settings.seed, verbose=False)
    keep_last = KeepLast(folder.last_checkpoint)
    trainer = build_trainer(config, folder, keep_last)
    data = build_data(config, settings, "data")
    data.setup()
    data.check_sizes(trainer.world_size)
    model = build_model(config, settings, trainer)
    save = rank_zero_only(lambda *_: folder.save(config.to_yaml(), settings))
    if checkpoint:  # a former run's config stays the newest one until this one is seen to fit its checkpoint
        trainer.callbacks.append(LambdaCallback(on_train_start=save))  # type: ignore[attr-defined]
    else:
        save()
    trainer.loggers = make_loggers(
        settings.logger,
        folder.path,
        name=folder.path.name,
        project=settings.project,
        wandb_id=settings.wandb_id,
        resumed=checkpoint is not None,
        config=config.values,
    )
    log.info("run folder: %s%s", folder.path, f" (resumed at step {step})" if checkpoint else "")
    started = time.monotonic()
    try:
        if options.train:
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if not options.no_test:
            test(trainer, model, config, settings, None if options.train else checkpoint)
    except Interrupted:
        return stopped(trainer, folder, f"stopped after step {trainer.global_step} with everything saved")
    except SystemExit:  # Lightning's answer to KeyboardInterrupt
        if not keep_last.asked:
            raise
        return stopped(trainer, folder, "stopped at once: the newest steps are lost")
    except (RuntimeError, ValueError) as error:
        if told := explained(error, checkpoint):
            raise told from error
        raise
    finally:
        finish_loggers(trainer.loggers)
    summarise(trainer, folder, time.monotonic() - started)
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


def begin(options: Options) -> tuple[RunFolder, Path | None, RunSettings, Config]:
    """The run's folder, the checkpoint to resume, the settings and the merged config: new, or a former run's."""
    flags = {f"lightning.trainer.{name}": value for name, value in options.trainer.items()}
    given = {"seed": options.seed, "scale_lr": options.scale_lr, "project": options.project, "logger": options.logger}
    given = {key: value for key, value in given.items() if value is not None}
    if options.seed is not None:
        checks.whole_number("--seed", options.seed, 0, 2**32 - 1)
    if options.resume:
        if options.name or options.postfix:
            raise UserError("--name and --postfix name a new run; one that is resumed keeps its folder")
        folder, checkpoint = RunFolder.to_resume(options.resume)
        files = [str(folder.saved_config()), *options.base]
        settings = RunSettings(**{**vars(folder.saved_settings()), **given})
        return folder, checkpoint, settings, load_config(files, options.overrides, flags)
    if not options.base:
        raise UserError("no config: python main.py --base CONFIG.yaml (--help explains all)")
    config = load_config(options.base, options.overrides, flags)
    name = (options.name or Path(options.base[0]).stem) + options.postfix
    defaults: dict[str, Any] = {"seed": 23, "scale_lr": False, "project": "stablesr-edge", "logger": "wandb"}
    settings = RunSettings(name=name, wandb_id=new_wandb_id(), **{**defaults, **given})
    return RunFolder.new(options.logdir, name), None, settings, config


def build_trainer(config: Config, folder: RunFolder, keep_last: KeepLast) -> pl.Trainer:
    """The Trainer that `lightning:` describes, with our callbacks and no logger yet."""
    arguments: dict[str, Any] = {"num_sanity_val_steps": 0, **config.get("lightning.trainer", {})}
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        if arguments.get(name) is not None:
            checks.whole_number(f"lightning.trainer.{name}", arguments[name], 1)
    if (arguments.get("precision") or 32) not in PRECISIONS:
        known = ", ".join(map(str, PRECISIONS))
        raise UserError(f"lightning.trainer.precision is {arguments['precision']!r}: choose one of {known}")
    # Around a hundred points for a short run's curves; every 50th step of a long one.
    arguments.setdefault("log_every_n_steps", min(50, max(1, arguments.get("max_steps", -1) // 100)))
    checkpoints: dict[str, Any] = {"save_last": True, "enable_version_counter": False}
    checkpoints |= config.get("lightning.modelcheckpoint.params", {})
    checkpoints.setdefault("dirpath", str(folder.last_checkpoint.parent))
    if "filename" not in checkpoints:
        checkpoints |= {"filename": "step{step:06d}", "auto_insert_metric_name": False}
    # What monitors a metric saves after each validation, which is when there is a new value: Lightning's default.
    if not {"every_n_train_steps", "every_n_epochs", "train_time_interval", "monitor"} & set(checkpoints):
        checkpoints["every_n_train_steps"] = 1000
    callbacks: list[Callback] = [
        instantiate_from_config(callback) for callback in config.get("lightning.callbacks", {}).values()
    ]
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise UserError(f"lightning.callbacks: {callback!r} is no callback of Lightning's")
    if arguments.get("enable_progress_bar") is not False:
        callbacks.append(StepProgress())
    try:
        return pl.Trainer(
            **arguments,
            callbacks=[*callbacks, keep_last, StepCheckpoint(**checkpoints)],
            logger=False,
            plugins=[WholeFiles()],
            default_root_dir=folder.path,
            use_distributed_sampler=False,  # the data module's own sampler deals to the ranks
            enable_model_summary=arguments.pop("enable_model_summary", False),
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"lightning: the trainer cannot be built: {first_line(error)}") from error


def build_data(config: Config, settings: RunSettings, block: str) -> DataModuleFromConfig:
    """The data module of a top-level block, with what it needs from elsewhere in the config."""
    return instantiate_from_config(
        config.values[block],
        degradation=config.get("degradation"),
        sf=config.get("sf", 4),
        use_usm=config.get("model.params.use_usm", False),
        random_size=config.get("model.params.random_size", False),
        seed=settings.seed,
    )


def build_model(config: Config, settings: RunSettings, trainer: pl.Trainer) -> pl.LightningModule:
    """The model with its learning rate: base_learning_rate, scaled where --scale_lr asks for it."""
    base = config.get("model.base_learning_rate")
    if isinstance(base, bool) or not isinstance(base, (int, float)) or not 0 < base < float("inf"):
        raise UserError(f"model.base_learning_rate is {base!r}: it must be a number above 0, such as 5.0e-05")
    rate, text = float(base), ""
    if settings.scale_lr:
        batch, accumulate = config.get("data.params.batch_size"), trainer.accumulate_grad_batches
        rate *= trainer.world_size * batch * accumulate
        text = f" = {base:g} (base) x {trainer.world_size} (processes) x {batch} (batch) x {accumulate} (accumulation)"
    model: pl.LightningModule = build.build_model(config, learning_rate=rate)
    log.info("learning rate %g%s, on %d x %s", rate, text, trainer.world_size, trainer.strategy.root_device.type)
    return model


def test(
    trainer: pl.Trainer, model: pl.LightningModule, config: Config, settings: RunSettings, checkpoint: Path | None
) -> None:
    """Where there is a `test_data:` block with pictures, print validation's losses on them."""
    if config.get("test_data") is None:
        return
    try:
        check_paths(config, ["test_data"])
    except UserError as error:
        log.warning("no test pass: %s", first_line(error))
        return
    params = {key: value for key, value in config.get("test_data.params", {}).items() if key != "train"}
    values = {**config.values, "test_data": {**config.values["test_data"], "params": params}}
    data = build_data(Config(values, config.sources), settings, "test_data")
    data.setup()
    loggers, trainer.loggers = trainer.loggers, []  # its losses are no points of the validation curve
    (losses,) = trainer.validate(model, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    trainer.loggers = loggers
    log.info("test_data: %s", ", ".join(f"{key} {value:.4g}" for key, value in losses.items()))


def stopped(trainer: pl.Trainer, folder: RunFolder, how: str) -> int:
    """What is said and returned after Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # let an impatient second one not spoil what is written now
    save_curves(folder)
    if not trainer.is_global_zero:
        return 0  # Lightning takes another status of a further process for a crash, and kills the first one
    command = f"python {shlex.quote(sys.argv[0])} --resume {shlex.quote(str(folder.path))}"
    resume = f"go on with: {command}" if folder.last_checkpoint.exists() else "there is no checkpoint yet to go on from"
    return tell(how, resume, status=130)


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
    print(*(f"{name:15} {value}" for name, value in rows.items()), sep="\n")
    for probe in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(probe, EdgeProbe) and probe.end:
            print(probe.report())


@rank_zero_only
def save_curves(folder: RunFolder) -> Path | None:
    """Draw metrics.csv."""
    picture = folder.path / "loss_curves.png"
    return picture if save_loss_curves(read_metrics(folder.path / "metrics.csv"), picture) else None


def set_up_output() -> None:
    """Our own messages as plain lines on the first process; of the libraries, only what matters."""
    speak("main", "ldm", "basicsr", level=logging.INFO if is_first_process() else logging.ERROR, stream="stdout")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    for known in (".*LeafSpec.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", message=known)


def tell(*lines: str, status: int) -> int:
    """Print lines to the user once, whatever the number of processes, and pass the exit status on."""
    if is_first_process():
        print("\n".join(lines), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
