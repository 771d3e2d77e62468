"""Upscaling for users of the library: `from ldm.inference import Upscaler`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.inference.pipeline import Upscaler

__all__ = ["Upscaler"]


def __getattr__(name: str) -> Any:
    """Upscaler, when it is asked for: the command line's --help, which is in this package too, does without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ldm.inference.pipeline import Upscaler

    return Upscaler
