"""A web page that upscales pictures: see `ldm/inference/app.py`, or --help."""

import sys

from ldm.entry import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
