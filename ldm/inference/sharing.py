"""Independent work shared over processes: all GPUs of a machine, or of several; the one way of it in this project.

Every process runs the same command, takes its share of the same list, and writes its own files:

    team = Team.of(devices, nodes)
    for job in team.share(jobs): ...
    done, failed = team.sums(done, failed)

Lightning starts the processes and finds the ranks, on one machine as under Slurm or torchrun. What is made of a job
must be a function of the job alone; then nothing depends on who does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from basicsr.utils.errors import FieldError

Job = TypeVar("Job")
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
            return cls(0, 1, torch.device(("cuda" if gpus else "cpu") if device == "auto" else device))
        fabric = Fabric(
            accelerator="cuda" if gpus else "cpu",
            devices=count,
            num_nodes=nodes,
            strategy=DDPStrategy(process_group_backend="gloo", timeout=FOREVER),
            plugins=None if started_elsewhere else LightningEnvironment(),
        )
        fabric.launch()
        return cls(fabric.global_rank, fabric.world_size, fabric.device)

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks."""
        return self.rank == 0

    def share(self, jobs: Sequence[Job]) -> list[Job]:
        """This process's part of a list that all have alike."""
        return list(jobs[self.rank :: self.size])

    def sums(self, *numbers: float) -> list[float]:
        """Each number summed over all processes, which wait here for each other."""
        total = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return total.tolist()
