"""How far long work has come, and how long it will still take."""

import sys
from collections.abc import Callable
from time import perf_counter


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1h02m, 3m20s or 7s."""
    whole = round(max(0.0, seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"


def counter(what: str, *, every: float = 0.2) -> Callable[[int, int], None] | None:
    """A callable (done, total) that keeps one line on a terminal up to date; None elsewhere."""
    if not sys.stderr.isatty():
        return None
    begun = perf_counter()
    shown = begun

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = perf_counter()
        if done < total and now - shown < every:
            return
        shown = now
        left = duration((now - begun) / max(done, 1) * (total - done))
        end = "\n" if done >= total else ""
        line = f"\r{what}: {done}/{total}, {left} left"
        print(f"{line:<60}", end=end, file=sys.stderr, flush=True)

    return show
