"""What a training's command line says, and the statuses that it ends with."""

from dataclasses import dataclass
from typing import Any

LOGGERS = ("wandb", "tensorboard", "csv")
INTERRUPTED = 130  # the exit status after Ctrl-C, as shells have it
REQUEUE = 75  # after SIGTERM and SIGUSR1: EX_TEMPFAIL of sysexits.h, "try again later"


@dataclass(frozen=True)
class Options:
    """The parsed command line; None where a flag was not given."""

    base: list[str]
    overrides: list[str]
    trainer: dict[str, Any]  # keyword arguments of the Trainer
    train: bool
    no_test: bool
    check: bool
    trust_config: bool
    name: str | None
    resume: str | None
    project: str | None
    postfix: str
    logdir: str | None
    seed: int | None
    scale_lr: bool | None
    logger: str | None
