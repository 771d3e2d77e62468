"""Measure the checkpoints of training runs, and write tables and a page.

    python scripts/evaluate.py --run logs/RUN [--run logs/OTHER] --data PICTURES --out reports/NAME

Without --lq the degraded pictures are made as in training, with fixed seeds. What is computed already is not computed
again: a command that was stopped is simply given again. scripts/compare_runs.py makes the page with other choices.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, nothing installed

from basicsr.utils import checks
from basicsr.utils.errors import UserError
from ldm.console import OneLineParser, configure_logging, some_path
from ldm.evaluation.evaluate import Evaluation, Options
from ldm.evaluation.page import FILE
from ldm.evaluation.runs import SELECTIONS
from ldm.evaluation.summary import Report


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser("evaluate.py", description=__doc__)
    add = parser.add_argument
    add("--run", action="append", required=True, metavar="FOLDER", help="a training run; give it again for another one")
    add("--data", required=True, metavar="FOLDER", help="true pictures, searched with subfolders")
    add("--lq", metavar="FOLDER", help="degraded pictures of the same names, full size or 1/sf of it")
    add("--checkpoints", default="all", metavar="WHICH", help=f"{SELECTIONS} (default: all)")
    add("--steps", type=int, default=50, help="sampling steps (default: 50)")
    add("--sampler", choices=("ddpm", "ddim"), default="ddpm", help="default: ddpm")
    add("--seed", type=int, default=23, help="of noise and degradation (default: 23)")
    add("--border", type=int, help="pixels to cut off before measuring (default: the scale factor)")
    add("--lpips", action="store_true", help="measure LPIPS too, on AlexNet; needs its weights, a file")
    add("--devices", type=int, default=1, metavar="N", help="GPUs, or processes on the CPU, that share the pictures")
    add("--out", type=some_path, required=True, metavar="FOLDER", help="the report, new or to go on with")
    add("--watch", action="store_true", help="go on with new checkpoints until the runs have ended")
    add("--pause", type=float, default=30, metavar="SECONDS", help="between two looks with --watch (default: 30)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 after bad input, 130 after Ctrl-C."""
    configure_logging("ldm.evaluation")
    try:
        given = vars(parse(argv))
        watch, pause = given.pop("watch"), checks.number("--pause", given.pop("pause"), 0.1)
        evaluation = Evaluation(Options(runs=given.pop("run"), **given))
        if not watch:
            tell(evaluation())
        else:
            for report in evaluation.watch(pause):
                tell(report)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # such as a full disk
        print(f"error: --out {given['out']} cannot be written: {error}; the same command goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def tell(report: Report | None) -> None:
    """Say where the results are."""
    if report is not None:
        counted = sum(len(checkpoint.pictures) for run in report.runs for checkpoint in run.checkpoints)
        print(f"{counted} results: {report.folder / FILE}, results.csv, checkpoints.csv, {report.folder / 'restored'}")


if __name__ == "__main__":
    sys.exit(main())
