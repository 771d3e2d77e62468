"""The command line of training: StableSR's flags, the trainer's own, and `key.path=value` words.

`--help` and mistakes in the flags answer without PyTorch: it is imported when training begins.
"""

import argparse
import errno
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from basicsr.utils.errors import UserError, did_you_mean
from ldm.console import INTERRUPTED, OneLineParser, configure_logging, is_first_process, tell
from ldm.machine import keep_freed_memory
from ldm.training.options import LOGGERS, REQUEUE, Options
from ldm.training.stop_signals import StopSignals
from ldm.training.trainer_flags import TRAINER_FLAGS

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")

DESCRIPTION = f"""\
Train a model from YAML configs.

  python main.py --base configs/demo/edge_cpu.yaml
  python main.py --base A.yaml B.yaml data.params.batch_size=2 --max_steps 1000
  python main.py --base A.yaml --check
  python main.py --resume logs/2026-01-31T12-00-00_A
  python main.py --base A.yaml --name mine --resume auto

YAML files merge left to right; key.path=value words override them; flags override both. A YAML may start with
`base: other.yaml`. Ctrl-C, SIGTERM and SIGUSR1 save the state and say how to go on; a second one stops at once.

Exit status: 0 done; 2 bad input; {INTERRUPTED} after Ctrl-C; {REQUEUE} after SIGTERM or SIGUSR1, all saved: let the
scheduler start the same command again, with --resume auto.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    level = logging.INFO if is_first_process() else logging.ERROR
    configure_logging("main", "ldm", "basicsr", level=level, stream="stdout")
    with StopSignals() as signals:
        return friendly_errors(lambda: _train(parse_arguments(argv), signals))


def _train(options: Options, signals: StopSignals) -> int:
    keep_freed_memory()
    try:
        from ldm.training.train import train

        return train(options, signals)
    except BaseException:  # libraries turn a StopRequested in their midst into errors of their own
        if not signals.raised:
            raise
    signals.ignore()
    return tell(
        "stopped outside of training's steps: nothing was to save; the same command starts it again",
        status=signals.exit_status(),
    )


def friendly_errors(run: Callable[[], int]) -> int:
    """The exit status of `run`; what a user can mend is told in a line, every other exception is raised as it is."""
    try:
        return run()
    except UserError as error:
        return tell(*(f"error: {line}" for line in str(error).splitlines()), status=2)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return tell(f"error: {error.filename or 'a file could not be written'}: {error.strerror}", status=2)
    except KeyboardInterrupt:
        return tell("interrupted", status=INTERRUPTED)


def parse_arguments(argv: Sequence[str] | None = None) -> Options:
    """Parse `argv` (default: the process's).

    Raises:
        UserError: an unknown flag or word, or a value that a flag cannot take.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Taken out first, for --base and --train would swallow a word that follows them.
    overrides = [word for word in words if OVERRIDE.match(word)]
    parser = _make_parser()
    known, unknown = parser.parse_known_args([word for word in words if not OVERRIDE.match(word)])
    flags = [flag for action in parser._actions for flag in action.option_strings]
    for word in unknown:
        if word.startswith("-"):
            raise UserError(f"unknown flag {word}{did_you_mean(word.partition('=')[0], flags)}")
        raise UserError(f"what is {word!r}? YAML files follow --base; overrides read key.path=value")
    given = vars(known)
    arguments = {name: given[name] for name in TRAINER_FLAGS if name in given}
    if known.gpus is not None:
        if "devices" in arguments:
            raise UserError("--gpus and --devices say the same: give one of them")
        arguments = {"accelerator": "gpu", **arguments, "devices": known.gpus}
    ours = {name: given[name] for name in Options.__annotations__ if name in given}
    return Options(**ours, overrides=overrides, trainer=arguments)


def _make_parser() -> OneLineParser:
    parser = OneLineParser(
        "main.py",
        usage="main.py --base A.yaml [B.yaml ...] [key.path=value ...] [flags]",
        description=DESCRIPTION,
    )
    add = parser.add_argument
    add("-b", "--base", nargs="*", action="extend", default=[], metavar="YAML", help="configs, merged left to right")
    switch: dict[str, Any] = {"nargs": "?", "const": True, "type": _boolean, "metavar": "BOOL"}
    add("-t", "--train", default=True, **switch, help="train; the default. With false, build all and check it")
    add("--check", action="store_true", help="only check the config, list all problems, and say what would be trained")
    add("--trust_config", action="store_true", help="build `target:`s outside the known packages: they run code")
    add("-n", "--name", help="the run's name (default: the first config's)")
    add("-r", "--resume", metavar="DIR|FILE|auto", help="go on with a run: its folder, or one of its checkpoints; "
        "auto: the newest run of this name, or a new one where there is none")  # fmt: skip
    add("-p", "--project", help="project in W&B (default: stablesr-edge)")
    add("-f", "--postfix", default="", help="appended to the run's name")
    add("-l", "--logdir", help="where run folders are made (default: logs)")
    add("-s", "--seed", type=int, help="decides every random number (default: 23)")
    add("--scale_lr", **switch, help="learning rate = base_learning_rate x GPUs x batch x accumulation")
    add("--no-test", "--no_test", default=False, **switch, help="leave out the pass over `test_data:` after training")
    add("--gpus", metavar="LIST", help='devices by number, such as "0," or "0,1"')
    add("--logger", choices=LOGGERS, help="metrics.csv is written besides (default: wandb)")
    group = parser.add_argument_group("flags of Lightning's Trainer", "values are read as YAML")
    for name, default in TRAINER_FLAGS.items():
        group.add_argument(
            f"--{name}",
            nargs="?",
            const=True,
            default=argparse.SUPPRESS,
            type=_value,
            metavar="VALUE",
            help=f"default: {default}",
        )
    return parser


def _value(word: str) -> Any:
    if ":" in word:  # a time such as 1:30:00, which YAML would read as a number
        return word
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{word!r} is not valid YAML") from error


def _boolean(word: str) -> bool:
    if word.lower() in ("1", "true", "yes", "y", "on", "t"):
        return True
    if word.lower() in ("0", "false", "no", "n", "off", "f"):
        return False
    raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
