"""`--check`: everything that is wrong with a config, at once and without weights, and what it would train."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint

from basicsr.data.degradation_pipeline import DegradationConfig
from basicsr.utils.errors import FieldError, UserError, did_you_mean, first_line
from ldm.config import TOP_LEVEL, Config, KeyPath, check_config, check_paths, without
from ldm.data.datamodule import DataModuleFromConfig
from ldm.training.build import (
    Run,
    base_learning_rate,
    build_data,
    checkpoint_arguments,
    task_at_size,
    trainer_arguments,
)
from ldm.training.callbacks.checkpoints import StepCheckpoint
from ldm.util import check_arguments, get_obj_from_str, instantiate_from_config

log = logging.getLogger(__name__)

# Options of the edge loss say nothing while its weight is 0; edges as a condition have nothing to do with it.
EDGE_LOSS, EDGE_CONDITION = "edge_loss_weight", "edge_condition"
VALIDATION_KEYS = ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches")


def check(run: Run, *, trust: bool) -> int:
    """Tell all problems of a run's config, and what it would train; returns the exit status, 2 where there are any."""
    logging.getLogger("ldm.models").setLevel(logging.ERROR)  # what is built here is not what will be trained
    problems = list(dict.fromkeys(all_problems(run, trust=trust)))
    for problem in problems:
        log.error("error: %s", problem)
    for name, value in summary(run.config):
        log.info("%-13s %s", name, value)
    log.info("%s", f"problems: {len(problems) or 'none'}")
    return 2 if problems else 0


def all_problems(run: Run, *, trust: bool) -> Iterator[str]:
    """A line for each. What is built is built without values (on PyTorch's meta device), and only where keys fit."""
    config = run.config
    keys = _told(lambda: check_config(config, trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint, trust=trust))
    paths = _told(lambda: check_paths(config, ["model", "data", "test_data"]))
    yield from keys
    yield from paths
    yield from _told(lambda: base_learning_rate(config))
    yield from contradictions(config)
    yield from without_effect(config)
    degradation = list(degradation_problems(config))
    yield from degradation
    if any("must be a mapping" in line or "`target:`" in line or "known packages" in line for line in keys):
        return  # there is nothing to build from
    config = Config(_fitting(config.values), config.sources)
    yield from _built(config, ("lightning", "trainer"), _trainer)
    path: KeyPath = ("lightning", "modelcheckpoint", "params")
    yield from _built(config, path, lambda values: StepCheckpoint(**checkpoint_arguments(values, run.folder)))
    for name in config.get("lightning.callbacks", {}):
        path = ("lightning", "callbacks", name)
        yield from _built(config, (*path, "params"), partial(_instance, path=path))
    yield from _built(config, ("model", "params"), partial(_instance, path=("model",)))
    for block in ("data", "test_data"):
        if config.get(block) is not None:
            build = partial(_data, run=run, block=block, set_up=not paths)
            lines = _built(config, (block, "params"), build)
            yield from (line for line in lines if not degradation or "degradation" not in line)


def degradation_problems(config: Config) -> Iterator[str]:
    """Keys of the `degradation:` block that are unknown or out of range."""
    block = config.get("degradation")
    if not isinstance(block, Mapping):
        return
    known = {field.name for field in fields(DegradationConfig)} - {"sf", "use_usm"}
    for key in block:
        if key not in known:
            yield str(config.error(("degradation", str(key)), f"unknown key{did_you_mean(str(key), known)}"))
    fitting = config.values | {"degradation": {key: value for key, value in block.items() if key in known}}
    yield from _built(
        Config(fitting, config.sources),
        ("degradation",),
        lambda values: DegradationConfig.from_mapping(values.get("degradation"), sf=config.get("sf", 4), use_usm=True),
    )


