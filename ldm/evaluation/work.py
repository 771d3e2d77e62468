"""Computing what is missing, on one process or several."""

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from queue import Empty
from typing import Any

import torch
from tqdm import tqdm

from basicsr.metrics.measure import Lpips
from basicsr.utils.errors import UserError
from ldm.evaluation.records import Record
from ldm.evaluation.restore import load_networks

# Tells of one picture that is done (None) or of a checkpoint that cannot be used (why).
News = Callable[[str | None], None]


def choose_devices(count: int) -> list[str]:
    """`count` devices: GPUs where there are any, else the CPU as often as asked.

    Raises:
        UserError: fewer than one, or more than there are GPUs.
    """
    gpus = torch.cuda.device_count()
    if count < 1 or (gpus and count > gpus):
        raise UserError(f"--devices {count}: give 1 {f'to {gpus}, the number of GPUs' if gpus else 'or more'}")
    return [f"cuda:{index}" for index in range(count)] if gpus else ["cpu"] * count


def compute(missing: Sequence[Record], devices: Sequence[str]) -> list[str]:
    """Restore and measure what is missing; the pictures of each checkpoint are dealt to the devices.

    Noise is a function of seed and picture, so who computes what changes nothing.

    Returns:
        A line for each checkpoint that cannot be used: it is gone, was written anew, or does not fit its config.

    Raises:
        UserError: LPIPS is asked for and not to be had.
    """
    if not missing:
        return []
    if missing[0].settings.lpips:
        Lpips()  # to fail before anything is computed
    problems: list[str] = []
    often = 0.1 if sys.stderr.isatty() else 10.0  # seconds
    with tqdm(total=len(missing), desc="pictures", unit="picture", mininterval=often) as bar:

        def news(problem: str | None) -> None:
            if problem is None:
                bar.update()
            elif problem not in problems:
                problems.append(problem)

        if len(devices) == 1:
            _work(missing, devices[0], news)
        else:
            _share(missing, devices, news)
    return problems


def _work(records: Sequence[Record], device: str, news: News) -> None:
    """Restore and measure these records, which are sorted by checkpoint."""
    lpips = Lpips() if records and records[0].settings.lpips else None
    loaded, networks, spoilt = None, None, None
    for record in records:
        if record.checkpoint == spoilt:
            continue
        if not record.restored.exists():
            if loaded != record.checkpoint:
                networks = None  # the memory of the one before is needed
                try:
                    networks = load_networks(record.run, record.checkpoint, torch.device(device))
                except UserError as error:
                    spoilt = record.checkpoint
                    news(str(error))
                    continue
                loaded = record.checkpoint
            assert networks is not None
            try:
                record.restore(networks)
            except UserError as error:
                news(f"{record.picture.gt}: {error}")
                continue
        record.measure(lpips)
        news(None)


def _share(missing: Sequence[Record], devices: Sequence[str], news: News) -> None:
    """`_work` in one process for each device."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    threads = max(1, torch.get_num_threads() // len(devices))
    processes = [
        context.Process(target=_process, args=(missing[rank :: len(devices)], device, threads, queue), daemon=True)
        for rank, device in enumerate(devices)
    ]
    for process in processes:
        process.start()
    try:
        working = len(processes)
        while working:
            try:
                kind, text = queue.get(timeout=1)
            except Empty:
                if dead := [process.exitcode for process in processes if process.exitcode]:
                    raise RuntimeError(f"a process ended with status {dead[0]}; was there too little memory?") from None
                continue
            if kind == "crash":
                raise RuntimeError(f"a process failed:\n{text}")
            if kind == "error":
                raise UserError(text)
            if kind == "end":
                working -= 1
            else:
                news(text)
    finally:
        for process in processes:
            process.terminate() if working else process.join()


def _process(records: Sequence[Record], device: str, threads: int, queue: "Queue[tuple[str, Any]]") -> None:
    """One process's share; what happens goes to the queue as (kind, text)."""
    torch.set_num_threads(threads)

    def news(problem: str | None) -> None:
        first = multiprocessing.parent_process()
        if first is not None and not first.is_alive():
            sys.exit("the process that this one works for is gone")
        queue.put(("news", problem))

    try:
        _work(records, device, news)
        queue.put(("end", None))
    except UserError as error:
        queue.put(("error", str(error)))
    except (KeyboardInterrupt, SystemExit):
        pass  # after Ctrl-C the first process, which got it too, says so
    except BaseException:
        queue.put(("crash", traceback.format_exc()))
