"""How command lines speak: messages on lines of their own above the progress bars."""

import logging
import sys
from typing import TextIO

from tqdm import tqdm

OURS = ("main", "ldm", "basicsr")


class AroundBars(logging.Handler):
    """Prints messages above the progress bars, where there are any, on `stream`: standard output or error."""

    def __init__(self, stream: str) -> None:
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream: TextIO = getattr(sys, self.stream)  # as it is now: it may have been redirected
        tqdm.write(self.format(record), file=stream)


def speak(*rooms: str, level: int = logging.INFO, stream: str = "stderr") -> None:
    """Messages of these modules or packages are shown from `level` on; of all others, warnings."""
    logging.basicConfig(format="%(message)s", handlers=[AroundBars(stream)], level=logging.WARNING, force=True)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] in OURS:
            logger.setLevel(logging.NOTSET)
    for name in rooms:
        logging.getLogger(name).setLevel(level)