def contradictions(config: Config) -> Iterator[str]:
    """Settings that cannot both be meant."""
    trainer = config.get("lightning.trainer", {})
    for unit in ("steps", "epochs"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if isinstance(least, int) and isinstance(most, int) and 0 <= most < least:
            yield str(config.error(("lightning", "trainer", f"min_{unit}"), f"is {least}, above max_{unit}={most}"))
    monitor = config.get("lightning.modelcheckpoint.params.monitor")
    if isinstance(monitor, str) and monitor.startswith("val/") and not _validates(config):
        path: KeyPath = ("lightning", "modelcheckpoint", "params", "monitor")
        yield str(config.error(path, f"is {monitor}, and there is no validation: give data.params.validation"))
    queue, batch = config.get("data.params.train.params.queue_size"), config.get("data.params.batch_size")
    if isinstance(queue, int) and isinstance(batch, int) and batch > 0 and queue % batch:
        at = ("data", "params", "train", "params", "queue_size")
        yield str(config.error(at, f"is {queue}, not a multiple of data.params.batch_size={batch}"))
    if pools_latents(config) and config.get("model.params.random_size"):
        path = ("model", "params", "random_size")
        yield str(config.error(path, "does not go with pool: latents, whose pairs are all of one size"))
    edge_errors = config.get("model.params.edge_loss_type"), config.get("model.params.edge.loss_type")
    if "adversarial" in edge_errors and trainer.get("strategy") == "fsdp":
        path = ("lightning", "trainer", "strategy")
        yield str(config.error(path, "is fsdp, which cannot split edge_loss_type adversarial's discriminator: use ddp"))


def without_effect(config: Config) -> Iterator[str]:
    """Settings that do nothing in this combination."""
    model: Mapping[str, Any] = config.get("model.params", {})
    if model.get(EDGE_LOSS, 0) == 0:
        for key in model:
            if key == "edge" or (key.startswith("edge_") and key not in (EDGE_LOSS, EDGE_CONDITION)):
                yield _nothing(config, ("model", "params", key), f"model.params.{EDGE_LOSS} is 0")
    if pools_latents(config) and config.get("data.params.train.params.queue_size") == 0:
        yield _nothing(config, ("model", "params", "pool"), "data.params.train.params.queue_size is 0")
    trainer = config.get("lightning.trainer", {})
    if "gradient_clip_algorithm" in trainer and not trainer.get("gradient_clip_val"):
        path: KeyPath = ("lightning", "trainer", "gradient_clip_algorithm")
        yield _nothing(config, path, "lightning.trainer.gradient_clip_val is not set")
    for key in VALIDATION_KEYS if not config.get("data.params.validation") else ():
        if key in trainer:
            yield _nothing(config, ("lightning", "trainer", key), "there is no data.params.validation")
    for key in ("limit_test_batches", "limit_predict_batches"):
        if key in trainer:
            yield _nothing(config, ("lightning", "trainer", key), "training neither tests nor predicts")


def pools_latents(config: Config) -> bool:
    """Whether `pool: latents` is said, flat or in the block."""
    return "latents" in (config.get("model.params.pool"), config.get("model.params.compute.pool"))


def summary(config: Config) -> Iterator[tuple[str, str]]:
    """What would be trained, by name."""
    trainer, data, model = (config.get(key, {}) for key in ("lightning.trainer", "data.params", "model.params"))
    if not all(isinstance(block, Mapping) for block in (trainer, data, model)):
        return
    steps, epochs = trainer.get("max_steps", -1), trainer.get("max_epochs")
    limits = [f"{steps} steps"] if steps not in (-1, None) else []
    yield "length", ", ".join(limits + ([f"{epochs} epochs"] if epochs else [])) or "no limit"
    accumulate, devices = trainer.get("accumulate_grad_batches", 1), trainer.get("devices", "auto")
    yield "batch", f"{data.get('batch_size')} pictures, accumulated {accumulate} times, devices: {devices}"
    for role in ("train", "validation"):
        params = (data.get(role) or {}).get("params") or {}
        yield role, f"{params.get('gt_path', 'none')}"
    weight = model.get(EDGE_LOSS, 0)
    main_loss = f"{model.get('loss_type', 'l2')} on {model.get('parameterization', 'eps')}"
    yield "losses", f"{main_loss}, edge loss weight {weight}{_meaning(weight, model)}"
    if task := task_at_size(config):
        yield "task", task
    yield "learning rate", f"{config.get('model.base_learning_rate')}"
    yield "weights", f"{model.get('ckpt_path') or 'random'}"


def _meaning(weight: object, model: Mapping[str, Any]) -> str:
    """What a weight says about its strength, where it can be told before training."""
    if str(weight).startswith("auto:"):
        return f": its gradient is held at {str(weight).removeprefix('auto:')} of the main loss's"
    if not weight:
        return ""
    every = model.get("edge_grad_ratio_every", 100)
    told = (
        f"train/edge_grad_ratio tells it every {every} steps" if every else "edge_grad_ratio_every: 100 would tell it"
    )
    return f": how hard that pulls depends on the model ({told}; auto:0.3 sets it)"


def _validates(config: Config) -> bool:
    return bool(config.get("data.params.validation")) and config.get("lightning.trainer.limit_val_batches", 1) != 0


def _nothing(config: Config, path: KeyPath, why: str) -> str:
    return str(config.error(path, f"has no effect: {why}"))


def _told(run: Callable[[], object]) -> list[str]:
    """The lines of the user's error that `run` raises, [] where it raises none."""
    try:
        run()
    except UserError as error:
        return str(error).splitlines()
    return []


def _built(config: Config, path: KeyPath, build: Callable[[Config], object]) -> Iterator[str]:
    """The problems of a block's values: what its constructor refuses is left out, until it refuses nothing more."""
    left_out = False
    while True:
        try:
            build(config)
            return
        except FieldError as error:
            at = tuple(error.field.split("."))
            at = at if at[0] in TOP_LEVEL else (*path, *at)
            yield str(config.error(at, error.problem))
            rest = without(config.values, at)
            if rest == config.values:
                return
            config, left_out = Config(rest, config.sources), True
        except (UserError, MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            if not left_out:  # else it may lack what was left out
                yield f"{config.place(path)}: {'.'.join(path)}: {first_line(error)}"
            return


def _instance(config: Config, path: KeyPath) -> object:
    """What the block at `path` names, without any file of weights."""
    block = dict(config.get(".".join(path)))
    block.pop("base_learning_rate", None)
    with torch.device("meta") if path == ("model",) else nullcontext():
        return instantiate_from_config(_without_weights(block))


def _without_weights(node: Any) -> Any:
    """The same nested mappings with every ckpt_path null."""
    if isinstance(node, Mapping):
        return {key: None if key == "ckpt_path" else _without_weights(value) for key, value in node.items()}
    return node


def _trainer(config: Config) -> pl.Trainer:
    return pl.Trainer(**trainer_arguments(config), logger=False)


def _data(config: Config, run: Run, block: str, *, set_up: bool) -> DataModuleFromConfig:
    """The data module of a block, with its data sets where their files are there."""
    data = build_data(config, run.settings, block, set_up=set_up)
    return data


def _fitting(node: Any) -> Any:
    """The same nested mappings without the parameters that their targets do not take, so that the rest can be tried."""
    if isinstance(node, Mapping):
        node = {key: _fitting(value) for key, value in node.items()}
        if "target" in node:
            params = dict(node.get("params") or {})
            build = get_obj_from_str(node["target"])
            while (wrong := check_arguments(build, params, name="")) and wrong[0]:
                if (rest := without(params, wrong[0].split("."))) == params:
                    break
                params = rest
            node["params"] = params
    return node
