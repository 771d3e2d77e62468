"""How command lines speak: messages on lines of their own above the progress bars."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from tqdm import tqdm

from basicsr.utils.errors import UserError, fields_named, printable

OURS = ("main", "ldm", "basicsr")
INTERRUPTED = 130  # the exit status after Ctrl-C, as shells have it


class OneLineParser(argparse.ArgumentParser):
    """Tells of bad arguments by a UserError, in one line; flags may not be abbreviated."""

    def __init__(self, prog: str, description: str | None, usage: str | None = None) -> None:
        super().__init__(
            prog, usage, description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help explains all)")


def path_argument(word: str) -> Path:
    """An argument that is a path. An empty one, as of a variable that is not set, would mean the current folder."""
    if not word:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(word)


class TqdmHandler(logging.Handler):
    """Prints messages above the progress bars, where there are any, on `stream`: standard output or error."""

    def __init__(self, stream: str) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream: TextIO = getattr(sys, self.stream)  # as it is now: it may have been redirected
        tqdm.write(printable(self.format(record)), file=stream)


def configure_logging(*rooms: str, level: int = logging.INFO, stream: str = "stderr") -> None:
    """Messages of these modules or packages are shown from `level` on; of all others, warnings."""
    logging.basicConfig(format="%(message)s", handlers=[TqdmHandler(stream)], level=logging.WARNING, force=True)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] in OURS:
            logger.setLevel(logging.NOTSET)
    for name in rooms:
        logging.getLogger(name).setLevel(level)


def say(text: str, stream: TextIO | None = None) -> None:
    """Show a line, or several, on a stream (standard output); whatever names of files do to a terminal is undone."""
    (stream or sys.stdout).write(f"{printable(text)}\n")


def tell(*lines: str, status: int) -> int:
    """Show lines to the user once, whatever the number of processes, and pass the exit status on."""
    if is_first_process():
        for line in lines:
            say(line, sys.stderr)
    return status


def exit_status(run: Callable[[], int], *, interrupted: str) -> int:
    """A command's: what `run` returns, 2 after bad input, 130 after Ctrl-C; the last two are told in a line.

    Settings are told as flags. `interrupted` is what there is to say after Ctrl-C.
    """
    try:
        with fields_named(lambda field: f"--{field}"):
            return run()
    except UserError as error:
        return say_error(str(error))
    except KeyboardInterrupt:
        return tell(interrupted, status=INTERRUPTED)


def say_error(problem: str) -> int:
    """Show an error in a line, and pass on the exit status for bad input, 2."""
    say(f"error: {problem}", sys.stderr)
    return 2


def is_first_process() -> bool:
    """Whether this process is the one of all a training's that prints and writes, by what launchers set."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") in ("", "0") for name in names)
