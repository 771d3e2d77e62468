"""Does the edge loss pay? Train arms over seeds as a YAML describes them, compare them seed by seed, and report.

    python scripts/gather_photographs.py && python scripts/demo_photos.py
    python scripts/edge_experiment.py configs/demo/edge_experiment/edges_or_pixels.yaml [--jobs 2]

Each arm is trained from the same weights and judged twice on the validation photographs: after the study's steps, and
after as many as fit into the time that the arm `budget_of` takes for them. Seconds per step are measured once, in turns
(timing.json), so a busy machine favours no arm. A run leaves one file for its arm and seed: the same command goes on
after an interruption. Several machines share a study with --share 1/3, 2/3, 3/3 and copies of one timing.json; their
files are then put into one folder. The report is made from files alone: report.html, report.json, report.md.

The pictures `confirm` are judged too, and kept out of the report until --confirm names the arms that they shall decide
about, once: a later choice of other arms is refused.
"""

import argparse
import sys
from pathlib import Path

from basicsr.utils import checks
from basicsr.utils.errors import UserError
from ldm.console import OneLineParser, configure_logging, exit_status, path_argument
from ldm.study.plan import load_study
from ldm.study.report import write_report
from ldm.study.sitting import Sharing, sit


def parse() -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser("edge_experiment.py", description=__doc__)
    add = parser.add_argument
    add("study", type=path_argument, help="a YAML in configs/demo/edge_experiment/")
    add("--out", type=path_argument, help="where results lie (default: logs/edge_experiment/NAME)")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--devices", default="", metavar="0,1", help="CUDA devices, a job each in turn")
    add("--share", type=share, default=(1, 1), metavar="K/N", help="this machine's part of the runs")
    add("--timing-rounds", type=int, default=8, metavar="N", help="steps to time of each arm (default: 8)")
    add("--report-only", action="store_true", help="train nothing")
    add("--confirm", metavar="ARM,ARM", help="judge these arms on the pictures that are looked at once")
    return parser.parse_args()


def share(word: str) -> tuple[int, int]:
    """2/3 as (2, 3)."""
    k, _, n = word.partition("/")
    if not (k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"{word!r} is not a share such as 1/3")
    return int(k), int(n)


def experiment(args: argparse.Namespace) -> int:
    """One sitting, and the report; returns the exit status: 1 where runs failed."""
    study = load_study(args.study)
    out = args.out or Path("logs/edge_experiment", args.study.stem)
    out.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    if not args.report_only:
        devices = tuple(filter(None, args.devices.split(",")))
        sharing = Sharing(checks.whole_number("jobs", args.jobs, 1), devices, args.share)
        for part, folder in study.pictures.items():
            if not Path(folder).is_dir():
                raise UserError(f"{args.study}: pictures.{part}: {folder} is not there: see --help for what makes it")
        if study.lpips and not Path(study.lpips).is_file():
            raise UserError(
                f"{args.study}: lpips: {study.lpips} is not there: scripts/lpips_weights.py makes it; null does without"
            )
        problems = sit(study, out, sharing, timing_rounds=checks.whole_number("timing-rounds", args.timing_rounds, 1))
    page = write_report(study, out, confirm=args.confirm.split(",") if args.confirm else None)
    sys.stdout.write(f"{page.with_suffix('.md').read_text(encoding='utf-8')}\nopen {page}\n")
    for problem in problems:
        sys.stderr.write(f"failed: {problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    configure_logging("ldm.study")
    sys.exit(exit_status(lambda: experiment(parse()), interrupted="stopped; the same command goes on from here"))
