"""What a configuration of a model may be: its limits, and what of it does not fit together."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from crate_mae.models.config import ModelConfig

# A weights file names its own sizes and may come from a stranger: nothing larger is ever built.
MAX_DIM = 16_384
MAX_DEPTH = 512
MAX_SIDE = 1 << 16
MAX_TOKENS = 1 << 20
MAX_POSITIONS = 1 << 27  # values in the position table, half a GiB
MAX_CHANNELS = 4_096
MAX_OVERCOMPLETE = 64
MAX_CLASSES = 1 << 24


def faults_of(config: "ModelConfig", choices: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a configuration, in words; empty for a good one.

    `choices` has the type of alternatives, a `Literal`, of each field that is one.
    """
    # What fits together is looked at only where every value by itself is what it may be.
    return [*_wrong_values(config, choices)] or [*_misfits(config), *_operator_misfits(config)]


def _wrong_values(config: "ModelConfig", choices: dict[str, Any]) -> Iterator[str]:
    counts = {
        "image height": (config.image_hw[0], MAX_SIDE),
        "image width": (config.image_hw[1], MAX_SIDE),
        "patch height": (config.patch_hw[0], MAX_SIDE),
        "patch width": (config.patch_hw[1], MAX_SIDE),
        "channels": (config.channels, MAX_CHANNELS),
        "dim": (config.dim, MAX_DIM),
        "depth": (config.depth, MAX_DEPTH),
        "num_heads": (config.num_heads, MAX_DIM),
        "decoder_depth": (config.decoder_depth, MAX_DEPTH),
        "decoder_num_heads": (config.decoder_num_heads, MAX_DIM),
        "overcomplete": (config.overcomplete, MAX_OVERCOMPLETE),
    }
    for name, (value, limit) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield f"{name} must be a positive whole number, not {value!r}"
        elif value > limit:
            yield f"{name} {value} is above the limit of {limit}"
    for name in ("step_size", "sparsity"):
        number = getattr(config, name)
        if not _is_number(number) or number < 0:
            yield f"{name} must be a finite number of at least 0, not {number!r}"
    for name in ("compression_step", "eps_squared", "layer_norm_eps", "final_norm_eps"):
        number = getattr(config, name)
        if name == "compression_step" and number is None:
            continue
        if not _is_number(number) or number <= 0:
            yield f"{name} must be a finite number above 0, not {number!r}"
    for name, allowed in choices.items():
        choice = getattr(config, name)
        if choice not in get_args(allowed):
            yield f"{name} must be one of {', '.join(get_args(allowed))}, not {choice!r}"
    for name in (
        "norm_pix_loss",
        "subspace_bias",
        "orthonormal_subspaces",
        "bounded_steps",
        "mirrored_decoder",
    ):
        switch: object = getattr(config, name)
        if not isinstance(switch, bool):
            yield f"{name} must be true or false, not {switch!r}"


def _misfits(config: "ModelConfig") -> Iterator[str]:
    if config.positions == "sincos" and config.dim % 4:
        yield f"dim {config.dim} is not a multiple of 4, nearest {nearest_multiple(config.dim, 4)}"
    for name in ("num_heads", "decoder_num_heads"):
        heads = getattr(config, name)
        if config.dim % heads:
            good = [k for k in range(1, config.dim + 1) if config.dim % k == 0]
            near = min(good, key=lambda k: abs(k - heads))
            yield f"{name} {heads} does not divide dim {config.dim}, nearest {near}"
    fault = size_fault(config.image_hw, config.patch_hw)
    if fault:
        yield fault
    elif config.num_patches > MAX_TOKENS:
        yield f"{config.num_patches} patches are above the limit of {MAX_TOKENS}"
    elif config.num_patches * config.dim > MAX_POSITIONS:
        yield (
            f"{config.num_patches} patches of dim {config.dim} are above the limit of"
            f" {MAX_POSITIONS} values"
        )


def _operator_misfits(config: "ModelConfig") -> Iterator[str]:
    """Operators that do not go together, and options that would change nothing."""
    if config.sparse_step in ("ista", "none") and config.overcomplete != 1:
        has = "as many atoms as dimensions" if config.sparse_step == "ista" else "no dictionary"
        yield (
            f"sparse_step {config.sparse_step} has {has}, not overcomplete {config.overcomplete}:"
            " set overcomplete to 1, or sparse_step to overcomplete or decoupled"
        )
    if config.attention == "exact" and config.output_projection != "tied":
        yield (
            "attention exact is a gradient, which returns by U itself: set output_projection to"
            f" tied, not {config.output_projection}"
        )
    if config.attention == "tssa":
        for name in ("num_heads", "decoder_num_heads"):
            if getattr(config, name) < 2:
                yield (
                    f"attention tssa needs {name} of 2 or more: every token's membership in a"
                    " single head is 1"
                )
    elif config.subspace_bias:
        yield f"subspace_bias is of attention tssa; {config.attention} has no bias on U"
    if config.bounded_steps:
        yield from _unbounded(config)
    if config.mirrored_decoder:
        yield from _unmirrored(config)


def _unbounded(config: "ModelConfig") -> Iterator[str]:
    """Where no bound on the step of attention is known, or it is exceeded."""
    if not config.orthonormal_subspaces:
        yield "bounded_steps are bounded for orthonormal subspaces: set orthonormal_subspaces, too"
    if config.output_projection != "tied":
        yield (
            "bounded_steps need attention that returns by U itself: set output_projection to tied,"
            f" not {config.output_projection}"
        )
    if config.compression_step is None or config.compression_step > 1:
        yield (
            "bounded_steps need a compression_step above 0 and up to 1, not"
            f" {config.compression_step}"
        )


def _unmirrored(config: "ModelConfig") -> Iterator[str]:
    """What of a decoder has no mirror in the encoder."""
    for what, mine, mirror in (
        ("decoder_depth", config.decoder_depth, config.depth),
        ("decoder_num_heads", config.decoder_num_heads, config.num_heads),
    ):
        if mine != mirror:
            yield (
                f"mirrored_decoder needs {what} equal to the encoder's {mirror}, not {mine}: each"
                " layer has the weights of its mirror"
            )
    if config.sparse_kind in ("overcomplete", "decoupled"):
        yield (
            f"mirrored_decoder needs a decoder that undoes sparse steps, and with sparse_step"
            f" {config.sparse_kind} it takes steps of its own: set sparse_step to ista or none, and"
            " overcomplete to 1"
        )


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


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max
