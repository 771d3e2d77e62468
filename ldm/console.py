"""How command lines speak: messages on lines of their own above the progress bars."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn, TextIO

from tqdm import tqdm

from basicsr.utils.errors import UserError

OURS = ("main", "ldm", "basicsr")


class OneLineParser(argparse.ArgumentParser):
    """Tells of bad arguments by a UserError, in one line; flags may not be abbreviated."""

    def __init__(self, prog: str, description: str | None, usage: str | None = None) -> None:
        super().__init__(
            prog, usage, description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help explains all)")


def some_path(word: str) -> Path:
    """An argument that is a path. An empty one, as of a variable that is not set, would mean the current folder."""
    if not word:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(word)


class AroundBars(logging.Handler):
    """Prints messages above the progress bars, where there are any, on `stream`: standard output or error."""

    def __init__(self, stream: str) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream: TextIO = getattr(sys, self.stream)  # as it is now: it may have been redirected
        tqdm.write(self.format(record), file=stream)


def configure_logging(*rooms: str, level: int = logging.INFO, stream: str = "stderr") -> None:
    """Messages of these modules or packages are shown from `level` on; of all others, warnings."""
    logging.basicConfig(format="%(message)s", handlers=[AroundBars(stream)], level=logging.WARNING, force=True)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] in OURS:
            logger.setLevel(logging.NOTSET)
    for name in rooms:
        logging.getLogger(name).setLevel(level)


def tell(*lines: str, status: int) -> int:
    """Show lines to the user once, whatever the number of processes, and pass the exit status on."""
    if is_first_process():
        sys.stderr.write("".join(f"{line}\n" for line in lines))
    return status


def is_first_process() -> bool:
    """Whether this process is the one of all a training's that prints and writes, by what launchers set."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") in ("", "0") for name in names)
