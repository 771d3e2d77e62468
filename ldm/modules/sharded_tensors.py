"""Tensors that are split over processes, and whole ones."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Tensor) -> Tensor:
    """A tensor with all of its parts; all processes must call this together where it is split over them."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def split_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, split as `parameter` is; as it is where their shapes differ."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh = parameter.device_mesh
    # Every process has the whole: nothing is to be sent.
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
