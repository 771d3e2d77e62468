"""Run bad inputs in this process and say what is wrong with how they were answered."""

import contextlib
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from faults.bad_inputs import Case, all_cases

from ldm.inference import cli as upscaling
from ldm.training import cli as training

SEED = 13


def all_faults(folder: Path) -> Iterator[tuple[Case, str]]:
    """Every case of `SEED`, with what is wrong with its answer; "" where nothing is."""
    cases = list(all_cases(folder, SEED))
    with contextlib.chdir(folder):
        for case in cases:
            yield case, fault(case)


def fault(case: Case) -> str:
    """Run a case in the current folder: one line, a status that says so, nothing begun, no code run."""
    program = {"train": training.main, "upscale": upscaling.main}[case.program]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = program(list(case.words))
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    lines = errors.getvalue().splitlines()
    begun = [name for name in ("logs", "ran") if Path(name).exists()]
    begun += [str(path) for path in Path("results").rglob("*") if path.is_file()]
    for name in begun:
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
    if begun:
        return f"leaves {', '.join(begun)}"
    if status != 2:
        return f"ends with {status}"
    if len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 500:
        return f"says {lines}"
    return ""


def table(verdicts: list[tuple[Case, str]]) -> str:
    """Cases and faults by kind."""
    cases, faults = Counter(case.kind for case, _ in verdicts), Counter(case.kind for case, wrong in verdicts if wrong)
    rows = [f"  {kind:30}{count:4} cases, {faults[kind]} answered badly" for kind, count in cases.items()]
    return "\n".join([*rows, f"  {'all':30}{len(verdicts):4} cases, {faults.total()} answered badly"])
