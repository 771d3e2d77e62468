"""Measure the checkpoints of training runs, and pictures restored elsewhere, and write tables and a page.

    python scripts/evaluate.py --run logs/RUN [--run logs/OTHER] --data PICTURES --out reports/NAME
    python scripts/evaluate.py --also bicubic,RESULTS --data PICTURES --lq DEGRADED --out reports/NAME

Without --lq the degraded pictures are made as in training, with fixed seeds. What is computed already is not computed
again: a command that was stopped is simply given again. scripts/compare_runs.py makes the page with other choices.
"""

import argparse
import logging
from collections.abc import Sequence
from typing import get_args

from basicsr.utils import checks
from basicsr.utils.errors import UserError
from basicsr.utils.files import OutputError
from basicsr.utils.retries import RETRIES
from ldm.console import OneLineParser, configure_logging, exit_status, is_first_process, path_argument, say
from ldm.evaluation.report.summary import Report, Sampler


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser("evaluate.py", description=__doc__)
    add = parser.add_argument
    run = "a training run; give it again for another one"
    add("--run", action="append", default=[], metavar="FOLDER", dest="runs", help=run)
    also = "pictures that were restored elsewhere, by the names of the true ones, to be measured beside the runs or "
    also += "without any; `bicubic` is the degraded ones enlarged; several between commas"
    add("--also", action="append", default=[], metavar="FOLDER|bicubic", help=also)
    add("--data", required=True, metavar="FOLDER", help="true pictures, searched with subfolders")
    add("--lq", metavar="FOLDER", help="degraded pictures of the same names, full size or 1/sf of it")
    told = "what runs that see edges are told, one column each: edges (of the degraded picture), none, dummy (a blank "
    told += "sheet), file, and gt, the true picture's: an oracle; several between commas (default: edges)"
    add("--conditions", type=lambda words: words.split(","), default=["edges"], metavar="NAMES", help=told)
    add("--edges", metavar="FOLDER", help="for condition file: pictures of edges, NAME_edge.png or NAME.png")
    add("--checkpoints", default="all", metavar="WHICH", help="all, last, best or every:N (default: all)")
    add("--steps", type=int, default=50, help="sampling steps (default: 50)")
    add("--sampler", choices=get_args(Sampler), default="ddpm", help="default: ddpm")
    add("--seed", type=int, default=23, help="of noise and degradation (default: 23)")
    add("--sf", type=int, help="scale factor of small --lq pictures (default: the first run's, else 4)")
    add("--border", type=int, help="pixels to cut off before measuring (default: the scale factor)")
    add("--lpips", choices=("vgg", "alex", "squeeze"), default="", help="measure LPIPS too, on this network")
    weights = "that network's weights (default: the published file in $TORCH_HOME/hub/checkpoints)"
    add("--lpips_weights", metavar="FILE", default="", help=weights)
    add("--devices", type=int, default=1, metavar="N", help="GPUs, or processes on the CPU, that share the pictures")
    add("--nodes", type=int, default=1, metavar="N", help="machines, each of which runs this command (default: 1)")
    retries = f"of reading a picture, where a disk or a network failed (default: {RETRIES})"
    add("--retries", type=int, default=RETRIES, metavar="N", help=retries)
    add("--out", type=path_argument, required=True, metavar="FOLDER", help="the report, new or to go on with")
    add("--watch", action="store_true", help="go on with new checkpoints until the runs have ended")
    add("--pause", type=float, default=30, metavar="SECONDS", help="between two looks with --watch (default: 30)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 after bad input, 130 after Ctrl-C."""
    configure_logging("ldm.evaluation")
    if not is_first_process():
        logging.disable(logging.WARNING)
    return exit_status(lambda: run(parse(argv)), interrupted="stopped; the same command goes on from here")


def run(args: argparse.Namespace) -> int:
    """Evaluate; an output that cannot be written may be mended, and nothing is lost."""
    try:
        evaluate(args)
    except OutputError as error:
        raise UserError(f"{error}; the same command goes on") from error
    return 0


def evaluate(args: argparse.Namespace) -> None:
    """Once, or again and again."""
    from ldm.evaluation.measure.evaluate import Evaluation, EvaluationOptions  # with torch: after --help

    given = vars(args)
    watch, pause = given.pop("watch"), checks.number("pause", given.pop("pause"), 0.1)
    evaluation = Evaluation(EvaluationOptions(**given))
    if watch:
        for report in evaluation.watch(pause):
            tell(report)
    elif (done := evaluation()) is not None:
        tell(done)


def tell(report: Report) -> None:
    """Say where the results are."""
    counted = sum(len(checkpoint.pictures) for run in report.runs for checkpoint in run.checkpoints)
    page, restored = report.folder / "report.html", report.folder / "restored"
    say(f"{counted} results: {page}, results.csv, checkpoints.csv, {restored}")
