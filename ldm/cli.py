"""The command line of main.py: StableSR's flags, the trainer's own, and `key.path=value` words."""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from basicsr.utils.errors import UserError, did_you_mean
from ldm.console import OneLineParser

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
# Trainer arguments that this program sets itself.
NOT_OFFERED = (
    "self",
    "logger",
    "callbacks",
    "plugins",
    "default_root_dir",
    "use_distributed_sampler",
    "barebones",
    "enable_checkpointing",
)

DESCRIPTION = """\
Train a model from YAML configs.

  python main.py --base configs/demo/edge_cpu.yaml
  python main.py --base A.yaml B.yaml data.params.batch_size=2 --max_steps 1000
  python main.py --resume logs/2026-01-31T12-00-00_A

YAML files merge left to right; key.path=value words override them; flags override both. A YAML may start with
`base: other.yaml`. Ctrl-C saves the state and says how to go on.
"""


@dataclass(frozen=True)
class Options:
    """The parsed command line; None where a flag was not given."""

    base: list[str]
    overrides: list[str]
    trainer: dict[str, Any]  # keyword arguments of the Trainer
    train: bool
    no_test: bool
    name: str | None
    resume: str | None
    project: str | None
    postfix: str
    logdir: str
    seed: int | None
    scale_lr: bool | None
    logger: str | None


def parse_arguments(argv: Sequence[str] | None, trainer: Callable, loggers: Sequence[str]) -> Options:
    """Parse `argv` (default: the process's). `trainer` is the class whose arguments become flags.

    Raises:
        UserError: an unknown flag or word, or a value that a flag cannot take.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Taken out first, for --base and --train would swallow a word that follows them.
    overrides = [word for word in words if OVERRIDE.match(word)]
    parser = _make_parser(trainer, loggers)
    known, unknown = parser.parse_known_args([word for word in words if not OVERRIDE.match(word)])
    flags = [flag for action in parser._actions for flag in action.option_strings]
    for word in unknown:
        if word.startswith("-"):
            raise UserError(f"unknown flag {word}{did_you_mean(word.partition('=')[0], flags)}")
        raise UserError(f"what is {word!r}? YAML files follow --base; overrides read key.path=value")
    given = vars(known)
    arguments = {name: given[name] for name in _trainer_arguments(trainer) if name in given}
    if known.gpus is not None:
        if "devices" in arguments:
            raise UserError("--gpus and --devices say the same: give one of them")
        arguments = {"accelerator": "gpu", **arguments, "devices": known.gpus}
    ours = {name: given[name] for name in Options.__annotations__ if name in given}
    return Options(**ours, overrides=overrides, trainer=arguments)


def _make_parser(trainer: Callable, loggers: Sequence[str]) -> OneLineParser:
    parser = OneLineParser(
        "main.py",
        usage="main.py --base A.yaml [B.yaml ...] [key.path=value ...] [flags]",
        description=DESCRIPTION,
    )
    add = parser.add_argument
    add("-b", "--base", nargs="*", action="extend", default=[], metavar="YAML", help="configs, merged left to right")
    switch: dict[str, Any] = {"nargs": "?", "const": True, "type": _boolean, "metavar": "BOOL"}
    add("-t", "--train", default=True, **switch, help="train; the default. With false, build all and check it")
    add("-n", "--name", help="the run's name (default: the first config's)")
    add("-r", "--resume", metavar="DIR|FILE", help="go on with a run: its folder, or one of its checkpoints")
    add("-p", "--project", help="project in W&B (default: stablesr-edge)")
    add("-f", "--postfix", default="", help="appended to the run's name")
    add("-l", "--logdir", default="logs", help="where run folders are made (default: logs)")
    add("-s", "--seed", type=int, help="decides every random number (default: 23)")
    add("--scale_lr", **switch, help="learning rate = base_learning_rate x GPUs x batch x accumulation")
    add("--no-test", "--no_test", default=False, **switch, help="leave out the pass over `test_data:` after training")
    add("--gpus", metavar="LIST", help='devices by number, such as "0," or "0,1"')
    add("--logger", choices=loggers, help="metrics.csv is written besides (default: wandb)")
    group = parser.add_argument_group("flags of Lightning's Trainer", "values are read as YAML")
    for name, parameter in _trainer_arguments(trainer).items():
        group.add_argument(
            f"--{name}",
            nargs="?",
            const=True,
            default=argparse.SUPPRESS,
            type=_value,
            metavar="VALUE",
            help=f"default: {parameter.default}",
        )
    return parser


def _trainer_arguments(trainer: Callable) -> dict[str, inspect.Parameter]:
    arguments = inspect.signature(trainer).parameters
    return {name: argument for name, argument in arguments.items() if name not in NOT_OFFERED}


def _value(word: str) -> Any:
    if ":" in word:  # a time such as 1:30:00, which YAML would read as a number
        return word
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no valid YAML") from error


def _boolean(word: str) -> bool:
    if word.lower() in ("1", "true", "yes", "y", "on", "t"):
        return True
    if word.lower() in ("0", "false", "no", "n", "off", "f"):
        return False
    raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
