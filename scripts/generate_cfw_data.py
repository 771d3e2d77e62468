"""Make the data that CFW trains on; see ldm/inference/generate_cfw_data.py, or --help."""

import sys

from ldm.entry import main

if __name__ == "__main__":
    sys.exit(main(["generate-cfw-data", *sys.argv[1:]]))
