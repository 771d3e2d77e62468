"""Measure checkpoints and restored pictures: see ldm/evaluation/measure/cli.py."""

import sys

from ldm.evaluation.measure.cli import main

if __name__ == "__main__":
    sys.exit(main())
