"""The shape of a model and the facts its images were prepared with; loads without torch."""

import math
import sys
from dataclasses import dataclass, fields
from typing import Any, Literal

from crate_mae.common.hints import did_you_mean

OutputProjection = Literal["free", "tied"]
MaskTokens = Literal["encoder", "decoder"]

# A weights file names its own sizes and may come from a stranger: nothing larger is ever built.
MAX_DIM = 16_384
MAX_DEPTH = 512
MAX_SIDE = 1 << 16
MAX_TOKENS = 1 << 20
MAX_POSITIONS = 1 << 27  # values in the position table, half a GiB
MAX_CHANNELS = 4_096
MAX_OVERCOMPLETE = 64
MAX_CLASSES = 1 << 24


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
    paper), two ISTA steps from 0 and a skip, in encoder and decoder (docs/model.md). With a
    `step_size` of 0.1 for up to 4; more atoms need smaller steps."""
    output_projection: OutputProjection = "free"
    """Output map of MSSA: "free", a learned linear with bias (published code), or "tied", the
    transpose of U (paper)."""
    mask_tokens: MaskTokens = "encoder"
    """Where mask tokens enter: "encoder" (published design) or "decoder" (the encoder then sees
    visible patches only)."""
    norm_pix_loss: bool = False
    """Whether the target of each patch is normalised by its own mean and variance."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _pair(self.image_size))
        object.__setattr__(self, "patch_size", _pair(self.patch_size))
        faults = list(self._faults())
        if faults:
            raise ValueError("invalid model configuration: " + "; ".join(faults))

    def _faults(self) -> list[str]:
        faults: list[str] = []
        counts = {
            "image height": (self.image_hw[0], MAX_SIDE),
            "image width": (self.image_hw[1], MAX_SIDE),
            "patch height": (self.patch_hw[0], MAX_SIDE),
            "patch width": (self.patch_hw[1], MAX_SIDE),
            "channels": (self.channels, MAX_CHANNELS),
            "dim": (self.dim, MAX_DIM),
            "depth": (self.depth, MAX_DEPTH),
            "num_heads": (self.num_heads, MAX_DIM),
            "decoder_depth": (self.decoder_depth, MAX_DEPTH),
            "decoder_num_heads": (self.decoder_num_heads, MAX_DIM),
            "overcomplete": (self.overcomplete, MAX_OVERCOMPLETE),
        }
        for name, (value, limit) in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                faults.append(f"{name} must be a positive whole number, not {value!r}")
            elif value > limit:
                faults.append(f"{name} {value} is above the limit of {limit}")
        for name, number in (("step_size", self.step_size), ("sparsity", self.sparsity)):
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or not 0 <= number <= sys.float_info.max
            ):
                faults.append(f"{name} must be a finite number of at least 0, not {number!r}")
        for name, choice, allowed in (
            ("output_projection", self.output_projection, ("free", "tied")),
            ("mask_tokens", self.mask_tokens, ("encoder", "decoder")),
        ):
            if choice not in allowed:
                faults.append(f"{name} must be one of {', '.join(allowed)}, not {choice!r}")
        normalised: object = self.norm_pix_loss
        if not isinstance(normalised, bool):
            faults.append(f"norm_pix_loss must be true or false, not {normalised!r}")
        if faults:
            return faults
        if self.dim % 4:
            faults.append(
                f"dim {self.dim} is not a multiple of 4, nearest {nearest_multiple(self.dim, 4)}"
            )
        for name, heads in (
            ("num_heads", self.num_heads),
            ("decoder_num_heads", self.decoder_num_heads),
        ):
            if self.dim % heads:
                good = [k for k in range(1, self.dim + 1) if self.dim % k == 0]
                near = min(good, key=lambda k: abs(k - heads))
                faults.append(f"{name} {heads} does not divide dim {self.dim}, nearest {near}")
        fault = size_fault(self.image_hw, self.patch_hw)
        if fault:
            faults.append(fault)
        elif self.num_patches > MAX_TOKENS:
            faults.append(f"{self.num_patches} patches are above the limit of {MAX_TOKENS}")
        elif self.num_patches * self.dim > MAX_POSITIONS:
            faults.append(
                f"{self.num_patches} patches of dim {self.dim} are above the limit of"
                f" {MAX_POSITIONS} values"
            )
        return faults

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
        return cls(**checked_keys(cls, {"low": (), "high": (), **values}))


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def size_fault(image_hw: tuple[int, int], patch_hw: tuple[int, int]) -> str | None:
    """What is wrong with an image size for a patch size, and the nearest good one; or None."""
    (height, width), (patch_height, patch_width) = image_hw, patch_hw
    good = (nearest_multiple(height, patch_height), nearest_multiple(width, patch_width))
    if good == (height, width):
        return None
    too_small = height < patch_height or width < patch_width
    problem = "is smaller than" if too_small else "is not a multiple of"
    return (
        f"image {height}x{width} {problem} patch {patch_height}x{patch_width},"
        f" nearest size {good[0]}x{good[1]}"
    )


def nearest_multiple(value: int, unit: int) -> int:
    """The multiple of `unit` nearest to `value`, at least one `unit`."""
    return max(unit, unit * ((2 * value + unit) // (2 * unit)))


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
}
"""Named sizes. `pxP-dD-lL`: images of P pixels in patches of 4, width D, L + L layers."""


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
