"""Reference outputs of the published network at tiny sizes, and the weights and inputs that they were made with.

Neither weights nor inputs are stored: each is drawn from a seed made of its own name, so equal names and shapes give
equal values. The arrays hold what the published code made of them.
"""

import json
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

FOLDER = Path(__file__).parent
SALT = "tiny"
SIDE = 16  # of the tiny latents; their pictures have eight times as many pixels
CONFIG = json.loads((FOLDER / "tiny.json").read_text())
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())


def _standard_normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    digest = blake2b((SALT + name).encode(), digest_size=4).digest()
    stream = np.random.RandomState(int.from_bytes(digest, "little"))
    return np.asarray(stream.standard_normal(shape), dtype=np.float32)


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """The standard-normal input of that name."""
    return torch.from_numpy(_standard_normal("input:" + name, tuple(shape)))


@torch.no_grad()
def fill(module: Module) -> Module:
    """Give every parameter its value: matrices scaled by fan-in, norms' weights around 1, the rest around 0."""
    for key, parameter in module.named_parameters():
        value = _standard_normal(key, tuple(parameter.shape))
        if parameter.ndim >= 2:
            value = value / np.float32(np.sqrt(np.prod(parameter.shape[1:])))
        elif key.endswith(".weight"):
            value = 1 + np.float32(0.1) * value
        else:
            value = np.float32(0.05) * value
        parameter.copy_(torch.from_numpy(np.asarray(value)))
    return module


def relative_error(got: Tensor | np.ndarray, want: Tensor | np.ndarray) -> float:
    """Norm of the difference over norm of the reference."""
    a, b = (torch.as_tensor(x).detach().double() for x in (got, want))
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    return float((a - b).norm() / b.norm().clamp(min=1e-12))
