"""ViT-MAE folders: transformers' `save_pretrained`, with our preprocessing beside it."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crate_mae.common.files import read_json_object, user_path
from crate_mae.models.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, Preprocess
from crate_mae.vitmae.classifier import ARITHMETIC
from crate_mae.vitmae.model import (
    ViTMAE,
    position_tables,
    sizes_of,
    transformers_library,
    vitmae_config,
)
from crate_mae.weights.shipped import CONFIG, PREPROCESS, TENSORS
from crate_mae.weights.tensors import (
    IncompleteWeightsError,
    check_safetensors,
    read_safetensors,
    write_safetensors,
)
from crate_mae.weights.weights_folder import replacing_folder


def save_vitmae(
    model: ViTMAE,
    folder: str | Path,
    *,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder, now holding a model that `load_vitmae` and transformers read back.

    `state` replaces the model's own tensors. Written whole or not at all; raises FileExistsError as
    `save_model` does.
    """
    own = None if state is None else {k.removeprefix("model."): v for k, v in state.items()}
    with replacing_folder(folder, overwrite=overwrite) as fresh, _quiet():
        model.model.save_pretrained(fresh, state_dict=own)
        write_safetensors(read_safetensors(fresh / TENSORS), fresh / TENSORS)  # with a checksum
        text = json.dumps(model.preprocess.to_dict(), indent=2) + "\n"
        (fresh / PREPROCESS).write_text(text, encoding="utf-8")
    return user_path(folder)


def load_vitmae(folder: Path, described: dict[str, Any]) -> ViTMAE:
    """The ViT-MAE, in eval mode, of a folder written by `save_vitmae` or by `save_pretrained`.

    `described` is what its `config.json` holds. Read from `model.safetensors` alone, from this disk
    alone; no code of the folder runs. Images are prepared as `preprocess.json` says, else by mean
    and std of transformers' own `preprocessor_config.json`, else by ImageNet's. Raises
    FileNotFoundError for missing files, IncompleteWeightsError when tensors are missing or do not
    fit, and ValueError for configurations that cannot be run.
    """
    if not (folder / TENSORS).is_file():
        raise FileNotFoundError(
            f"{folder} has no {TENSORS}: save the model with save_pretrained, as one safetensors"
            " file (pickled weights are not read)"
        )
    preprocess = _preprocess(folder, _checked(described, folder))
    check_safetensors(folder / TENSORS)
    build = transformers_library().ViTMAEForPreTraining.from_pretrained
    try:
        with _quiet():
            model, found = build(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported below, in our words
                output_loading_info=True,
            )
    except Exception as error:  # of a damaged file, whatever its reader meets first
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{folder}: transformers cannot build this ViT-MAE ({type(error).__name__}: {reason});"
            f" {CONFIG} or {TENSORS} is damaged"
        ) from error
    faults = [
        f"{len(found[key])} {word}: {', '.join(sorted(map(str, found[key]))[:5])}"
        for key, word in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "unexpected"),
            ("mismatched_keys", "re-shaped"),
        )
        if found[key]
    ]
    if faults:
        raise IncompleteWeightsError(f"{folder / TENSORS} does not fit: {'; '.join(faults)}")
    if not position_tables(model)[0].any():
        raise ValueError(
            f"{folder}: the encoder's position table is all zero, so that the model cannot tell"
            " patches apart by place: it was built by transformers from a configuration and never"
            " given its sin-cos table. Build it with crate_mae.vitmae.build_vitmae."
        )
    return ViTMAE(model, preprocess).eval()


def architecture_in(folder: Path, described: dict[str, Any]) -> ModelConfig:
    """The sizes of a ViT-MAE of which `vitmae_config` makes the same encoder, without its tensors.

    `described` is what the folder's `config.json` holds. Raises ValueError for sizes outside our
    limits, and for an encoder that computes otherwise than ours of its sizes would.
    """
    theirs = transformers_library().ViTMAEConfig().to_dict() | described
    try:
        sizes = sizes_of(theirs)
        ours = vitmae_config(sizes).to_dict()
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    differing = [key for key in ARITHMETIC if theirs[key] != ours[key]]
    if differing:
        raise ValueError(
            f"{folder / CONFIG}: only ViT-MAEs that compute as our baselines do are trained from"
            " scratch; this one differs in "
            + ", ".join(f"{key} {theirs[key]!r} (not {ours[key]!r})" for key in differing)
            + ". For the baseline of a preset set --vitmae configuration"
        )
    return sizes


def _checked(values: dict[str, Any], folder: Path) -> ModelConfig:
    """The sizes of a transformers configuration: within our limits, and no more than the file has.

    Tensors that do not fit are allocated before they can be reported, so that must come first.
    """
    config = transformers_library().ViTMAEConfig().to_dict() | values
    try:
        sizes = sizes_of(config)
        least = 0
        for side, depth in (("", sizes.depth), ("decoder_", sizes.decoder_depth)):
            width, inner = config[f"{side}hidden_size"], config[f"{side}intermediate_size"]
            if not all(type(n) is int and n > 0 for n in (width, inner)):
                raise ValueError(f"{side}hidden_size {width!r}, {side}intermediate_size {inner!r}")
            least += depth * (4 * width * width + 2 * width * inner)
        held = (folder / TENSORS).stat().st_size
        if 2 * least > held:  # two bytes are the narrowest number that is read
            raise ValueError(f"{least:,} parameters cannot lie in a file of {held:,} bytes")
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    return sizes


def _preprocess(folder: Path, config: ModelConfig) -> Preprocess:
    if (folder / PREPROCESS).is_file():
        preprocess = _built(
            folder / PREPROCESS, Preprocess.from_dict, read_json_object(folder / PREPROCESS)
        )
        if (preprocess.size, preprocess.channels) != (config.image_hw, config.channels):
            raise ValueError(
                f"{folder / PREPROCESS} is for {preprocess.channels} channels of"
                f" {preprocess.size}, the model for {config.channels} of {config.image_hw}"
            )
        return preprocess
    theirs = folder / "preprocessor_config.json"
    values = read_json_object(theirs) if theirs.is_file() else {}
    mean, std = values.get("image_mean", IMAGENET_MEAN), values.get("image_std", IMAGENET_STD)
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple):
        raise ValueError(f"{theirs}: image_mean and image_std must be lists, not {mean!r}, {std!r}")
    if len(mean) != config.channels:
        raise ValueError(
            f"{folder} does not say how its images of {config.channels} channels were prepared:"
            f" add {PREPROCESS} with size, channels, mean and std"
        )
    values = {"size": config.image_hw, "channels": config.channels, "mean": mean, "std": std}
    return _built(theirs, Preprocess.from_dict, values)


def _built(path: Path, build: Callable[[dict[str, Any]], Preprocess], values: Any) -> Preprocess:
    try:
        return build(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context without the progress bars of transformers."""
    logging = transformers_library().utils.logging
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
