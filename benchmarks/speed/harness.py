"""Subjects timed in turn within one process, and what is made of their times.

A machine is never equally fast for long: clocks change, others work. So every round times each
subject once, every other round in the opposite order, and subjects are compared within a round.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from crate_mae.common.progress import Progress

SHORTEST = 0.05
"""Seconds a timed sample lasts at least: a shorter call is repeated."""
MOST = 1 << 20
"""Repeats of a call in one sample, at most."""
Rounds = dict[str, list[float]]
"""Seconds of one call of each subject, round by round."""


@dataclass(frozen=True)
class Spread:
    """What several rounds gave."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""
    least: float
    most: float

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


def alternate(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    shortest: float = SHORTEST,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = perf_counter,
    drop: Callable[[str, Exception], bool] = lambda *_: False,
    progress: Progress | None = None,
) -> Rounds:
    """The seconds of one call of each subject, in every round.

    Every subject first runs `warmup` times, which compiles what is compiled and counts for nothing.
    A sample that lasts less than `shortest` seconds is taken again with twice the repeats, so every
    sample is long enough, and a slow subject is called once a round and not once more. `wait`
    returns when a device has done its work. `drop` is told the name and the error of a call that
    raises: where it returns True, the subject is left out of what is returned, and the others go
    on. Garbage is collected between samples, never within one. Raises ValueError without subjects,
    rounds or warm-up, and what calls raise.
    """
    if not calls or rounds < 1 or warmup < 1:
        raise ValueError(
            f"subjects, rounds and warm-up must be at least 1, not"
            f" {len(calls)}, {rounds} and {warmup}"
        )
    total, done = len(calls) * (warmup + rounds), 0
    names = list(calls)
    repeats = dict.fromkeys(names, 1)
    times: Rounds = {name: [] for name in names}
    with _garbage_aside():
        for index in range(warmup + rounds):
            for name in names if index % 2 == 0 else reversed(names):
                done += 1
                if name in times:
                    least = shortest if index >= warmup else 0.0
                    try:
                        seconds, repeats[name] = _sample(
                            calls[name], repeats[name], least, wait, clock
                        )
                    except Exception as error:
                        if not drop(name, error):
                            raise
                        del times[name]
                    else:
                        if index >= warmup:
                            times[name].append(seconds)
                if progress is not None:
                    progress(done, total)
    return times


@contextlib.contextmanager
def _garbage_aside() -> Iterator[None]:
    """A context in which garbage is collected when asked alone, and quickly.

    What is there already is passed over: walking the objects of large libraries takes a second.
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()


def _sample(
    call: Callable[[], object],
    count: int,
    shortest: float,
    wait: Callable[[], object],
    clock: Callable[[], float],
) -> tuple[float, int]:
    """Seconds of one call, and how often it was repeated for a sample that is long enough."""
    while True:
        whole = _timed(call, count, wait, clock)
        if whole >= shortest or count >= MOST:
            return whole / count, count
        count *= 2


def _timed(
    call: Callable[[], object],
    count: int,
    wait: Callable[[], object],
    clock: Callable[[], float],
) -> float:
    """Seconds of so many calls together."""
    gc.collect()
    wait()
    begun = clock()
    for _ in range(count):
        call()
    wait()
    return clock() - begun


def spread(values: Sequence[float]) -> Spread:
    """Median, quartiles (interpolated) and extremes of at least one value."""
    least, lower, median, upper, most = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return Spread(median=median, lower=lower, upper=upper, least=least, most=most)


def speedup(times: Rounds, slow: str, fast: str) -> Spread:
    """How many times as long `slow` took as `fast`: the ratio within each round, then its spread.

    Raises ValueError, naming what was timed, for a subject that was not.
    """
    for name in (slow, fast):
        if name not in times:
            raise ValueError(f"{name} was not timed here; timed: {', '.join(times)}")
    return spread([a / b for a, b in zip(times[slow], times[fast], strict=True)])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The slope of log(value) over log(size): 1 grows in proportion, 2 with the square.

    None for fewer than two sizes, or where a value is not above 0.
    """
    if len(set(sizes)) < 2 or min(*sizes, *values) <= 0:
        return None
    slope, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope)


def summary(times: Rounds, *, images: int, base: str = "crate") -> dict[str, dict[str, Any]]:
    """What a table shows of each subject, JSON-able: seconds, images/s, and against `base`.

    "speedup" is how many times as fast as the subject `base` is, where `base` was timed.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, seconds in times.items():
        own: dict[str, Any] = {"rounds": seconds, "seconds": spread(seconds).to_dict()}
        own["images_per_second"] = images / spread(seconds).median
        if base in times:
            own["speedup"] = speedup(times, name, base).to_dict()
        found[name] = own
    return found
