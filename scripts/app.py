"""A web page that upscales pictures: see `ldm/inference/app.py`, or --help."""

import sys

from ldm.inference.app import main

if __name__ == "__main__":
    sys.exit(main())
