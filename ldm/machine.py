"""What a command asks of the machine before PyTorch comes: threads that do not spin, and memory that is kept.

Both change speed alone, never a result. This module loads no PyTorch.
"""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def let_threads_wait() -> None:
    """OpenMP's threads sleep while they have nothing to do, unless OMP_WAIT_POLICY says otherwise.

    By default they spin, and beside another busy process a step of the demo then takes up to ten times as long. To be
    called before PyTorch is imported, for OpenMP reads its variables when it is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, rather than give it back and ask again; returns whether that was done.

    A layer's buffers are of tens of megabytes. glibc maps such afresh each time, and the kernel clears their pages: a
    fifth to a half of a convolution's time on the CPU. Whoever sets malloc by the environment, or brings another
    malloc, keeps it. The process then holds its peak until it ends.
    """
    if any(name in os.environ for name in _MALLOC_VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:  # not glibc
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, 64 << 20)])
