"""How much memory what a file claims may take: told before it is taken."""

import contextlib
import os
from pathlib import Path

from crate_mae.common.text import bytes_text

SMALL = 256 << 20
"""Bytes that anything may grow to without a question."""
GROWTH = 200
"""How many times its size in the file something larger may grow to; pixels stay below 20."""


def check_memory(needed: int, what: str) -> None:
    """Raise ValueError when `needed` bytes are more than half of the memory that is free."""
    free = free_memory()
    if free is not None and needed > SMALL and needed > free // 2:
        raise ValueError(
            f"{what} take {bytes_text(needed)}, too much for the {bytes_text(free)} of memory that"
            " are free here"
        )


def check_growth(packed: int, unpacked: int, what: str) -> None:
    """Raise ValueError for what grows as no images do: a few bytes that ask for gigabytes."""
    if unpacked > SMALL and unpacked > GROWTH * max(packed, 1):
        raise ValueError(
            f"{what} grow from {bytes_text(packed)} to {bytes_text(unpacked)} or more, as no images"
            " do; if they are what you want, save them uncompressed"
        )


def free_memory() -> int | None:
    """Bytes of memory that this process may still take, as far as the system tells."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(most - int((group / "memory.current").read_text(encoding="ascii")))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(found)) if found else None
