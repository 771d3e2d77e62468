"""Building a network whose weights will all come from a file, without drawing random ones first."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = (Tensor.uniform_, Tensor.normal_)
FILLS = (Tensor.zero_, Tensor.fill_)
Built = TypeVar("Built")

_skipped: ContextVar[bool] = ContextVar("initial_values_skipped", default=False)


class WeightsMissingError(Exception):
    """Initial values are wanted after all: a file that is to hold all weights does not."""


class _WithoutInitialValues(TorchFunctionMode):
    """Leaves parameters as the allocator gives them, which takes neither time nor memory before they are written."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        tensor = args[0] if args else given.get("tensor")
        from_init = (
            getattr(func, "__module__", None) == nn.init.__name__
        )  # which gives some calls on under its own name
        if from_init or func in DRAWS or (func in FILLS and isinstance(tensor, nn.Parameter)):
            return tensor
        return func(*args, **given)


@contextmanager
def initial_values_skipped() -> Iterator[None]:
    """Within this context modules get no initial values, and a `load_checkpoint` that leaves any to them fails."""
    token = _skipped.set(True)
    try:
        with _WithoutInitialValues():
            yield
    finally:
        _skipped.reset(token)


def refuse_if_skipped() -> None:
    """For whoever leaves a weight at its initial value. Raises WeightsMissingError where there is none."""
    if _skipped.get():
        raise WeightsMissingError


def from_file_if_whole(build: Callable[[], Built]) -> Built:
    """What `build` builds and loads: without initial values, and once more with them where the file lacks some.

    Both ways the result is the same, and in the second so is what is drawn from PyTorch's generator.
    """
    try:
        with initial_values_skipped():
            return build()
    except WeightsMissingError:
        return build()
