"""Measure one case in this process and write what was found: python -m benchmarks.block CASE_JSON RESULT_JSON

A warm-up call, in which FLOPs are counted, then calls for the case's seconds, one at least. Peak memory is that of all
calls, with what is held between them, and not of what made them ready.
"""

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basicsr.utils.files import whole_file, write_whole
from benchmarks.case import Case, Ready
from benchmarks.machine import count_flops, forget_peak, peak_memory, seconds_of
from benchmarks.rows import GROUPS, ROWS
from ldm.machine import keep_freed_memory

OPERATORS = 15


def measure(case: Case) -> dict[str, Any]:
    """Seconds by call, FLOPs and peak bytes; the result goes to a file of the work folder, for tensors are large."""
    ready = ROWS[case.row].prepare(case)
    forget_peak(case.device, case.work)
    kept: list[Any] = []
    flops = count_flops(lambda: kept.append(ready.call(0)))
    save_result(case, kept.pop())
    seconds: list[float] = []
    while not seconds or sum(seconds) * ready.count < case.seconds:
        index = len(seconds) + 1
        seconds.append(seconds_of(lambda index=index: ready.call(index), case.device) / ready.count)  # type: ignore[misc]
    peak = peak_memory(case.device) if ready.peak is None else ready.peak()
    found: dict[str, Any] = {"seconds": seconds, "flop": flops / ready.count, "peak": peak}
    if case.operators:
        found["operators"] = operators(ready, case.device)
    return found


def save_result(case: Case, result: object) -> None:
    """For the sides to be compared."""
    if isinstance(result, Tensor):
        with whole_file(result_file(case)) as draft:
            torch.save(result, draft)


def result_file(case: Case) -> Path:
    """Where a case's result lies."""
    return Path(case.work) / "results" / f"{case.key}.pt"


def operators(ready: Ready, device: str) -> list[tuple[str, float, int]]:
    """Those that one more call spends most time in: name, seconds of its own, calls."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = device.startswith("cuda")
    if on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        seconds_of(lambda: ready.call(1), device)
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, own))
    return [(event.key, getattr(event, own) / 1e6 / ready.count, event.count) for event in events[:OPERATORS]]


def main() -> int:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    started = time.perf_counter()
    case = Case(**json.loads(sys.argv[1]))
    if case.side == "ours" and case.row in GROUPS["training"] + GROUPS["autoencoder"]:
        keep_freed_memory()  # as main.py does
    found = measure(case)
    found["whole"] = time.perf_counter() - started
    write_whole(Path(sys.argv[2]), json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
