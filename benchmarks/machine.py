"""What a measurement needs of the machine: its name, its peak of matrix products, FLOPs and memory of what is run."""

import ctypes
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MADV_PAGEOUT = 21  # of Linux: changed pages, which have no file, stay
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}


def cpu_name() -> str:
    """As the kernel tells it on Linux."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_of(device: str) -> dict[str, Any]:
    """The machine in words; `kind` names the file of its results."""
    name = cpu_name() if device == "cpu" else torch.cuda.get_device_name(device)
    version = torch.__version__.partition("+")[0]
    words = f"{name} {cores()} cores torch {version}" if device == "cpu" else f"{name} torch {version}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device == "cpu" else _gpu_memory(device)
    return {
        "kind": re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-"),
        "name": name,
        "device": device.partition(":")[0],
        "cores": cores(),
        "memory_gb": round(memory / 1e9, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _gpu_memory(device: str) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


def synchronize(device: str) -> None:
    """Wait for a GPU's work; nothing to do on the CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: str) -> float:
    """By the clock, with all that the device still has to do."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def matmul_peak(device: str, precision: str, seconds: float = 1.5) -> float:
    """FLOP/s of the best of the products of two square matrices that fit into `seconds`."""
    side = MATMUL_SIDE[device.partition(":")[0]]
    a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
    seconds_of(lambda: a @ b, device)
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        best = min(best, seconds_of(lambda: a @ b, device))
    return 2 * side**3 / best


def forget_peak(device: str, folder: str) -> None:
    """From here on `peak_memory` counts anew, beginning with what is held now.

    Mapped pages of files in `folder` are given back before, so that only those count that are touched again.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    for line in Path("/proc/self/maps").read_text().splitlines():
        if folder in line:
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_PAGEOUT)
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """Bytes held at most: allocated on a GPU; resident of this process alone on the CPU (on Linux).

    What getrusage tells instead, a new process inherits from its parent.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(_grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Five products where the forward pass has two: the scores once more, and the gradients of all four factors."""
    return int(sdpa_flop_count(query, key, value) * 5 // 2)


def count_flops(call: Callable[[], object]) -> int:
    """Of convolutions, matrix products and attention, as they are run: what is computed again counts again."""
    aten: Any = torch.ops.aten
    own = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        call()
    return int(counter.get_total_flops())
