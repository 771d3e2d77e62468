"""Train: `python main.py --base A.yaml [B.yaml ...] [key.path=value ...]`. `--help` explains all.

The work is done in `ldm.training`. What YAMLs call main.* is found here too, and imported when it is asked for.
"""

import importlib
import sys
from typing import Any

from ldm.training.cli import main

_HOMES = {
    "DataModuleFromConfig": "ldm.data.datamodule",
    "EdgeProbe": "ldm.training.callbacks.edge_probe",
    "ImageLogger": "ldm.training.callbacks.image_logger",
    "SampleMetrics": "ldm.training.callbacks.sample_metrics",
    "SkipNotFinite": "ldm.training.callbacks.skip_not_finite",
}
__all__ = ["main", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


if __name__ == "__main__":
    sys.exit(main())
