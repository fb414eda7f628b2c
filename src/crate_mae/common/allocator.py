"""Memory that a training step frees is kept for the next one."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`, from its `malloc.h`."""
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Environment variables by which a user sets them."""


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory in this process; False where it has no such setting.

    By default glibc hands large blocks back to the system as soon as they are freed. A training
    step on a CPU then touches thousands of fresh pages for activations of the same sizes as before.
    Kept, they cost nothing; the peak stays the same, but is held until the process ends. What a
    user has set in the environment is left alone.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    # No blocks of their own for large requests, and nothing returned from the end of the heap.
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
