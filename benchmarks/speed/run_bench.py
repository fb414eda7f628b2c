"""A benchmark from its settings to its result: every part in turn, kept as soon as it is done."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import product
from typing import Any

import torch

from crate_mae.common.environment import environment
from crate_mae.common.peak_memory import OutOfMemoryError, ran_out_of_memory
from crate_mae.common.progress import Progress, StartProgress
from speed.growth import STEPS, Measured, growth_of
from speed.harness import Rounds, alternate, summary
from speed.limit import GEMM, gemm_call, limit_of, subjects_only
from speed.loading import (
    DIGITS,
    check_enough,
    generated_count,
    generated_sources,
    loading_speeds,
    named_sources,
    worker_counts,
)
from speed.settings import Settings
from speed.steps import Job, make_step, waiter
from speed.subjects import Work, choose_subjects, subject_of

FORMAT = "crate-mae-bench/1"
PACKAGES = ("timm", "transformers", "torchvision", "lightning", "numpy", "pillow")
Result = dict[str, Any]


def run_bench(
    settings: Settings,
    *,
    progress: StartProgress = lambda _: None,
    keep: Callable[[Result], object] = lambda _: None,
) -> Result:
    """The result of a benchmark, JSON-able; `keep` gets it after every part, as far as it is.

    Raises ImportError, with the command to install it, when a subject that was asked for lacks its
    library, and ValueError when none of the subjects does any of the asked work, or when data of
    the settings have too few images. A subject that runs out of memory is left out with a note.
    """
    chosen, notes = choose_subjects(settings.subjects, settings.config, compiled=settings.compiled)
    cases = list(product(settings.works, settings.batch_sizes, settings.precisions))
    by_work = {work: [n for n in chosen if work in subject_of(n).works] for work in settings.works}
    for work, names in by_work.items():
        left = [name for name in chosen if name not in names]
        if left and settings.subjects is not None:
            notes.append(f"no {work} for {', '.join(left)}")
    if not any(by_work.values()):
        raise ValueError(f"none of {', '.join(chosen)} does {' or '.join(settings.works)}")
    # What is wrong with data is told before, not after, minutes of timing.
    check_enough(settings.data, settings.batch_sizes[0])
    before = torch.get_num_threads()
    threads = before if settings.threads is None else settings.threads
    torch.set_num_threads(threads)
    try:
        result: Result = {
            "format": FORMAT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "settings": settings.to_dict(),
            "subjects": {name: subject_of(name).summary for name in chosen},
            "notes": notes,
            "cases": [],
        }
        for work, batch, precision in cases:
            if by_work[work]:
                job = settings.job(work, batch, precision)
                case, left_out = _case(by_work[work], job, settings, threads, progress)
                result["cases"].append(case)
                notes += left_out
                keep(result)
        if settings.growth is not None:
            result["growth"] = []
            for work, names in by_work.items():
                if names:
                    result["growth"].append(_growth(names, work, settings, threads, progress))
                    keep(result)
        if settings.loading or settings.data:
            result["loading"] = _loading(settings, result, progress)
            keep(result)
        return result
    finally:
        torch.set_num_threads(before)


def _case(
    names: Sequence[str], job: Job, settings: Settings, threads: int, progress: StartProgress
) -> tuple[dict[str, Any], list[str]]:
    """Times, and what else was asked for, of one kind of work; and notes of what was left out."""
    title = f"{job.work}, batch {job.batch}, {job.precision}"
    times, notes = _times(names, job, settings, progress(title))
    case: dict[str, Any] = {
        "work": job.work,
        "batch": job.batch,
        "precision": job.precision,
        "tokens": job.tokens,
        "subjects": summary(subjects_only(times), images=job.batch),
    }
    if GEMM in times:
        case["limit"] = {"rounds": times[GEMM], **limit_of(job, times)}
    if settings.memory:
        case["memory"] = _memory(names, job, threads, progress(f"memory of {title}"))
    return case, [f"{title}: {note}" for note in notes]


def _times(
    names: Sequence[str],
    job: Job,
    settings: Settings,
    progress: Progress | None,
) -> tuple[Rounds, list[str]]:
    """Rounds of all subjects that fit in memory beside each other, and notes about the others."""
    calls: dict[str, Callable[[], object]] = {}
    notes: list[str] = []

    def left_out(name: str, error: Exception) -> bool:
        if not ran_out_of_memory(type(error).__name__, str(error)):
            return False
        calls.pop(name, None)  # its memory is for the others
        notes.append(f"{name} left out: memory ran out; a smaller batch or fewer subjects may fit")
        return True

    makers: dict[str, Callable[[], Callable[[], object]]] = {
        name: partial(make_step, name, job) for name in names
    }
    if settings.limit:
        makers[GEMM] = partial(gemm_call, job)
    for name, make in makers.items():
        try:
            calls[name] = make()
        except (RuntimeError, MemoryError) as error:
            if not left_out(name, error):
                raise
    times: Rounds = {}
    if calls:
        times = alternate(
            calls,
            rounds=settings.rounds,
            warmup=settings.warmup,
            wait=waiter(job.device),
            drop=left_out,
            progress=progress,
        )
    calls.clear()  # or their memory would be missing to what follows
    if job.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return times, notes


def _memory(
    names: Sequence[str],
    job: Job,
    threads: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """The peak memory of every subject's step, or why there is no number."""
    found: dict[str, Any] = {}
    for index, name in enumerate(names):
        try:
            found[name] = Measured(threads)(name, job).to_dict()
        except OutOfMemoryError as error:
            found[name] = {"note": str(error)}
        if progress is not None:
            progress(index + 1, len(names))
    return found


def _growth(
    names: Sequence[str], work: Work, settings: Settings, threads: int, progress: StartProgress
) -> dict[str, Any]:
    assert settings.growth is not None
    return growth_of(
        names,
        settings.job(work, 1, settings.precisions[0]),
        largest=settings.growth,
        measure=Measured(threads, steps=STEPS),
        progress=progress(f"growth, {work}"),
    )


def _loading(settings: Settings, result: Result, progress: StartProgress) -> dict[str, Any]:
    """Rows of loading speed, beside what a training step takes, where one was timed."""
    batch = settings.batch_sizes[0]
    takes = [
        case["subjects"]["crate"]["images_per_second"]
        for case in result["cases"]
        if (case["work"], case["batch"]) == ("train", batch) and "crate" in case["subjects"]
    ]

    def measured(sources: list[tuple[str, str]]) -> list[dict[str, Any]]:
        return loading_speeds(
            sources,
            settings.config,
            batch=batch,
            workers=worker_counts(),
            seed=settings.seed,
            progress=progress("loading"),
        )

    if settings.data:
        rows = measured(named_sources(settings.data))
    else:
        count = generated_count(batch)
        with generated_sources(settings.config, images=count, seed=settings.seed) as sources:
            rows = measured([s for s in sources if s[1] != "digits" or batch <= DIGITS])
    return {"batch": batch, "step_images_per_second": takes[0] if takes else None, "rows": rows}


def machine() -> dict[str, Any]:
    """What of this machine and its software bears on speed; no names of hosts, users or paths."""
    facts = environment()
    packages = {name: facts["packages"].get(name) for name in PACKAGES}
    wanted = (
        "processor", "cores", "threads", "memory_gib", "devices", "platform",
        "python", "torch", "cuda", "crate_mae", "git",
    )  # fmt: skip
    return {**{name: facts[name] for name in wanted}, "packages": packages}
