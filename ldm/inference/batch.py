"""How many tiles go through the networks at once, where nobody says it."""

import os
from typing import Any

import torch

from ldm.inference.networks import Networks

# Floats that live at once in the widest level of the U-Net, per latent cell and channel of it, rounded up: the skips,
# a gated linear layer four times as wide as it is given, SPADE's maps, and the structure's features.
FLOATS = 48
MOST = {"cpu": 16, "cuda": 64}  # more makes nothing faster
CPU_BYTES = 10**9  # a processor is busy with a few tiles already, and its memory is others' too


def fitting_batch(networks: Networks, tile: int | None, conditions: int) -> int:
    """Tiles of `tile` x `tile` latent cells that fit into half of the free memory, at least 1; without tiles 1.

    conditions: how often each tile is predicted at once: 1, and 1 for each guidance.
    """
    if tile is None:
        return 1
    unet: Any = networks.model.model.diffusion_model
    weights, width = next(unet.parameters()), unet.model_channels
    needed = tile**2 * width * FLOATS * weights.element_size() * conditions
    usable = min(_free(networks.device) / 2, CPU_BYTES if networks.device.type == "cpu" else float("inf"))
    return max(1, min(int(usable / needed), MOST.get(networks.device.type, 1)))


def _free(device: torch.device) -> float:
    """Bytes of the device's memory that nothing uses; as many as one likes where it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return float("inf")
