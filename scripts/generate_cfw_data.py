"""Make the data that CFW trains on; see ldm/inference/generate_cfw_data.py, or --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, nothing installed

from ldm.inference.generate_cfw_data import main

if __name__ == "__main__":
    sys.exit(main())
