"""Random streams that are functions of where we are, not of what ran before.

Every draw in training comes from a stream named by its purpose and place, such as ("crop", seed, epoch, index). Nothing
has to be saved for a resumed run to go on with the same numbers, and neither the number of workers nor the order of
work changes them.
"""

from hashlib import blake2b

import numpy as np
import torch


def derived_seed(*name: str | int) -> int:
    """One seed in [0, 2^63) for the stream `name`; equal names give equal seeds."""
    return int.from_bytes(blake2b(repr(name).encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(*name: str | int) -> np.random.Generator:
    """A NumPy generator for the stream `name`."""
    return np.random.default_rng(derived_seed(*name))


def torch_rng(device: torch.device | str, *name: str | int) -> torch.Generator:
    """A PyTorch generator on `device` for the stream `name`."""
    return torch.Generator(device).manual_seed(derived_seed(*name))
