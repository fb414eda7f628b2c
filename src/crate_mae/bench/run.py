"""A benchmark from its settings to its result: every part in turn, kept as soon as it is done."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import product
from typing import Any, get_args

import torch

from crate_mae.bench.growth import Measured, growing_sizes, growth_of
from crate_mae.bench.harness import alternate, summary
from crate_mae.bench.limit import GEMM, gemm_call, limit_of, subjects_only
from crate_mae.bench.loading import (
    generated_sources,
    loading_speeds,
    named_sources,
    worker_counts,
)
from crate_mae.bench.memory import OutOfMemoryError
from crate_mae.bench.steps import Job, Precision, make_step, waiter
from crate_mae.bench.subjects import Work, choose_subjects, subject_of
from crate_mae.environment import environment
from crate_mae.models.config import PRESETS, ModelConfig, did_you_mean
from crate_mae.models.masks import num_kept

FORMAT = "crate-mae-bench/1"
PACKAGES = ("timm", "transformers", "torchvision", "lightning", "numpy", "pillow")
Progress = Callable[[str], Callable[[int, int], None] | None]
Result = dict[str, Any]


def _preset() -> ModelConfig:
    return PRESETS["px32-d384-l12"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a benchmark does. Raises ValueError for what cannot be done."""

    config: ModelConfig = field(default_factory=_preset)
    """The model; mask tokens enter in the encoder, but in subjects that say otherwise."""
    model: str = "px32-d384-l12"
    """What results call the model."""
    subjects: tuple[str, ...] | None = None
    """Names from `SUBJECTS`, or NAME+compile; None for the usual ones."""
    compiled: bool = False
    """Time every subject through torch.compile as well."""
    works: tuple[Work, ...] = ("train", "encode")
    precisions: tuple[Precision, ...] = ("32-true",)
    batch_sizes: tuple[int, ...] = (32,)
    ratio: float = 0.75
    """Share of patches removed in training."""
    rounds: int = 5
    warmup: int = 1
    threads: int | None = None
    """Threads of torch; as they are when None."""
    device: str = "cpu"
    seed: int = 0
    limit: bool = False
    """Time matrix products among the subjects, and tell the limit and every share of it."""
    memory: bool = False
    """Measure the peak memory of every subject's step, in processes of their own."""
    growth: int | None = None
    """Measure growth with the image size, up to so many pixels."""
    loading: bool = False
    """Measure how fast images are loaded, from generated sources."""
    data: tuple[str, ...] = ()
    """Addresses to measure loading from, in place of generated ones."""

    def __post_init__(self) -> None:
        for name, asked, known in (
            ("work", self.works, get_args(Work)),
            ("precision", self.precisions, get_args(Precision)),
        ):
            for word in asked:
                if word not in known:
                    raise ValueError(
                        f"unknown {name} {word!r}{did_you_mean(str(word), known)};"
                        f" one or more of {', '.join(known)}"
                    )
        counts = {
            "batch size": min(self.batch_sizes, default=0),
            "number of rounds": self.rounds,
            "number of warm-up rounds": self.warmup,
            "number of threads": 1 if self.threads is None else self.threads,
            "number of kinds of work": len(self.works),
            "number of precisions": len(self.precisions),
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"the {name} must be at least 1, not {count}")
        if (self.memory or self.growth is not None) and self.device.startswith("mps"):
            raise ValueError("peak memory is measured on cpu and cuda, not on mps")
        num_kept(self.config.num_patches, self.ratio)
        if self.growth is not None:
            growing_sizes(self.job("train"), self.growth)
        for name in self.subjects or ():
            subject_of(name)

    def job(self, work: Work, batch: int = 1, precision: Precision = "32-true") -> Job:
        """One kind of work on batches of so many images."""
        return Job(
            config=self.config,
            work=work,
            batch=batch,
            precision=precision,
            ratio=self.ratio,
            device=self.device,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of addresses only their kind, as they may hold paths."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        plain["config"] = self.config.to_dict()
        plain["data"] = [name for name, _ in named_sources(self.data)]
        return plain


def run_bench(
    settings: Settings,
    *,
    progress: Progress = lambda _: None,
    keep: Callable[[Result], object] = lambda _: None,
) -> Result:
    """The result of a benchmark, JSON-able; `keep` gets it after every part, as far as it is.

    Raises ImportError, with the command to install it, when a subject that was asked for lacks its
    library, and ValueError when none of the subjects does any of the asked work.
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
                result["cases"].append(_case(by_work[work], job, settings, threads, progress))
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
    names: Sequence[str], job: Job, settings: Settings, threads: int, progress: Progress
) -> dict[str, Any]:
    """Times, and what else was asked for, of one kind of work."""
    title = f"{job.work}, batch {job.batch}, {job.precision}"
    calls: dict[str, Callable[[], object]] = {name: make_step(name, job) for name in names}
    if settings.limit:
        calls[GEMM] = gemm_call(job)
    times = alternate(
        calls,
        rounds=settings.rounds,
        warmup=settings.warmup,
        wait=waiter(job.device),
        progress=progress(title),
    )
    case: dict[str, Any] = {
        "work": job.work,
        "batch": job.batch,
        "precision": job.precision,
        "tokens": job.tokens,
        "subjects": summary(subjects_only(times), images=job.batch),
    }
    if settings.limit:
        case["limit"] = {"rounds": times[GEMM], **limit_of(job, times)}
    del calls  # or their memory would be missing to what follows
    if settings.memory:
        case["memory"] = _memory(names, job, threads, progress(f"memory of {title}"))
    return case


def _memory(
    names: Sequence[str],
    job: Job,
    threads: int,
    progress: Callable[[int, int], None] | None,
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
    names: Sequence[str], work: Work, settings: Settings, threads: int, progress: Progress
) -> dict[str, Any]:
    assert settings.growth is not None
    return growth_of(
        names,
        settings.job(work, 1, settings.precisions[0]),
        largest=settings.growth,
        measure=Measured(threads, steps=3),
        progress=progress(f"growth, {work}"),
    )


def _loading(settings: Settings, result: Result, progress: Progress) -> dict[str, Any]:
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
        with generated_sources(settings.config, seed=settings.seed) as sources:
            rows = measured(sources)
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
