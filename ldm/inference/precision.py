"""Which precision a device computes well in."""

import logging

import torch

from ldm.inference.settings import PRECISION_CHOICES, check_choice

log = logging.getLogger(__name__)


def chosen_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. `auto` is decided by what the device can do, and told in a line.

    Raises:
        FieldError: an unknown one.
    """
    check_choice("precision", name, PRECISION_CHOICES)
    if name != "auto":
        return name
    chosen, why = native(device)
    log.info("precision: %s, %s", chosen, why)
    return chosen


def native(device: torch.device) -> tuple[str, str]:
    """The fastest precision that a device has units for, bf16 before fp16, whose numbers end at 65504; and why."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        units = [label for name, label in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")) if able.get(name)]
        return ("bf16", f"for this CPU has {units[0]}") if units else ("fp32", "for this CPU has no units for bf16")
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bf16", "for this GPU has units for it"
            if torch.cuda.get_device_capability(device) >= (7, 0):  # the first with units for half precision
                return "fp16", "for this GPU has units for it, and none for bf16"
    return "fp32", f"for nothing faster is known of {device.type}"
