"""The shape of a model and the facts its images were prepared with; loads without torch."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from crate_mae.common.hints import did_you_mean
from crate_mae.models.families import family_presets
from crate_mae.models.limits import MAX_CHANNELS as MAX_CHANNELS
from crate_mae.models.limits import MAX_CLASSES as MAX_CLASSES
from crate_mae.models.limits import MAX_DEPTH as MAX_DEPTH
from crate_mae.models.limits import MAX_DIM as MAX_DIM
from crate_mae.models.limits import MAX_OVERCOMPLETE as MAX_OVERCOMPLETE
from crate_mae.models.limits import MAX_POSITIONS as MAX_POSITIONS
from crate_mae.models.limits import MAX_SIDE as MAX_SIDE
from crate_mae.models.limits import MAX_TOKENS as MAX_TOKENS
from crate_mae.models.limits import faults_of
from crate_mae.models.limits import nearest_multiple as nearest_multiple
from crate_mae.models.limits import size_fault as size_fault

AttentionKind = Literal["mssa", "exact", "tssa"]
OutputProjection = Literal["free", "free-no-bias", "tied"]
AttentionSkip = Literal["tokens", "normalised"]
SparseStepKind = Literal["auto", "ista", "overcomplete", "decoupled", "none"]
MaskTokens = Literal["encoder", "decoder"]
Embedding = Literal["conv", "norm-linear-norm"]
Positions = Literal["sincos", "learned"]
InitialValuesOf = Literal["crate-mae", "crate", "crate-alpha", "tost"]
HeadNorm = Literal["tokens", "pooled"]

CHOICES: dict[str, Any] = {
    "attention": AttentionKind,
    "output_projection": OutputProjection,
    "attention_skip": AttentionSkip,
    "sparse_step": SparseStepKind,
    "mask_tokens": MaskTokens,
    "embedding": Embedding,
    "positions": Positions,
    "initial_values": InitialValuesOf,
    "head_norm": HeadNorm,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that fixes the architecture of a CRATE-MAE and what it computes.

    Raises ValueError listing every fault at once when the values do not fit together.
    """

    image_size: int | tuple[int, int] = 224
    """Height and width of the training images in pixels; one number means square."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels; must divide the image size."""
    channels: int = 3
    """Image channels: 1 grey, 3 colour, any number for multiband images."""
    dim: int = 768
    """Token width d; a multiple of 4 (two sin-cos halves) and of both head counts."""
    depth: int = 12
    """Number of encoder layers."""
    num_heads: int = 12
    """Number of encoder subspaces K, each of dimension d / K."""
    decoder_depth: int = 12
    """Number of decoder layers."""
    decoder_num_heads: int = 12
    """Number of decoder subspaces."""
    step_size: float = 0.1
    """Step size eta of the ISTA step."""
    sparsity: float = 0.5
    """Weight lambda of the sparsity term in the ISTA step."""
    overcomplete: int = 1
    """Dictionary atoms for each of the d dimensions: 1, the published layers; more (not of the
    paper), two ISTA steps from 0 and a skip, in encoder and decoder (`sparse_step`). With a
    `step_size` of 0.1 for up to 4; more atoms need smaller steps."""
    output_projection: OutputProjection = "free"
    """Output map of attention: "free", a learned linear with bias (published code), "free-no-bias"
    (CRATE-alpha), or "tied", the transpose of U (paper)."""
    mask_tokens: MaskTokens = "encoder"
    """Where mask tokens enter: "encoder" (published design) or "decoder" (the encoder then sees
    visible patches only)."""
    norm_pix_loss: bool = False
    """Whether the target of each patch is normalised by its own mean and variance."""
    attention: AttentionKind = "mssa"
    """How tokens are compressed: "mssa" (published), "exact", a gradient step on R^c itself, or
    "tssa", token statistics in linear time (ToST); docs/family.md."""
    attention_skip: AttentionSkip = "tokens"
    """Where the skip around attention starts: "tokens" z (published code) or "normalised", LN(z)
    (the paper's figure), in encoder and decoder."""
    compression_step: float | None = None
    """Step size c of attention: z + c (MSSA(x) - x) at x = LN(z), the step of the derivation. None:
    z + MSSA(x) (published code)."""
    eps_squared: float = 1.0
    """eps^2 of R^c for attention "exact", in the units of squared normalised tokens."""
    subspace_bias: bool = False
    """Whether U has a bias, as in ToST's vision models; with attention "tssa" only."""
    sparse_step: SparseStepKind = "auto"
    """How tokens are sparsified: "ista" (published), "overcomplete", two steps from 0 that return
    by D, "decoupled", that return by a second matrix (CRATE-alpha), or "none" (attention alone).
    "auto": `ista` with one atom a dimension, `overcomplete` with more."""
    embedding: Embedding = "conv"
    """How patches become tokens: "conv", one linear map (MAE, CRATE-alpha), or "norm-linear-norm",
    a LayerNorm before and one after it (CRATE)."""
    positions: Positions = "sincos"
    """Positions of patches: "sincos", fixed, or "learned" (CRATE, CRATE-alpha)."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the LayerNorms in layers and in the embedding."""
    final_norm_eps: float = 1e-6
    """Epsilon of the norms after encoder and decoder."""
    initial_values: InitialValuesOf = "crate-mae"
    """The family whose initial values fresh weights are drawn from."""
    head_norm: HeadNorm = "tokens"
    """Where a classifier normalises: "tokens", then pools, or "pooled", after it has (CRATE)."""
    orthonormal_subspaces: bool = False
    """Whether training keeps U orthogonal: every U_k orthonormal, and none in another's way."""
    bounded_steps: bool = False
    """Whether steps stay where the derivation promises descent: `compression_step` up to 1, and
    training keeps eta |D|^2 up to 1."""
    mirrored_decoder: bool = False
    """Whether a decoder layer has U, W and D of the encoder layer that it mirrors, and none of its
    own: layer i those of layer `depth` - 1 - i."""

    ADDED: ClassVar[frozenset[str]] = frozenset(
        {
            "overcomplete", "attention", "attention_skip", "compression_step", "eps_squared",
            "subspace_bias", "sparse_step", "embedding", "positions", "layer_norm_eps",
            "final_norm_eps", "initial_values", "head_norm", "orthonormal_subspaces",
            "bounded_steps", "mirrored_decoder",
        }
    )  # fmt: skip
    """Fields that files of before do not name: their defaults are what was computed then."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _pair(self.image_size))
        object.__setattr__(self, "patch_size", _pair(self.patch_size))
        faults = faults_of(self, CHOICES)
        if faults:
            raise ValueError("invalid model configuration: " + "; ".join(faults))

    @property
    def sparse_kind(self) -> SparseStepKind:
        """The sparse step that is meant: `sparse_step`, with "auto" resolved."""
        if self.sparse_step != "auto":
            return self.sparse_step
        return "ista" if self.overcomplete == 1 else "overcomplete"

    @property
    def other_operators(self) -> list[str]:
        """Fields and values by which its layers are none that CRATE-MAE's published code has.

        Empty for published and tied ones, and for `overcomplete` alone; initial values, a
        classifier's norm and what training keeps weights to do not count.
        """
        mine, plain = self.to_dict(), ModelConfig().to_dict()
        if self.sparse_kind == "ista":
            mine["sparse_step"] = plain["sparse_step"]
        computing = self.ADDED - {
            "overcomplete", "eps_squared", "initial_values", "head_norm", "orthonormal_subspaces",
            "bounded_steps",
        }  # fmt: skip
        found = [
            f"{name} {mine[name]!r}" for name in sorted(computing) if mine[name] != plain[name]
        ]
        if self.output_projection == "free-no-bias":
            found.append(f"output_projection {self.output_projection!r}")
        return found

    @property
    def image_hw(self) -> tuple[int, int]:
        """Image height and width in pixels."""
        return _as_pair(self.image_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Patch height and width in pixels."""
        return _as_pair(self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        (height, width), (patch_height, patch_width) = self.image_hw, self.patch_hw
        return height // patch_height, width // patch_width

    @property
    def num_patches(self) -> int:
        """Number of patches L of a training image."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_dim(self) -> int:
        """Number of values in a patch: height x width x channels."""
        return self.patch_hw[0] * self.patch_hw[1] * self.channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML; `from_dict` reads them back."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The configuration that `to_dict` wrote; ValueError with near names for unknown keys."""
        return cls(**checked_keys(cls, values))


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How images become model input; travels with the weights.

    Pixels are scaled to [0, 1] (8 and 16 bit by their full range; float arrays are taken as they
    are), then each channel has `mean` subtracted and is divided by `std`.
    """

    size: tuple[int, int]
    """Height and width in pixels."""
    channels: int = 3
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Per-channel mean on the [0, 1] scale."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Per-channel standard deviation on the [0, 1] scale, above 0."""
    low: tuple[float, ...] = ()
    """Per-channel value that is drawn black; 0 where not given, as of 8-bit images."""
    high: tuple[float, ...] = ()
    """Per-channel value that is drawn white, 1 where not given; `high - low` is PSNR's peak."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"low", "high"})
    """Fields that files need not name: left out, the range is that of 8-bit images."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _pair(self.size))
        if type(self.channels) is int and 0 < self.channels <= MAX_SIDE:
            object.__setattr__(self, "low", tuple(self.low) or (0.0,) * self.channels)
            object.__setattr__(self, "high", tuple(self.high) or (1.0,) * self.channels)
        for name in ("mean", "std", "low", "high"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        sizes: tuple[object, ...] = (*self.size, self.channels)
        if not all(type(value) is int and 0 < value <= MAX_SIDE for value in sizes):
            raise ValueError(
                f"preprocessing needs whole numbers from 1 to {MAX_SIDE} for size and channels,"
                f" not {self.size!r} and {self.channels!r}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"preprocessing has {len(self.mean)} means and {len(self.std)} stds"
                f" for {self.channels} channels"
            )
        if len(self.low) != self.channels or len(self.high) != self.channels:
            raise ValueError(
                f"preprocessing has {len(self.low)} lowest and {len(self.high)} highest values for"
                f" {self.channels} channels"
            )
        if not all(
            math.isfinite(low) and math.isfinite(high) and low < high
            for low, high in zip(self.low, self.high, strict=True)
        ):
            raise ValueError(
                "lowest and highest values must be finite and the lowest below the highest, not low"
                f" {self.low}, high {self.high}"
            )
        if not all(map(math.isfinite, self.mean)) or not all(
            math.isfinite(s) and s > 0 for s in self.std
        ):
            raise ValueError(
                "means must be finite and stds finite and above 0,"
                f" not mean {self.mean}, std {self.std}"
            )

    @classmethod
    def identity(cls, config: ModelConfig) -> "Preprocess":
        """Preprocessing that only scales pixels to [0, 1]."""
        return cls(
            size=config.image_hw,
            channels=config.channels,
            mean=(0.0,) * config.channels,
            std=(1.0,) * config.channels,
        )

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError where images prepared so are none that a model of `config` takes."""
        fault = size_fault(self.size, config.patch_hw)
        if self.channels != config.channels or fault:
            raise ValueError(
                f"images of {self.channels} channels and {self.size[0]}x{self.size[1]} pixels are"
                f" none for a model of {config.channels} channels" + (f": {fault}" if fault else "")
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return {
            "size": list(self.size),
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "low": list(self.low),
            "high": list(self.high),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocess":
        """The facts that `to_dict` wrote; ValueError with near names for unknown keys.

        A range that is left out is that of 8-bit images, 0 to 1.
        """
        return cls(**checked_keys(cls, values))


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def checked_keys(owner: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` itself when every key is a field of `owner`; ValueError with near names if not."""
    known = [field.name for field in fields(owner)]
    unknown = [key for key in values if key not in known]
    if unknown:
        named = ", ".join(f"{key!r}{did_you_mean(key, known)}" for key in unknown)
        raise ValueError(f"unknown {owner.__name__} field {named}; fields: {', '.join(known)}")
    return values


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    try:
        height, width = value
    except (TypeError, ValueError):
        raise ValueError(f"a size is one number or (height, width), not {value!r}") from None
    return height, width


def _as_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


PRESETS: dict[str, ModelConfig] = {
    "debug": ModelConfig(
        image_size=32,
        patch_size=8,
        dim=32,
        depth=2,
        num_heads=4,
        decoder_depth=2,
        decoder_num_heads=4,
    ),
    "tiny": ModelConfig(dim=384, num_heads=6, decoder_num_heads=6),
    "small": ModelConfig(dim=576),
    "base": ModelConfig(dim=768),
    "large": ModelConfig(dim=1024, depth=24, num_heads=16, decoder_depth=24, decoder_num_heads=16),
    "px32-d128-l4": ModelConfig(
        image_size=32,
        patch_size=4,
        dim=128,
        depth=4,
        num_heads=4,
        decoder_depth=4,
        decoder_num_heads=4,
    ),
    "px32-d192-l6": ModelConfig(
        image_size=32,
        patch_size=4,
        dim=192,
        depth=6,
        num_heads=6,
        decoder_depth=6,
        decoder_num_heads=6,
    ),
    "px32-d384-l12": ModelConfig(
        image_size=32, patch_size=4, dim=384, num_heads=6, decoder_num_heads=6
    ),
    **{name: ModelConfig(**values) for name, values in family_presets().items()},
}
"""Named sizes. `pxP-dD-lL`: images of P pixels in patches of 4, width D, L + L layers; `crate-*`,
`crate-alpha-*`, `tost-*`, `aot-*`: the families of docs/family.md. Decoders of families that have
none mirror their encoder."""


def resolve_config(preset_or_config: str | ModelConfig, **overrides: Any) -> ModelConfig:
    """The configuration of a preset name or of a given one, with single fields replaced.

    Raises ValueError for an unknown preset or field, naming the known ones.
    """
    if isinstance(preset_or_config, ModelConfig):
        base = preset_or_config
    elif preset_or_config in PRESETS:
        base = PRESETS[preset_or_config]
    else:
        raise ValueError(
            f"unknown preset {preset_or_config!r}{did_you_mean(str(preset_or_config), PRESETS)};"
            f" presets: {', '.join(PRESETS)}"
        )
    known = {field.name: getattr(base, field.name) for field in fields(ModelConfig)}
    return ModelConfig(**{**known, **checked_keys(ModelConfig, overrides)})
