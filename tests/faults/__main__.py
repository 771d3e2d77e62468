"""`make faults`: SIGKILL and SIGTERM at random moments, on one process and on two, then 200 bad inputs."""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from faults.judge import all_faults, table
from faults.kills import stops

from ldm.training import train


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="signals of each kind, on one process")
    parser.add_argument("--kills2", type=int, default=10, help="the same on two processes")
    parser.add_argument("--steps", type=int, default=120, help="of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to work in, and to find the logs in (default: one that goes)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train.quiet_lightning()  # imported here, so that forked processes need not
    clean = True
    with tempfile.TemporaryDirectory() as scratch:
        for processes, count in ((1, options.kills), (2, options.kills2)):
            for number in (signal.SIGKILL, signal.SIGTERM):
                if not count:
                    continue
                began, folder = time.monotonic(), (options.folder or Path(scratch)) / f"{number.name}-{processes}"
                report = stops(
                    folder, number, count, processes=processes, steps=options.steps, seed=options.seed + number
                )
                print(f"{number.name}, {processes} process(es), {time.monotonic() - began:.0f} s")
                print("\n".join(f"  {line}" for line in report.lines()), flush=True)
                clean = clean and report.clean
        # Last, for a process that has trained may not fork others that do.
        (Path(scratch) / "bad").mkdir()
        verdicts = list(all_faults(Path(scratch) / "bad"))
        print(f"bad inputs\n{table(verdicts)}")
        clean = clean and not any(problem for _, problem in verdicts)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
