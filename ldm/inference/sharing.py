"""Independent work shared over processes: all GPUs of a machine, or of several; the one way of it in this project.

Every process runs the same command, takes its share of the same list, and writes its own files:

    team = Team.of(devices, nodes)
    networks = team.together(lambda: Networks.load(...))
    for job in team.share(jobs): ...
    done, failed = team.sums(done, failed)

Lightning starts the processes and finds the ranks, on one machine as under Slurm or torchrun. What is made of a job
must be a function of the job alone; then nothing depends on who does it. Where one of them fails, it says why, and the
others stop within seconds, without a trace of their own.
"""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from basicsr.utils.errors import FieldError, UserError
from ldm.inference.networks import chosen_device

Job = TypeVar("Job")
Value = TypeVar("Value")
FAILED = 1  # the exit status of a process that ends because another one has
FOREVER = timedelta(days=365)  # the quickest process waits for the slowest at the end


@dataclass(frozen=True)
class Team:
    """The processes that share some work, seen from one of them."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def of(cls, devices: int | str = 1, nodes: int = 1, device: str = "auto") -> "Team":
        """Start the other processes, where there are to be any: each runs this program's command line from its start.

        Args:
            devices: processes on this machine, one for each GPU, or on the CPU; "auto" for all GPUs.
            nodes: machines; the command is started on each, by Slurm, by torchrun, or with MASTER_ADDR, MASTER_PORT and
                NODE_RANK set.
            device: of a team of one alone: auto, cpu, cuda, cuda:1.

        Raises:
            FieldError: of `devices`: fewer than one, or more than there are GPUs.
        """
        gpus = torch.cuda.device_count() if device != "cpu" else 0
        count = max(1, gpus) if devices == "auto" else devices
        if not isinstance(count, int) or count < 1 or (gpus and count > gpus):
            raise FieldError(
                "devices", f"is {devices}: give 1 {f'to {gpus}, the number of GPUs' if gpus else 'or more'}"
            )
        started_elsewhere = SLURMEnvironment.detect() or TorchElasticEnvironment.detect()
        if count * nodes == 1 and not started_elsewhere:
            return cls(0, 1, chosen_device(device))
        for name in ("lightning_fabric", "pytorch_lightning"):  # Fabric's messages go by the one that is imported last
            logging.getLogger(name).setLevel(logging.WARNING)
        fabric = Fabric(
            accelerator="cuda" if gpus else "cpu",
            devices=count,
            num_nodes=nodes,
            strategy=DDPStrategy(process_group_backend="gloo", timeout=FOREVER),
            plugins=None if started_elsewhere else LightningEnvironment(),
        )
        fabric.launch()
        atexit.register(_leave)
        if fabric.local_rank > 0 and not started_elsewhere:
            # Lightning's first process watches over the others; nobody watches over the first one.
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        return cls(fabric.global_rank, fabric.world_size, fabric.device)

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks."""
        return self.rank == 0

    def together(self, work: Callable[[], Value]) -> Value:
        """What `work` returns, which all processes do; it fails in all where it fails in one.

        Raises:
            UserError, SystemExit: the first error; only the first process says so.
        """
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = error
        problems = [each for each in self.gathered(problem) if each is not None]
        if problems and not self.first:
            raise SystemExit(FAILED)
        if problems:
            raise problems[0]
        return cast(Value, result)

    def share(self, jobs: Sequence[Job]) -> list[Job]:
        """This process's part of a list that all have alike."""
        return list(jobs[self.rank :: self.size])

    def agreed(self, value: Value) -> Value:
        """The first process's value, for all; anything that can be pickled."""
        values = [value]
        if self.size > 1:
            with self._meeting():
                dist.broadcast_object_list(values)
        return values[0]

    def gathered(self, value: Value) -> list[Value]:
        """Every process's value, by rank. They wait here for each other."""
        values = [value] * self.size
        if self.size > 1:
            with self._meeting():
                dist.all_gather_object(values, value)
        return values

    def sums(self, *numbers: float) -> list[float]:
        """Each number summed over all processes, which wait here for each other."""
        total = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            with self._meeting():
                dist.all_reduce(total)
        return total.tolist()

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """All processes talk to each other within.

        Raises:
            UserError, SystemExit: another one has failed or was killed; only the first process says so.
        """
        try:
            yield
        except RuntimeError as error:  # of the library that connects them
            if not self.first:
                raise SystemExit(FAILED) from error
            raise UserError(
                f"one of the {self.size} processes failed, as it says itself, or was killed; the same command goes on"
            ) from error


def _leave() -> None:
    """Close the connections to the others; their threads, still running as the process ends, would abort it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_with(parent: int) -> None:
    """End this process as soon as its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(FAILED)
