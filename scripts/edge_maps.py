"""Write the edge maps of a folder of pictures; see ldm/inference/edge_maps.py, or --help."""

import sys

from ldm.entry import main

if __name__ == "__main__":
    sys.exit(main(["edge-maps", *sys.argv[1:]]))
