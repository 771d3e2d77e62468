"""Measure checkpoints and restored pictures: see ldm/evaluation/measure/cli.py."""

import sys

from ldm.entry import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
