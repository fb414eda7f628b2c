"""Weights that a masked run starts from: its architecture is theirs, sizes and channels adapt."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crate_mae.common.hints import option_value
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import ModelConfig
from crate_mae.models.patches import patch_centres, resampled_positions
from crate_mae.training.config import PretrainConfig
from crate_mae.training.run_folder import Start, changed_keys
from crate_mae.vitmae.model import vitmae_config
from crate_mae.weights.tensors import check_match
from crate_mae.weights.weights_folder import find_weights, load_autoencoder, weights_hash

FREE = ("model.image_size", "model.norm_pix_loss", "model.channels")
"""Settings of the model in which a new run may differ from the weights that it starts from."""

logger = logging.getLogger(__name__)


def with_starting_architecture(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the architecture of its --init-from put after the recipe.

    The settings of a model that were typed stay, and come last. Raises what finding the weights
    raises, and ValueError for weights that are none of a CRATE-MAE.
    """
    name = option_value(words, "--init-from")
    if name is None or option_value(words, "--resume") is not None:
        return list(words)
    if any(word.partition("=")[0] == "--model" for word in words):
        raise ValueError(
            "the architecture is that of the weights that --init-from names: leave --model out, and"
            " type single settings, such as --model.image_size 96"
        )
    model = json.dumps(architecture_of(name).to_dict())
    rest: list[str] = []
    typed: list[str] = []
    pairs = iter(words)
    for word in pairs:
        if not word.startswith("--model."):
            rest.append(word)
            continue
        typed.append(word)
        if "=" not in word:
            typed += [value for value in [next(pairs, None)] if value is not None]
    return [*rest, "--model", model, *typed]


def architecture_of(name: str | Path) -> ModelConfig:
    """The architecture of weights, without loading them; raises as `find_weights`, ValueError."""
    folder, described = find_weights(name)
    config = described.get("config")
    if described.get("model") != CrateMAE.kind or not isinstance(config, dict):
        raise ValueError(
            f"{folder} holds no CRATE-MAE to start from (it is"
            f" {described.get('model', described.get('model_type'))!r}): name pre-trained weights"
        )
    return ModelConfig.from_dict(config)


def check_origin(
    config: PretrainConfig, init_from: str | Path | None, *, resume: bool = False
) -> None:
    """Raise ValueError for settings that exclude each other."""
    if resume and init_from is not None:
        raise ValueError("--resume continues a run with its own weights; leave --init-from out")
    if config.method == "simdino" and init_from is not None:
        raise ValueError("method simdino starts from fresh weights: leave --init-from out")
    if config.vitmae is not None:
        if init_from is not None:
            raise ValueError("a ViT-MAE baseline starts from fresh weights: leave --init-from out")
        vitmae_config(config.model, config.vitmae)


def start_of(init_from: str | Path) -> Start:
    """Name and hash of the weights that a run is to begin with; raises as `find_weights`."""
    return Start(weights=str(init_from), sha256=weights_hash(init_from))


def starting_tensors(config: PretrainConfig, init_from: str | Path) -> dict[str, Tensor]:
    """The tensors that a new run's model starts with, by name, adapted to its images.

    Learned positions are interpolated where its grid of patches is another; others are computed.
    What differs is logged. Raises ValueError for weights that compute something else than the new
    run's model.
    """
    source = load_autoencoder(init_from)
    changes = changed_keys(source.config.to_dict(), config.model.to_dict(), "model.")
    fatal = [line for line in changes if not line.startswith(FREE)]
    if fatal:
        raise ValueError(
            f"the weights in {init_from} were trained with other settings: {'; '.join(fatal)}."
            f" Only {', '.join(FREE)} may differ: leave the others out to take those of the weights"
        )
    tensors = source.state_dict()
    channels = source.config.channels, config.model.channels
    if channels[0] != channels[1]:
        tensors = with_channels(tensors, *channels, patch_hw=config.model.patch_hw)
    # By the grid, not by the shape: 4 x 4 and 2 x 8 patches have as many positions, but others.
    if config.model.positions == "learned" and source.config.grid != config.model.grid:
        tensors = with_grid(tensors, source.config.grid, config.model.grid)
    with torch.device("meta"):
        wanted = CrateMAE(config.model)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    check_match(shapes, wanted, origin=str(init_from))
    for line in changes:
        logger.warning(
            "differs from the weights it starts from: %s%s", line, _how(line, config.model)
        )
    logger.info(
        "starts from %s: its architecture, %d + %d layers of width %d, for images of %d x %d; mean"
        " and std are those of the new images, %s",
        init_from, config.model.depth, config.model.decoder_depth, config.model.dim,
        *config.model.image_hw,
        "as given" if config.data.mean is not None else "measured",
    )  # fmt: skip
    return tensors


