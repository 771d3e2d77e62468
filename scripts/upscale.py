"""Make pictures larger and sharper: see `ldm/inference/cli.py`, or --help."""

import sys

from ldm.entry import main

if __name__ == "__main__":
    sys.exit(main(["upscale", *sys.argv[1:]]))
