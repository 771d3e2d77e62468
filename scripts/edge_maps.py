"""Write the edge maps of a folder of pictures; see ldm/inference/edge_maps.py, or --help."""

import sys

from ldm.inference.edge_maps import main

if __name__ == "__main__":
    sys.exit(main())
