"""An exponential moving average of a model's trainable parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LitEma(nn.Module):
    """shadow <- shadow - (1 - d) (shadow - parameter), with d = min(decay, (1 + updates) / (10 + updates)).

    Buffers are named as in published checkpoints: the parameter's name with its dots taken out, `decay`, `num_updates`.
    """

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        super().__init__()
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int))
        self._shadow_of = {name: name.replace(".", "") for name, p in model.named_parameters() if p.requires_grad}
        for name, shadow in self._shadow_of.items():
            self.register_buffer(shadow, model.get_parameter(name).detach().clone())

    @torch.no_grad()
    def reset(self, model: nn.Module) -> None:
        """Start again from the model's present parameters."""
        self.num_updates.zero_()
        for name, shadow in self._shadow_of.items():
            self.get_buffer(shadow).copy_(model.get_parameter(name))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step of the average, after an optimiser step."""
        self.num_updates += 1
        updates = self.num_updates.float()
        rate = 1 - torch.minimum(self.decay, (1 + updates) / (10 + updates))
        for name, shadow in self._shadow_of.items():
            self.get_buffer(shadow).lerp_(model.get_parameter(name), rate.to(self.get_buffer(shadow).dtype))

    def split_like(self, model: nn.Module) -> None:
        """Split the averages over the processes as the model's parameters are."""
        from ldm.modules.sharded_tensors import split_like

        for name, shadow in self._shadow_of.items():
            self.register_buffer(shadow, split_like(self.get_buffer(shadow), model.get_parameter(name)))

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within this context the model has the averaged parameters."""
        trained = {name: model.get_parameter(name).detach().clone() for name in self._shadow_of}
        with torch.no_grad():
            for name, shadow in self._shadow_of.items():
                model.get_parameter(name).copy_(self.get_buffer(shadow))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in trained.items():
                    model.get_parameter(name).copy_(value)
