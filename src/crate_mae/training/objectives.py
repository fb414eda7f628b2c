"""The settings of what pre-training minimises: beside the masked loss, and for SimDINO."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from crate_mae.batches.config import Crops

RateFeatures = Literal["pooled", "class_token", "tokens"]
MAX_WIDTH = 1 << 16
"""Most values of a head's hidden layers and features."""
MAX_LAYERS = 8
"""Most linear maps of a head."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is trained on beside the masked loss: the coding rate of the features.

    The loss is (masked loss) + gamma (1 - R / R_max), where R is the coding rate of the latent
    features of masked images, scaled to length 1 (docs/model.md).
    """

    gamma: float = 0.0
    """Weight of the coding-rate term; 0 for the masked loss alone, as published."""
    eps_squared: float = 0.25
    """The quantisation error eps^2 of the rate: the smaller, the more small differences count."""
    features: RateFeatures = "pooled"
    """Of what the rate is: the mean of each image's visible patch tokens over the batch ("pooled"),
    its class token ("class_token"), or the visible patch tokens of each image by themselves, mean
    over images ("tokens": the R(Z) of the paper)."""
    layer: int | None = None
    """Encoder layers that the tokens have passed; null for all and the final norm."""
    over: Literal["step", "batch"] = "step"
    """The features of the rate: those of the whole optimiser step, however devices and accumulation
    share it (accumulation then costs one more pass through the encoder), or those of each
    device's batch, which makes the result depend on how a step is split."""
    float64: bool = False
    """Compute the term in float64 in place of float32; either is so whatever the precision."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"objective.gamma must be at least 0, not {self.gamma}")
        if not 1e-3 <= self.eps_squared <= 1e3:
            raise ValueError(
                f"objective.eps_squared must be from 0.001 to 1000, not {self.eps_squared}"
            )
        for name, kind in (("features", RateFeatures), ("over", Literal["step", "batch"])):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"objective.{name} must be one of {', '.join(get_args(kind))},"
                    f" not {getattr(self, name)!r}"
                )

    @property
    def looks_ahead(self) -> bool:
        """Whether the features of all batches of a step are needed before its first gradient."""
        return self.gamma > 0 and self.features != "tokens" and self.over == "step"


@dataclass(frozen=True, kw_only=True)
class SimDINOConfig:
    """What SimDINO trains on; of no meaning to other methods.

    The loss is -coefficient x compression - expansion (docs/model.md). The defaults are those of
    the authors' README, but for `reduce_cov`.
    """

    eps: float = 0.05
    """The quantisation error of the coding rate, called eps^2 in the paper: the smaller, the more
    small differences count. For batches of few images a smaller one can help."""
    expa_type: Literal[0, 1] = 1
    """Features whose coding rate is raised: the student's (0), or the mean of student's and
    teacher's (1), which halves the gradient."""
    coefficient: float = 1.0
    """Weight of the compression term beside the expansion."""
    reduce_cov: bool = True
    """Take the coding rate over all images of an optimiser step, however devices and accumulation
    share it (accumulation then costs one more pass over the global crops). False, as published: of
    each device's batch alone, which makes the result depend on how a step is split."""
    teacher_momentum: float = 0.996
    """Share of itself that the teacher keeps in the first optimiser step; half a cosine to 1."""
    head_layers: int = 3
    """Linear maps of the head, with GELU between them."""
    head_hidden: int = 2048
    """Width of the head between them."""
    head_out: int = 256
    """Values of the features that the loss compares."""
    float64: bool = False
    """Compute the coding rate in float64 in place of float32; either is so whatever the precision.
    """
    crops: Crops = field(default_factory=Crops)
    """The views of each image."""

    def __post_init__(self) -> None:
        if not 1e-4 <= self.eps <= 1e3:
            raise ValueError(f"simdino.eps must be from 0.0001 to 1000, not {self.eps}")
        if self.expa_type not in (0, 1):
            raise ValueError(f"simdino.expa_type must be 0 or 1, not {self.expa_type!r}")
        if not 0 < self.coefficient < float("inf"):
            raise ValueError(
                f"simdino.coefficient must be a finite number above 0, not {self.coefficient}"
            )
        if not 0 <= self.teacher_momentum <= 1:
            raise ValueError(
                f"simdino.teacher_momentum must be in [0, 1], not {self.teacher_momentum}"
            )
        for name, most in (
            ("head_layers", MAX_LAYERS), ("head_hidden", MAX_WIDTH), ("head_out", MAX_WIDTH)
        ):  # fmt: skip
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(
                    f"simdino.{name} must be from 1 to {most}, not {getattr(self, name)}"
                )
