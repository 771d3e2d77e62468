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
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import OutputError
from ldm.evaluation.measure.pictures import usable
from ldm.evaluation.measure.records import Record
from ldm.evaluation.measure.restore import load_networks
from ldm.evaluation.measure.sources import Folder, Trained
from ldm.inference.networks import Networks

# Tells of one picture that is done (None) or of a checkpoint that cannot be used (why).
News = Callable[[str | None], None]


def choose_devices(count: int) -> list[str]:
    """`count` devices: GPUs where there are any, else the CPU as often as asked.

    Raises:
        UserError: fewer than one, or more than there are GPUs.
    """
    gpus = torch.cuda.device_count()
    if count < 1 or (gpus and count > gpus):
        raise FieldError("devices", f"is {count}: give 1 {f'to {gpus}, the number of GPUs' if gpus else 'or more'}")
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
    _lpips_of(missing)  # to fail before anything is computed
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


def _lpips_of(records: Sequence[Record]) -> Lpips | None:
    """The metric that the records' settings ask for, if they do.

    Raises:
        FieldError: its weights are missing or unfit.
    """
    settings = records[0].settings if records else None
    return Lpips(settings.lpips, settings.lpips_weights) if settings and settings.lpips else None


def _work(records: Sequence[Record], device: str, news: News) -> None:
    """Restore and measure these records, which are sorted by checkpoint."""
    lpips = _lpips_of(records)
    loaded: Trained | None = None
    networks: Networks | None = None
    spoilt: Trained | None = None
    for record in records:
        source = record.source
        if source == spoilt:
            continue
        missing = not isinstance(source, Folder) and not usable(record.restored)
        try:
            if missing and isinstance(source, Trained) and source != loaded:
                networks = None  # the memory of the one before is needed
                spoilt = source  # unless it loads
                networks = load_networks(source.run, source.checkpoint, torch.device(device))
                loaded, spoilt = source, None
        except UserError as error:
            news(str(error))
            continue
        try:
            if missing:
                record.restore(networks if isinstance(source, Trained) else None)
            record.measure(lpips)
            news(None)
        except OutputError:
            raise
        except UserError as error:
            news(f"{record.picture.gt}: {error}")


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
