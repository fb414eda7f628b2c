"""Peak memory and time of a real training step, at the batch asked for or as near as can be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from crate_mae.common.peak_memory import OutOfMemoryError, PeakMemory
from crate_mae.plan.amounts import SPARE, memory_line

SECONDS = 20.0
"""What the steps of one measurement may take together."""
FIRST = 1e11
"""Operations of a step that is tried first: seconds on a slow core."""
WARMUP, STEPS, ROUNDS = 1, 3, 3  # steps to settle and to measure, measurements

Measure = Callable[[int, int, int], PeakMemory]
"""Measures (images at a time, steps to settle, steps to measure) in a fresh process."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement."""

    images: int
    """Images at a time, on one device."""
    peak: int
    """Bytes."""
    settled: int
    """Bytes held between two steps."""
    seconds: float
    """Median over the measured steps."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured, from few images to many."""

    points: tuple[Point, ...]
    out_of_memory: int | None = None
    """Images that did not fit when they were tried."""
    too_slow: int | None = None
    """Images whose steps were given up on."""


def probe_step(
    measure: Measure,
    *,
    images: int,
    flops: Callable[[int], int],
    free: int | None,
    seconds: float = SECONDS,
    progress: Callable[[str], None] | None = None,
) -> Probe:
    """Measurements up to `images` at a time, as far as `free` bytes and `seconds` per round allow.

    The first is of few images, and tells how many the next may have: time grows with `flops`,
    memory at most in proportion to the images. A batch that ends out of memory or out of time is
    reported, not raised. Raises what the step raises.
    """
    points: list[Point] = []
    count, steps = max(1, images // 16), STEPS
    while count > 1 and flops(count) > FIRST:
        count //= 2
    while count:
        if points and (WARMUP + STEPS) * scaled_seconds(points[-1], count, flops) > seconds:
            steps = 1
        if progress is not None:
            progress(f"measuring real steps on {count} generated images at a time")
        try:
            found = measure(count, WARMUP, steps)
        except OutOfMemoryError:
            return Probe(points=tuple(points), out_of_memory=count)
        except TimeoutError:
            return Probe(points=tuple(points), too_slow=count)
        points.append(
            Point(
                images=count,
                peak=found.peak,
                settled=found.settled,
                seconds=median(found.seconds),
            )
        )
        if len(points) == ROUNDS:
            break
        count = _next_count(points, images, flops=flops, free=free, seconds=seconds)
    return Probe(points=tuple(points))


def _next_count(
    points: Sequence[Point],
    images: int,
    *,
    flops: Callable[[int], int],
    free: int | None,
    seconds: float,
) -> int:
    """The most images, halved from what is asked, that may be tried next; 0 for none."""
    last = points[-1]
    count = images
    while count > last.images:
        slow = (WARMUP + 1) * scaled_seconds(last, count, flops) > seconds
        large = free is not None and expected_peak(points, count) > SPARE * free
        if not (slow or large):
            return count
        count //= 2
    return 0


def scaled_seconds(point: Point, images: int, flops: Callable[[int], int]) -> float:
    """Seconds of a step on so many images, by the operations it takes more or less."""
    return point.seconds * flops(images) / flops(point.images)


def expected_peak(points: Sequence[Point], images: int) -> int:
    """The peak in bytes of so many images: on the line of two points, from one an upper bound."""
    last = points[-1]
    try:
        return memory_line([(point.images, point.peak) for point in points]).at(images)
    except ValueError:
        above = max(0, last.peak - last.settled)
        return last.settled + round(above * images / last.images)
