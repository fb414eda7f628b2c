"""How much memory what a file claims may take: told before it is taken."""

import contextlib
import os
from pathlib import Path

from crate_mae.common.text import bytes_text

SMALL = 256 << 20
"""Bytes that anything may grow to without a question."""
GROWTH = 200
"""How many times its size in the file something larger may grow to; pixels stay below 20."""
CGROUP = Path("/sys/fs/cgroup")


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
    """Bytes of memory that a new process could take; None where the system does not tell.

    What Linux calls available, or what is left of a container's or job's limit; elsewhere half of
    what the machine has.
    """
    known = [free for free in (_available(), _left_of_limit(CGROUP)) if free is not None]
    if not known:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return min(known, default=None)


def _available() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _left_of_limit(root: Path) -> int | None:
    """What is left of a control group's memory limit; its file cache gives way, so is left too."""
    version_1 = root / "memory"
    with contextlib.suppress(OSError, ValueError):
        if (root / "memory.max").exists():
            limit, used = root / "memory.max", root / "memory.current"
            cache, statistics = "inactive_file", root / "memory.stat"
        else:
            limit = version_1 / "memory.limit_in_bytes"
            used = version_1 / "memory.usage_in_bytes"
            cache, statistics = "total_inactive_file", version_1 / "memory.stat"
        most = int(limit.read_text())  # "max" is no number: no limit
        if most >= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
            return None
        words = dict(line.split() for line in statistics.read_text().splitlines())
        return max(0, most - int(used.read_text()) + int(words.get(cache, 0)))
    return None
