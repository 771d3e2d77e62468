"""Compare the runs of a report, and make its page anew; nothing is measured again.

python scripts/compare_runs.py reports/NAME [--baseline RUN] [--at last|METRIC]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, nothing installed

from basicsr.metrics.measure import METRICS
from basicsr.utils.errors import UserError
from ldm.console import OneLineParser, some_path
from ldm.evaluation.charts import in_words, weight_in_words
from ldm.evaluation.comparison import Comparison, compare_runs
from ldm.evaluation.page import write_page
from ldm.evaluation.summary import Report, load_report


def table(report: Report, comparison: Comparison) -> list[str]:
    """Lines for the terminal: each run's means, and what changes from the baseline."""
    lines = [f"at {comparison.how}"]
    for run, result in zip(comparison.runs, comparison.chosen, strict=True):
        lines += ["", f"{run.label} (edge_loss_weight {weight_in_words(run.edge_loss_weight)}, step {result.step})"]
        for metric in report.metrics:
            info, line = METRICS[metric], f"  {METRICS[metric].label:16}"
            line += f"{in_words(result.mean(metric), info.decimals):32}"
            if run is not comparison.runs[0]:
                paired = comparison.paired(result, metric)
                line += f"{in_words(paired.difference, info.decimals, '+'):34}"
                line += f"won {paired.wins} of {paired.difference.pictures}"
            lines.append(line.rstrip())
    if len(comparison.runs) > 1:
        base = comparison.runs[0].label
        lines.append(f"\n95 % bootstrap intervals over pictures; the second is that of the difference to {base}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 after bad input."""
    parser = OneLineParser("compare_runs.py", description=__doc__)
    parser.add_argument("report", type=some_path, help="a folder that scripts/evaluate.py wrote")
    parser.add_argument("--baseline", metavar="RUN", help="default: the run with the smallest edge_loss_weight")
    at = "last (the newest common step), or a metric such as edge_f1, for each run's best checkpoint by it"
    parser.add_argument("--at", default="last", metavar="WHICH", help=at)
    try:
        args = parser.parse_args(argv)
        report = load_report(args.report)
        comparison = compare_runs(report, args.baseline, args.at)
        page = write_page(report, comparison)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(report, comparison)))
    print(f"page: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
