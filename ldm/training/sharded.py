"""Training whose weights, gradients and optimiser's state are spread over the processes: FSDP, the second of its kind.

Zhao et al., "PyTorch FSDP" (VLDB 2023); the ZeRO-3 of Rajbhandari et al. (SC 2020). Each network's blocks gather their
weights for as long as they compute. Checkpoints are those of one process: whole tensors, in one file.
"""

from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from basicsr.utils.errors import UserError
from ldm.modules.diffusionmodules.blocks import StageSequential
from ldm.modules.sharded_tensors import split_like, whole


class ShardedStrategy(DDPStrategy):
    """Splits the networks that a model names over all processes; what else it has is whole on each of them.

    Raises:
        UserError: at the start of training, for a model that names none.
    """

    def configure_ddp(self) -> None:
        """Called by Lightning once the model is on its device, before the optimisers are built."""
        assert self.lightning_module is not None
        split_over_processes = getattr(self.lightning_module, "split_over_processes", None)
        if split_over_processes is None:
            raise UserError(f"strategy fsdp: {type(self.lightning_module).__name__} cannot be split: use ddp")
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))

        def split(network: nn.Module) -> None:
            blocks = [part for part in network.modules() if isinstance(part, StageSequential)]
            for part in [*blocks, network]:
                # After the last one's forward pass, too: else what a validation gathered would be used in training.
                fully_shard(part, mesh=mesh, reshard_after_forward=True)

        split_over_processes(split)
        for name, parameter in self.lightning_module.named_parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                hint = " (edge_loss_type: adversarial)" if name.startswith("edge_discriminator.") else ""
                raise UserError(f"strategy fsdp: {name} is trained and cannot be split{hint}: use ddp")

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors in the first process's memory; placeholders in the others', which save nothing."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `lightning_module_state_dict`."""
        return self._gathered(optimizer.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each process keeps its part of what the file has whole."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                index: {name: split_like(value, parameters[index]) for name, value in moments.items()}
                for index, moments in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})

    def _gathered(self, tree: dict[str, Any]) -> dict[str, Any]:
        def gather(value: Tensor) -> Tensor:
            full = whole(value)  # all processes together
            return full.cpu() if self.is_global_zero else full.new_empty(0)

        gathered: dict[str, Any] = apply_to_collection(tree, Tensor, gather)
        return gathered
