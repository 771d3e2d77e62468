"""Fine-tune the demo's small upscaler with the edge loss, on the CPU, and show what that changed.

    python scripts/demo_photos.py && python scripts/demo.py [key.path=value ...]

A minute or two on two cores. It ends with a page: before and after on photographs that are never trained on, the
losses, and whether the change is outside chance. Words override configs/demo/finetune.yaml.
"""

import sys
import warnings
from pathlib import Path

from ldm.config import check_paths, load_config
from ldm.console import OneLineParser, configure_logging, exit_status


def run() -> int:
    """Run the command line."""
    parser = OneLineParser("demo.py", description=__doc__)
    parser.add_argument("words", nargs="*", help="overrides")
    args = parser.parse_args()
    from ldm.study.demo import demo  # torch: after --help

    config = Path("configs/demo/finetune.yaml")
    check_paths(load_config([config], args.words))
    page = demo(config, args.words)
    sys.stdout.write(f"open {page}\n")
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*self.log.*")
    configure_logging("ldm.study")
    sys.exit(exit_status(run, interrupted="stopped"))
