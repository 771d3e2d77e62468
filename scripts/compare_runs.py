"""Compare the runs of a report: see ldm/evaluation/report/cli.py."""

import sys

from ldm.evaluation.report.cli import main

if __name__ == "__main__":
    sys.exit(main())
