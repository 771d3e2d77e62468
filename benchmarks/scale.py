"""The tables of docs/scale.md: memory, traffic, efficiency and output on many GPUs, by arithmetic from named inputs.

    python benchmarks/scale.py          # a minute; no weights, no data, no GPU

Parameters, FLOPs and activations are counted on the full-size model on PyTorch's meta device. Everything about the
hardware is an assumption, in `Hardware`. Nothing here was measured.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ldm.config import load_config
from ldm.models.build import build_model
from ldm.modules.diffusionmodules.blocks import StageSequential

CONFIG = "stableSRNew/v2-finetune_text_T_512.yaml"
FRAME, CELLS, CONTEXT = 512, 64, 1024  # pixels, latent cells, text channels
STEPS = 200  # of sampling
DEVICES = (8, 64, 512)
GB = 1e9
FULL, HALF = 4, 2  # bytes of a number


@dataclass(frozen=True)
class Hardware:
    """Assumed: H100 SXM by its data sheet, eight in a machine, and a network card of 400 Gb/s for each of them."""

    peak_flops: float = 989e12  # bf16, dense
    used: float = 0.35  # the share of the peak that convolutions and attention of these sizes reach
    inside: float = 450e9  # bytes/s and direction, from GPU to GPU in a machine
    between: float = 50e9  # bytes/s and direction, for each GPU, from machine to machine
    per_machine: int = 8

    def link(self, devices: int) -> float:
        """The slowest link of a ring over that many GPUs."""
        return self.inside if devices <= self.per_machine else self.between


@dataclass(frozen=True)
class Counts:
    """What a full-size model holds and does for one picture of 512 pixels."""

    unet: int
    spade: int
    structure: int
    autoencoder: int
    largest_block: int
    training_flops: float
    denoising_flops: float  # one step of sampling
    autoencoder_flops: float  # encoding and decoding
    activations: int  # numbers kept for the backward pass

    def trained(self, *, unfrozen: bool) -> int:
        """Parameters with a gradient."""
        return (self.unet if unfrozen else self.spade) + self.structure


def counted(work: Callable[[], object]) -> float:
    """FLOPs of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def size(module: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count() -> Counts:
    """Build the model without values, and count."""
    with torch.device("meta"):
        model = build_model(load_config([CONFIG], ["model.params.ckpt_path=null"]))
    networks = model.model.diffusion_model, model.structcond_stage_model
    z, t = torch.empty(1, 4, CELLS, CELLS, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    context, picture = torch.empty(1, 77, CONTEXT, device="meta"), torch.empty(1, 3, FRAME, FRAME, device="meta")
    kept: dict[int, int] = {}
    own = {id(parameter) for parameter in model.parameters()}

    def keep(value: Tensor) -> Tensor:
        if id(value) not in own:
            kept[id(value.untyped_storage())] = value.numel()
            alive.append(value)  # or another would get its number
        return value

    alive: list[Tensor] = []

    def denoise() -> Tensor:
        output: Tensor = networks[0](z, t, context, networks[1](z, t))
        return output

    def train() -> None:
        with torch.no_grad():
            for _ in ("truth", "degraded"):
                model.first_stage_model.encode(picture)
        denoise().sum().backward()

    with saved_tensors_hooks(keep, lambda value: value):
        denoise()
    with torch.no_grad():
        denoising = counted(denoise)
        autoencoding = counted(lambda: (model.first_stage_model.encode(picture), model.first_stage_model.decode(z)))
    return Counts(
        unet=size(networks[0]),
        spade=sum(p.numel() for p in networks[0].parameters() if p.requires_grad),
        structure=size(networks[1]),
        autoencoder=size(model.first_stage_model),
        largest_block=max(
            size(part) for net in networks for part in net.modules() if isinstance(part, StageSequential)
        ),
        training_flops=counted(train),
        denoising_flops=denoising,
        autoencoder_flops=autoencoding,
        activations=sum(kept.values()),
    )


def memory(c: Counts, strategy: str, devices: int, *, unfrozen: bool) -> float:
    """Bytes of a device in 32-bit training: weights, gradients, AdamW's two moments, buffers; no activations."""
    trained, split = c.trained(unfrozen=unfrozen), c.unet + c.structure
    if strategy == "ddp":  # gradients a second time, in the buckets that travel
        return FULL * (split + c.autoencoder + 4 * trained)
    if strategy == "deepspeed":  # ZeRO-2: bf16 weights and gradients, 32-bit weights and moments; these split
        return HALF * (split + c.autoencoder) + (HALF + 3 * FULL) * trained / devices
    return FULL * (c.autoencoder + (split + 3 * trained) / devices + 2 * c.largest_block)


def traffic(c: Counts, strategy: str, devices: int, *, unfrozen: bool) -> float:
    """Bytes that a device sends in a step, by rings."""
    trained, split, ring = c.trained(unfrozen=unfrozen), c.unet + c.structure, (devices - 1) / devices
    if strategy == "ddp":
        return ring * 2 * FULL * trained  # all-reduce
    if strategy == "deepspeed":
        return ring * 2 * HALF * trained  # gradients out, weights back
    return ring * FULL * (2 * split + trained)  # weights for the forward and the backward pass, gradients


def efficiency(
    c: Counts, h: Hardware, strategy: str, devices: int, *, unfrozen: bool, batch: int
) -> tuple[float, float]:
    """The share of a step that is computing: where nothing travels meanwhile, and where all does that can."""
    computing = batch * c.training_flops / (h.peak_flops * h.used)
    travelling = traffic(c, strategy, devices, unfrozen=unfrozen) / h.link(devices)
    return computing / (computing + travelling), min(1.0, computing / travelling)


def pictures_a_day(flops: float, h: Hardware, devices: int) -> float:
    """As many as the devices compute."""
    return 86_400 * devices * h.peak_flops * h.used / flops


def table(head: str, rows: list[str]) -> str:
    """Markdown."""
    line = "|" + "---|" * (head.count("|") - 1)
    return "\n".join([head, line, *rows, ""])


def main() -> None:
    """Print the tables."""
    c, h = count(), Hardware()
    print(table("| counted | |", [f"| {name} | {value:,.4g} |" for name, value in vars(c).items()]))
    print(table("| assumed | |", [f"| {name} | {value:,.4g} |" for name, value in vars(h).items()]))
    rows, kinds = [], [("stage 1", False), ("whole U-Net", True)]
    for kind, unfrozen in kinds:
        for strategy in ("ddp", "fsdp", "deepspeed"):
            held = [f"{memory(c, strategy, n, unfrozen=unfrozen) / GB:.1f}" for n in DEVICES]
            sent = [f"{traffic(c, strategy, n, unfrozen=unfrozen) / GB:.2f}" for n in DEVICES]
            rows.append(f"| {kind}, {strategy} | {' / '.join(held)} | {' / '.join(sent)} |")
    print(table("| | GB a device holds, on 8 / 64 / 512 | GB a device sends a step |", rows))
    rows = []
    for kind, unfrozen in kinds:
        for strategy in ("ddp", "fsdp", "deepspeed"):
            for batch in (1, 3, 24):
                pairs = [efficiency(c, h, strategy, n, unfrozen=unfrozen, batch=batch) for n in DEVICES]
                rows.append(
                    f"| {kind}, {strategy}, batch {batch} | "
                    + " | ".join(f"{a:.0%} to {b:.0%}" for a, b in pairs)
                    + " |"
                )
    print(table("| | 8 | 64 | 512 |", rows))
    picture = STEPS * c.denoising_flops + c.autoencoder_flops
    rows = []
    for name, flops in {
        "trained on, batch 1": c.training_flops,
        "upscaled to 512 pixels, 200 steps": picture,
        "upscaled to 512 pixels, 4 steps (turbo)": 4 * c.denoising_flops + c.autoencoder_flops,
        "stage-2 data, 512 pixels, 200 steps": picture + c.autoencoder_flops,
    }.items():
        days = " | ".join(f"{pictures_a_day(flops, h, n):,.3g}" for n in (1, *DEVICES))
        rows.append(f"| {name} | {flops / 1e12:,.4g} | {days} |")
    print(table("| | TFLOP a picture | 1 GPU | 8 | 64 | 512 |", rows))
    print(f"activations of one picture: {c.activations * FULL / GB:.1f} GB in 32 bits, half of it in 16")


if __name__ == "__main__":
    main()
