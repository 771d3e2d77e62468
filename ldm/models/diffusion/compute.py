"""What a training step may do to cost less: how frozen weights are kept, what is compiled, what an encoding serves."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.utils import checks
from basicsr.utils.errors import FieldError, first_line
from ldm.modules.losses.edge_options import EdgeOptions

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16}
POOLS = ("pixels", "latents")
_PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Compute:
    """The options of a model's `compute:` block, which may stand flat, too. The defaults are the published step,
    but for the optimiser's last bits.

    frozen_dtype: `bf16` keeps the weights of frozen convolutions and linear layers in that type, and the networks
        compute in mixed precision of it, whatever the trainer's precision is. Without it mixed precision casts the
        weights at every step, and keeps the copies for the backward pass. Norms, trained weights and the text tower
        stay in float32. Whole checkpoints then hold the rounded weights, in that type: those that the rest was trained
        with.
    channels_last: the layout of frozen convolutions, the one that convolutions are fastest in.
    compile: compile the U-Net and the time-aware encoder (`torch.compile`): the first step takes minutes longer. Where
        that is not possible the training says so and goes on without.
    fused_adamw: one pass over weights and moments instead of several; the last bits of the weights differ from those of
        the published optimiser, which `false` brings back.
    tf32: products of float32 on the tensor cores of newer NVIDIA GPUs, with 10 bits of mantissa for 23.
    draws_per_pair: k draws of timestep and noise for each encoded pair: the U-Net's batch is k times the pairs'.
    pool: what the training-pair pool holds, `pixels` or `latents`: a pair is then encoded before it goes in, and its k
        draws are of k steps (`LatentPool`).

    Raises:
        FieldError: a value that cannot be; the field is the flat name.
    """

    frozen_dtype: str | None = None
    channels_last: bool = False
    compile: bool = False
    fused_adamw: bool = True
    tf32: bool = False
    draws_per_pair: int = 1
    pool: str = "pixels"

    def __post_init__(self) -> None:
        if self.frozen_dtype is not None and self.frozen_dtype not in DTYPES:
            raise checks.unknown("frozen_dtype", str(self.frozen_dtype), tuple(DTYPES))
        checks.whole_number("draws_per_pair", self.draws_per_pair, 1)
        if self.pool not in POOLS:
            raise checks.unknown("pool", str(self.pool), POOLS)
        for name in ("channels_last", "compile", "fused_adamw", "tf32"):
            checks.switch(name, getattr(self, name))

    def check_edge_loss(self, options: EdgeOptions) -> None:
        """Raise FieldError where an edge loss with these options needs what the pool does not hold."""
        if self.pool == "latents" and options.needs_pictures:
            named = "edge_target: pixels" if options.target == "pixels" else "edge_crop_by: edges"
            raise FieldError(
                "pool", f"is 'latents', which has no pictures, and {named} needs them: change one of the two"
            )

    def prepare(self, unet: nn.Module, structure: nn.Module, vae: nn.Module) -> None:
        """Bring loaded networks into the form that training has them in. To be called once."""
        if self.tf32:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        for network in (unet, vae):  # all of the structure encoder is trained
            if self.channels_last:
                lay_out(network)
            if self.frozen_dtype is not None:
                cast_frozen(network, DTYPES[self.frozen_dtype])
        if self.frozen_dtype is not None:
            for module, method in ((unet, "forward"), (structure, "forward"), (vae, "encode"), (vae, "decode")):
                under_autocast(module, method, DTYPES[self.frozen_dtype])
        for network in (unet, structure) if self.compile else ():
            compile_forward(network)

    def adamw(self, trained: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
        """The optimiser. It gets unscaled gradients: they can be clipped, and an overflow seen, in every precision."""
        optimizer = torch.optim.AdamW(trained, lr=learning_rate, fused=self.fused_adamw or None)
        setattr(optimizer, "_step_supports_amp_scaling", False)  # noqa: B010 (PyTorch declares no such attribute)
        return optimizer


def frozen_products(network: nn.Module) -> list[nn.Module]:
    """The convolutions and linear layers that are not trained."""
    return [
        module
        for module in network.modules()
        if isinstance(module, _PRODUCTS) and not any(weight.requires_grad for weight in module.parameters())
    ]


def cast_frozen(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of frozen convolutions and linear layers in `dtype`, one after the other."""
    for module in frozen_products(network):
        module.to(dtype)


def lay_out(network: nn.Module) -> None:
    """Keep frozen convolutions in channels_last; what is trained keeps the layout that optimisers' states have."""
    for module in frozen_products(network):
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def under_autocast(module: nn.Module, method: str, dtype: torch.dtype) -> None:
    """Let a module's method always compute in mixed precision of `dtype`; a tensor comes back in float32."""
    run: Callable[..., Any] = getattr(module, method)

    @wraps(run)
    def mixed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(module.parameters()).device.type, dtype):
            result = run(*args, **kwargs)
        return result.float() if isinstance(result, Tensor) else result

    setattr(module, method, mixed)


def compile_forward(module: nn.Module) -> None:
    """Compile a module's forward pass; where PyTorch cannot, a line in the log says so and it runs as it is."""
    from torch._dynamo.exc import TorchDynamoException  # a second to import

    eager: Callable[..., Any] = module.forward
    compiled: list[Callable[..., Any]] = [torch.compile(eager)]

    @wraps(eager)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if compiled:
            try:
                return compiled[0](*args, **kwargs)
            except TorchDynamoException as error:
                compiled.clear()
                log.warning("%s runs without torch.compile: %.200s", type(module).__name__, first_line(error))
        return eager(*args, **kwargs)

    setattr(module, "forward", forward)  # noqa: B010 (mypy: a method cannot be assigned to)
