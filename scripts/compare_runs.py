"""Compare the runs of a report: see ldm/evaluation/report/cli.py."""

import sys

from ldm.entry import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
