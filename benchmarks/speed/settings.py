"""The settings of a benchmark, checked before anything runs."""

from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from crate_mae.common.hints import did_you_mean
from crate_mae.models.config import PRESETS, ModelConfig
from crate_mae.models.masks import num_kept
from speed.growth import growing_sizes
from speed.loading import named_sources
from speed.steps import Job, Precision
from speed.subjects import Work, subject_of


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