def with_channels(
    tensors: dict[str, Tensor], old: int, new: int, *, patch_hw: tuple[int, int]
) -> dict[str, Tensor]:
    """The tensors of a model for images of `new` channels in place of `old`.

    Filters are summed over the old channels and shared out evenly among the new ones, so that an
    image whose channels are all alike gives the same tokens as before. Gain and bias of a norm in
    front of them become part of them first: that norm has one of each for every value of a patch.
    Every new channel is predicted as the mean of the old ones was.
    """
    height, width = patch_hw
    changed = dict(tensors)
    if "encoder.patch_embed.norm1.weight" in tensors:
        changed |= _normed_with_channels(tensors, old, new)
    else:
        filters = tensors["encoder.patch_embed.weight"].sum(dim=1, keepdim=True)
        changed["encoder.patch_embed.weight"] = filters.expand(-1, new, -1, -1).contiguous() / new
    for name in ("prediction.weight", "prediction.bias"):
        value = tensors[name]
        rows = value.reshape(height * width, old, *value.shape[1:]).mean(dim=1, keepdim=True)
        shape = (height * width, new, *rows.shape[2:])
        changed[name] = rows.expand(shape).flatten(0, 1).contiguous()
    return changed


def _normed_with_channels(tensors: dict[str, Tensor], old: int, new: int) -> dict[str, Tensor]:
    """As `with_channels`, the tensors of an embedding whose patches are normalised first.

    Mean and variance of a patch stay as they are where its channels are all alike, so that a norm
    of another width gives the same values.
    """
    name = "encoder.patch_embed."
    gain, bias = tensors[f"{name}norm1.weight"], tensors[f"{name}norm1.bias"]
    linear = tensors[f"{name}linear.weight"]
    filters = (linear * gain).reshape(len(linear), -1, old).sum(dim=2, keepdim=True) / new
    wide = filters.expand(-1, -1, new).flatten(1).contiguous()
    return {
        f"{name}norm1.weight": torch.ones_like(wide[0]),
        f"{name}norm1.bias": torch.zeros_like(wide[0]),
        f"{name}linear.weight": wide,
        f"{name}linear.bias": tensors[f"{name}linear.bias"] + linear @ bias,
    }


def with_grid(
    tensors: dict[str, Tensor], old: tuple[int, int], new: tuple[int, int]
) -> dict[str, Tensor]:
    """The tensors of a model with learned positions for a `new` grid of patches in place of `old`.

    As the model itself places patches of images of another size: see `Encoder.positions_for`.
    """
    rows, columns = (patch_centres(count, own) for count, own in zip(new, old, strict=True))
    table = resampled_positions(tensors["encoder.positions"], old, rows, columns)
    return {**tensors, "encoder.positions": table}


def _how(line: str, model: ModelConfig) -> str:
    if line.startswith("model.channels"):
        norm = "" if model.embedding == "conv" else ", with gain and bias of the norm before them,"
        return (
            f" (patch filters{norm} summed over the old channels and shared among the new ones;"
            " predictions averaged)"
        )
    if not line.startswith("model.image_size"):
        return ""
    if model.positions == "learned":
        return " (learned positions interpolated bilinearly to the new grid)"
    return " (positions are those of the new grid)"
