"""Train: `python main.py --base A.yaml [B.yaml ...] [key.path=value ...]`. `--help` explains all.

The work is done in `ldm.training`. What YAMLs call main.* is found here too, and imported when it is asked for.
"""

import importlib
import sys
from typing import Any

from ldm.machine import let_threads_wait
from ldm.training.cli import main
from ldm.util import MAIN

__all__ = ["main", *MAIN]


def __getattr__(name: str) -> Any:
    if name in MAIN:
        return getattr(importlib.import_module(MAIN[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MAIN})


if __name__ == "__main__":
    let_threads_wait()
    sys.exit(main())
