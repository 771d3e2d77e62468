"""Upscaling for users of the library: `from ldm.inference import Upscaler`."""

from ldm.inference.pipeline import Upscaler

__all__ = ["Upscaler"]
