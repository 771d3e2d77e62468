"""Compare the runs of a report, and make its page anew; nothing is measured again, and torch is not loaded.

python scripts/compare_runs.py reports/NAME [--baseline RUN] [--at last|METRIC]
"""

from collections.abc import Sequence

from basicsr.metrics.table import METRICS
from basicsr.utils.errors import UserError, fields_named
from ldm.console import OneLineParser, path_argument, say, say_error
from ldm.evaluation.report.charts import in_words
from ldm.evaluation.report.comparison import Comparison, compare_runs, paired
from ldm.evaluation.report.page import write_page
from ldm.evaluation.report.summary import CheckpointResult, Report, RunResult, load_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after bad input."""
    parser = OneLineParser("compare_runs.py", description=__doc__)
    parser.add_argument("report", type=path_argument, help="a folder that scripts/evaluate.py wrote")
    parser.add_argument("--baseline", metavar="RUN", help="default: the run with the smallest edge_loss_weight")
    at = "last (the newest common step), or a metric such as edge_f1, for each run's best checkpoint by it"
    parser.add_argument("--at", default="last", metavar="WHICH", help=at)
    try:
        with fields_named(lambda field: f"--{field}"):
            args = parser.parse_args(argv)
            report = load_report(args.report)
            comparison = compare_runs(report, args.baseline, args.at)
            page = write_page(report, comparison)
    except UserError as error:
        return say_error(str(error))
    say("\n".join([*table(report, comparison), f"page: {page}"]).lstrip())
    return 0


def table(report: Report, comparison: Comparison) -> list[str]:
    """Lines for the terminal: each run's means, and what changes from the baseline."""
    lines = [f"at {comparison.how}"] if comparison.how else []
    for run, result in comparison.pairs:
        step = "" if result.step is None else f", step {result.step}"
        lines += ["", f"{run.label} ({run.origin}{step})"]
        lines += [_line(comparison, run, result, metric) for metric in report.metrics]
    for (less, less_result), (more, result) in comparison.conditions:
        lines += ["", f"{more.label} minus {less.label}"]
        for metric in report.metrics:
            change = paired(less_result, result, metric)
            words = in_words(change.difference, METRICS[metric].decimals, "+")
            lines.append(f"  {METRICS[metric].label:16}{words:34}{change.score}".rstrip())
    lines += ["", *report.undefined]
    if comparison.others:
        base = comparison.runs[0].label
        lines.append(f"95 % bootstrap intervals over pictures; the second is that of the difference to {base}")
    return lines


def _line(comparison: Comparison, run: RunResult, result: CheckpointResult, metric: str) -> str:
    info = METRICS[metric]
    line = f"  {info.label:16}{in_words(result.mean(metric), info.decimals):32}"
    if run is not comparison.runs[0]:
        paired = comparison.paired(result, metric)
        line += f"{in_words(paired.difference, info.decimals, '+'):34}{paired.score}"
    return line.rstrip()
