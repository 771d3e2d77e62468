"""Processes of one training that torchrun or srun started: what the first one chooses, such as a name with the time."""

import os
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # it is public all the same

from basicsr.utils.errors import UserError
from ldm.console import is_first_process

PATIENCE = timedelta(minutes=10)  # the first process may be slow to import PyTorch, from a disk that all read at once


def launched_processes() -> int:
    """How many processes a launcher started together; 1 where this one was started alone, as Lightning expects."""
    counts = [os.environ.get(name) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")]
    known = counts[0] if "TORCHELASTIC_RUN_ID" in os.environ else counts[1]  # any shell may have set WORLD_SIZE
    return int(known or 1)


def chosen_by_first(key: str, choose: Callable[[], str]) -> str:
    """What the first process chooses, in all processes that were launched together.

    It goes through a key-value store: torchrun's own, or one that the first process opens for as long as it takes.

    Raises:
        UserError: the processes do not find each other.
    """
    others = launched_processes() - 1
    if others == 0:
        return choose()
    chosen = choose() if is_first_process() else ""
    address, port, serve = _place()
    try:
        store = TCPStore(address, port, None, serve and is_first_process(), PATIENCE, wait_for_workers=False)
        key = f"stablesr-edge/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{key}"
        if not is_first_process():
            chosen = store.get(key).decode()  # waits until it is there
            store.add(f"{key}/read", 1)
            return chosen
        store.set(key, chosen)
        give_up = time.monotonic() + PATIENCE.total_seconds()
        while store.add(f"{key}/read", 0) < others:
            if time.monotonic() > give_up:
                raise UserError(f"not all of the {others + 1} processes have come: see what became of the others")
            time.sleep(0.1)
        return chosen
    except DistError as error:
        raise UserError(f"the training's first process cannot be reached at {address}:{port}: is it up?") from error


def _place() -> tuple[str, int, bool]:
    """Where the store is, and whether it is to be opened."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), False
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    slurm = SLURMEnvironment()
    return slurm.main_address, slurm.main_port + 10_000, True  # beside the port that training itself will use
