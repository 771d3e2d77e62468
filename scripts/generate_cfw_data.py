"""Make the data that CFW trains on; see ldm/inference/generate_cfw_data.py, or --help."""

import sys

from ldm.inference.generate_cfw_data import main

if __name__ == "__main__":
    sys.exit(main())
