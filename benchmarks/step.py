"""What training, sampling and all around them cost, ours beside the published way of doing it, as a table and as JSON.

    python benchmarks/step.py --size full --rows training sampling --json benchmarks/results/MINE.json

Both sides have the same weights and inputs and take turns: each row is measured `--rounds` times, and every time by a
process of its own for each side and precision, so that memory is that of the row alone. Results are compared: status 1
where they differ in 32 bits by more than rounding, or where something could not be measured. With --json a file that
is there already is completed: rows measured again take the place of former ones, so that a long table can be made in
pieces. `benchmarks/tables.py` writes it into the pages, `benchmarks/compare.py` compares it with another.

ROWS: {rows}
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.block import result_file
from benchmarks.case import SIDES, Case
from benchmarks.machine import DTYPES, machine_of, matmul_peak
from benchmarks.networks import CONFIGS, ROOT, WORK
from benchmarks.results import SAME, Results, difference
from benchmarks.rows import GROUPS, ROWS
from benchmarks.tables import steps_table
from ldm.machine import let_threads_wait

PIXELS = {"full": 256, "small": 256, "tiny": 32}


def cases_of(args: argparse.Namespace, row: str, pixels: int) -> list[Case]:
    """The sides and precisions of a row, the baseline first."""
    about, batch = ROWS[row], args.batch
    if about.fixed and args.size != "tiny":
        batch, pixels = about.fixed
    sides = [("baseline", "fp32")] if "baseline" in about.sides else []
    sides += [("ours", precision) for precision in args.precision if precision in about.precisions]
    common = {"size": args.size, "pixels": pixels, "batch": batch, "device": args.device, "work": str(args.work)}
    operators = args.operators and row in GROUPS["training"] + GROUPS["sampling"]
    return [
        Case(row, side, precision, **common, seconds=args.seconds, operators=operators)
        for side, precision in sides
        if side in args.sides
    ]


def measured(case: Case) -> dict[str, Any]:
    """What a process of its own finds for a case; `failed` says why there is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        words = [sys.executable, "-m", "benchmarks.block", json.dumps(asdict(case)), str(found)]
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode == 0:
            content: dict[str, Any] = json.loads(found.read_text())
            return content
        last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        killed = "killed, most often for want of memory" if done.returncode == -9 else f"status {done.returncode}"
        return {"failed": f"{killed}: {last}"}


def run_row(args: argparse.Namespace, results: Results, row: str, pixels: int) -> None:
    """All rounds of a row, told as they come."""
    cases = cases_of(args, row, pixels)
    if not cases:
        return
    for case in cases:
        result_file(case).unlink(missing_ok=True)
    results.forget(cases[0])
    for turn in range(args.rounds):
        for case in cases:
            if not results.failed(case):
                once = replace(case, operators=case.operators and turn == 0)
                results.add(case, ROWS[row], measured(once))
                what = f"{row:14} {case.pixels:4} pixels, {case.side:8} {case.precision}, round {turn + 1}"
                say(f"{what}: {results.told(case)}")
                results.save()
    for case in cases:
        truth = result_file(cases[0])
        if case.side == "ours" and cases[0].side == "baseline" and truth.is_file() and result_file(case).is_file():
            results.entry(case)["difference"] = difference(result_file(case), truth, ROWS[row])


def say(line: str) -> None:
    """Progress, which is no part of the table."""
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


def chosen_rows(names: Sequence[str]) -> list[str]:
    """Rows by their names and those of groups, in the table's order."""
    chosen = {row for name in names for row in GROUPS.get(name, (name,))}
    return [row for row in ROWS if row in chosen]


def parser() -> argparse.ArgumentParser:
    rows = "; ".join(f"{group}: {', '.join(names)}" for group, names in GROUPS.items())
    made = argparse.ArgumentParser(
        description=(__doc__ or "").format(rows=rows), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add(
        "--size",
        choices=tuple(CONFIGS),
        default="small",
        help="full: the 512 config; small: the demo's; tiny: a test's",
    )
    add("--pixels", type=int, nargs="+", help="of a side (default: 256, tiny 32)")
    add("--batch", type=int, default=1)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="where memory is short: ours alone")
    add("--precision", nargs="+", choices=tuple(DTYPES), default=list(DTYPES), help="of ours (default: all)")
    add(
        "--rows",
        nargs="+",
        choices=(*GROUPS, *ROWS),
        default=list(GROUPS),
        metavar="ROW",
        help="or groups (default: all)",
    )
    add("--rounds", type=int, default=2)
    add("--seconds", type=float, default=8, help="of calls, for each case and round; one call at least")
    add("--operators", action="store_true", help="tell, too, in which operators steps spend their time")
    add("--json", type=Path, help="results to write or to complete")
    add("--work", type=Path, default=WORK, help="weights and pictures: 8 GB at full size (default: %(default)s)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    let_threads_wait()  # in all processes that measure
    results = Results.at(args.json, machine_of(args.device))
    for precision in args.precision:
        results.peak(precision, matmul_peak(args.device, precision))
    for pixels in args.pixels or [PIXELS[args.size]]:
        for row in chosen_rows(args.rows):
            if ROWS[row].fixed is None or pixels == (args.pixels or [pixels])[0]:
                run_row(args, results, row, pixels)
                results.save()
    for precision in args.precision:
        results.peak(precision, matmul_peak(args.device, precision))
    results.save()
    print(steps_table(results.content))
    if args.json:
        print(f"results: {args.json}")
    wrong = [entry for entry in results.content["rows"] if entry.get("failed") or beyond_rounding(entry)]
    for entry in wrong:
        print(f"{entry['row']} {entry['side']}: {entry.get('failed') or 'the results differ'}", file=sys.stderr)
    return int(bool(wrong))


def beyond_rounding(entry: dict[str, Any]) -> bool:
    return bool(entry["precision"] == "fp32" and entry.get("difference", 0) > SAME)


if __name__ == "__main__":
    sys.exit(main())
