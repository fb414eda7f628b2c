"""How time and memory grow with the number of tokens, at a fixed patch size.

Every point is measured in a process of its own, on one image: what fits at the largest size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crate_mae.common.peak_memory import OutOfMemoryError, PeakMemory, peak_memory
from crate_mae.common.progress import Progress
from crate_mae.models.config import nearest_multiple
from speed.harness import exponent
from speed.steps import Job, make_step

POINTS = 4
STEPS = 3
"""Steps measured at each size, of which the quickest counts."""
BUDGET = 120.0
"""Seconds that one step may be expected to take, or its size is left out."""
Measure = Callable[[str, Job], PeakMemory]


@dataclass(frozen=True)
class Measured:
    """`peak_memory` of some steps of a subject, on so many threads."""

    threads: int
    steps: int = 1

    def __call__(self, subject: str, job: Job) -> PeakMemory:
        """The peak memory of the subject's step and the seconds of each step."""
        arguments = {"subject": subject, "job": job}
        return peak_memory(
            make_step, arguments, device=job.device, threads=self.threads, steps=self.steps
        )


def growing_sizes(job: Job, largest: int) -> list[tuple[int, int]]:
    """Image sizes (height, width) from the model's own up to `largest` pixels on the longer side.

    At most `POINTS`, evenly spaced on a logarithmic scale, each a multiple of the patch. Raises
    ValueError when the model's own size leaves no room to grow.
    """
    (height, width), (patch_height, patch_width) = job.config.image_hw, job.config.patch_hw
    most = largest / max(height, width)
    none = f"images of {height}x{width} cannot grow to {largest} pixels: name a larger size"
    if most <= 1:
        raise ValueError(none)
    sizes = [
        (
            nearest_multiple(round(height * most ** (i / (POINTS - 1))), patch_height),
            nearest_multiple(round(width * most ** (i / (POINTS - 1))), patch_width),
        )
        for i in range(POINTS)
    ]
    fitting = [size for size in dict.fromkeys(sizes) if max(size) <= largest]
    if len(fitting) < 2:
        raise ValueError(none)
    return fitting


def growth_of(
    subjects: Sequence[str],
    job: Job,
    *,
    largest: int,
    measure: Measure,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Points and fitted exponents of every subject's work on one growing image, JSON-able.

    Memory is what a step takes above the settled state (weights and optimiser state do not grow
    with the image). Exponents are slopes in the log-log plane over all points, and between the last
    two. Where memory runs out, or a step would take longer than `BUDGET` if time grew with the
    square of the tokens, a subject's larger sizes are left out with a note.
    """
    sizes = growing_sizes(job, largest)
    found: dict[str, Any] = {}
    for number, subject in enumerate(subjects):
        points: list[dict[str, Any]] = []
        note = None
        for index, size in enumerate(sizes):
            grown = replace(job, config=replace(job.config, image_size=size), batch=1)
            note = _too_long(points, grown.tokens)
            if note is None:
                try:
                    points.append(_point(grown, measure(subject, grown)))
                except OutOfMemoryError as error:
                    note = str(error)
            if note is not None:
                note = f"{size[0]}x{size[1]} and larger left out: {note}"
                break
            if progress is not None:
                progress(number * len(sizes) + index + 1, len(subjects) * len(sizes))
        found[subject] = {"points": points, "note": note, **_exponents(points)}
    if progress is not None:
        progress(len(subjects) * len(sizes), len(subjects) * len(sizes))
    return {"work": job.work, "precision": job.precision, "batch": 1, "subjects": found}


def _point(job: Job, measured: PeakMemory) -> dict[str, Any]:
    return {
        "image_size": list(job.config.image_hw),
        "tokens": job.tokens,
        "step_seconds": min(measured.seconds),
        **measured.to_dict(),
    }


def _too_long(points: Sequence[dict[str, Any]], tokens: int) -> str | None:
    """Why a size of so many tokens is not worth its time, or None."""
    if not points:
        return None
    expected = points[-1]["step_seconds"] * (tokens / points[-1]["tokens"]) ** 2
    return f"a step would take about {expected:.0f} s" if expected > BUDGET else None


def _exponents(points: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    tokens = [point["tokens"] for point in points]
    memory = [point["above_settled"] for point in points]
    seconds = [point["step_seconds"] for point in points]
    return {
        "memory_exponent": exponent(tokens, memory),
        "memory_exponent_at_the_end": exponent(tokens[-2:], memory[-2:]),
        "time_exponent": exponent(tokens, seconds),
        "time_exponent_at_the_end": exponent(tokens[-2:], seconds[-2:]),
    }
