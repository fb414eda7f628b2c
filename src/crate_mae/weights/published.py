"""Published CRATE-MAE checkpoints in and out: their key names, wrappings and sizes.

The published files hold two tensors the model never uses (`pos_embed`, `decoder_embed.*`); they
are passed over by name. What the files do not hold, heads, eta, lambda and the kind of target, is
given as `PublishedFacts`; `crate_mae.evaluation.published_facts` measures what it can of them.
"""

import argparse
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crate_mae.common.file_kinds import file_kind
from crate_mae.common.files import check_new_folder, user_path
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import IMAGENET_MEAN, IMAGENET_STD, PRESETS, ModelConfig, Preprocess
from crate_mae.models.patches import sincos_positions
from crate_mae.weights.tensors import (
    check_zip,
    load_exactly,
    read_safetensors,
)
from crate_mae.weights.weights_folder import save_model, weights_hash

UNUSED = ("pos_embed", "decoder_embed.weight", "decoder_embed.bias")
POSITIONS = "decoder_pos_embed"

PUBLISHED = ("tiny", "small", "base", "large")
"""The presets whose sizes were published."""

_ENCODER_LAYER = {
    "norm1": "layers.0.0.norm",
    "mssa.subspaces": "layers.0.0.fn.qkv",
    "mssa.output": "layers.0.0.fn.to_out.0",
    "norm2": "layers.0.1.norm",
    "ista.dictionary": "layers.0.1.fn.weight",
}
_DECODER_LAYER = {
    "norm1": "layers.0.0.norm",
    "synthesis": "layers.0.0.fn",
    "norm2": "layers.0.1.norm",
    "mssa.subspaces": "layers.0.1.fn.qkv",
    "mssa.output": "layers.0.1.fn.to_out.0",
}
_TOP = {
    "encoder.patch_embed": "patch_embed.proj",
    "encoder.class_token": "cls_token",
    "encoder.norm": "norm",
    "mask_token": "mask_token",
    "decoder_norm": "decoder_norm",
    "prediction": "decoder_pred",
}


@dataclass(frozen=True, kw_only=True)
class PublishedFacts:
    """What a published checkpoint does not hold and its model cannot do without."""

    num_heads: int
    """Of the encoder; the published sizes use 6 (tiny), 12 (small, base) and 16 (large)."""
    sparsity: float
    """lambda of ISTA; 5.0 and 0.5 were both published (docs/weights.md)."""
    norm_pix_loss: bool
    """Whether it was trained on patches normalised by their own mean and variance."""
    decoder_num_heads: int | None = None
    """Of the decoder; None: as many as the encoder's."""
    step_size: float = 0.1
    """eta of ISTA; the published code has no other."""


def from_reference(checkpoint: str | Path | Mapping[str, Any], facts: PublishedFacts) -> CrateMAE:
    """The model of a published checkpoint: a `.pth` or `.safetensors` path, or a state dict.

    Sizes come from the tensors, the rest from `facts`. A training script's wrapping
    (`{"model": ...}`) and the prefixes `module.` and `_orig_mod.` are taken off. Pickled files are
    read with `weights_only=True` plus `argparse.Namespace`, which such scripts store, and nothing
    else.

    The preprocessing is set to ImageNet's mean and std for three channels.
    Raises FileNotFoundError, and ValueError for files that are no complete checkpoint (encoder
    only, missing, unexpected or re-shaped tensors, by name, or a foreign position table), for
    values that are not finite and for facts that do not fit the sizes.
    """
    state = published_state(checkpoint)
    given = asdict(facts)
    if facts.decoder_num_heads is None:
        given["decoder_num_heads"] = facts.num_heads
    config = ModelConfig(**published_sizes(state), **given)
    theirs = _names(config)
    ours = {published: name for name, published in theirs.items()}
    renamed = {
        ours.get(key, key): value
        for key, value in state.items()
        if key not in UNUSED and key != POSITIONS
    }
    model = CrateMAE(config)
    load_exactly(model, renamed, origin="the published checkpoint", names=theirs)
    loaded = model.state_dict()
    broken = [theirs[key] for key, value in loaded.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"the published checkpoint holds values that are not finite, in {', '.join(broken[:3])}"
        )
    if config.channels == 3:
        model.preprocess = Preprocess(size=config.image_hw, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return model


def to_reference(model: CrateMAE) -> dict[str, Tensor]:
    """The model's weights under the published key names, with the position table.

    Cloned tensors. A tied output map is written out as the separate map the published code has
    (transposed U, zero bias), which computes the same. The two unused published tensors are left
    out. Raises ValueError when the published code cannot express the model: mask tokens that enter
    in the decoder, an overcomplete dictionary, operators of another family, or a tied output map
    with a single head.
    """
    config = model.config
    if config.mask_tokens != "encoder":
        raise ValueError("the published code has mask tokens in the encoder only")
    if config.overcomplete != 1:
        raise ValueError(
            f"the published code has as many atoms as dimensions, not {config.overcomplete} times"
            " as many (overcomplete)"
        )
    if config.other_operators:
        raise ValueError(f"the published code has no {', '.join(config.other_operators)}")
    if config.output_projection == "tied" and 1 in (config.num_heads, config.decoder_num_heads):
        raise ValueError("the published code has no output map with one head, so none can be tied")
    names = _names(config)
    state = {names[k]: v.detach().clone() for k, v in model.state_dict().items()}
    if config.output_projection == "tied":
        for key in [key for key in state if key.endswith("qkv.weight")]:
            output = key.replace("qkv", "to_out.0")
            state[output] = state[key].mT.clone()
            state[output.replace("weight", "bias")] = torch.zeros_like(state[key][0])
    state[POSITIONS] = model.encoder.positions.detach().clone()[None]
    return state


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What came of a checkpoint."""

    folder: Path
    config: ModelConfig
    parameters: int
    sha256: str
    """Of the new tensor file."""
    passed_over: list[str]
    """Names and shapes of what the file holds and the model does not need."""

    @property
    def preset(self) -> str | None:
        """The published size of the same widths, depths, image and patches; None for others."""
        sizes = ("image_size", "patch_size", "channels", "dim", "depth", "decoder_depth")
        mine = self.config.to_dict()
        for name in PUBLISHED:
            published = PRESETS[name].to_dict()
            if all(mine[key] == published[key] for key in sizes):
                return name
        return None

    def text(self) -> str:
        """All of it as text, with a warning where the heads are not those of its size."""
        config = self.config
        image, patch = (" x ".join(map(str, hw)) for hw in (config.image_hw, config.patch_hw))
        lines = [
            f"size        {self.preset or 'none of the published ones'}: width {config.dim},"
            f" {config.depth} + {config.decoder_depth} layers, {image} pixels in"
            f" patches of {patch}, {config.channels} channels",
            f"parameters  {self.parameters:,}",
            f"heads       {config.num_heads} + {config.decoder_num_heads}",
            f"lambda      {config.sparsity:g}, eta {config.step_size:g}",
            f"targets     {'normalised patches' if config.norm_pix_loss else 'pixels'}",
            f"passed over {', '.join(self.passed_over) or 'nothing'}",
            f"SHA-256     {self.sha256}",
            f"wrote       {self.folder}",
        ]
        expected = None if self.preset is None else PRESETS[self.preset].num_heads
        if expected is not None and {config.num_heads, config.decoder_num_heads} != {expected}:
            lines.append(
                f"warning     the published {self.preset} model has {expected} heads: with another"
                " number every tensor fits and every result is wrong"
            )
        return "\n".join(lines)


def convert_checkpoint(
    checkpoint: str | Path | Mapping[str, Any], out: str | Path, facts: PublishedFacts
) -> Conversion:
    """What came of a published checkpoint, now a weights folder at `out`, new or empty.

    Read as `from_reference` reads it (tensors alone, nothing is executed). Raises FileExistsError
    for a folder with content, before anything is read, and what `from_reference` raises.
    """
    check_new_folder(out)
    state = published_state(checkpoint)
    model = from_reference(state, facts)
    folder = save_model(model, out)
    return Conversion(
        folder=folder,
        config=model.config,
        parameters=sum(p.numel() for p in model.parameters()),
        sha256=weights_hash(folder),
        passed_over=[
            f"{key} {tuple(state[key].shape)}"
            + (" (the table is computed)" if key == POSITIONS else " (never used)")
            for key in state
            if key in (*UNUSED, POSITIONS)
        ],
    )


def published_state(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by their published names, out of a file or mapping in any wrapping.

    Of a student and a teacher (SimDINO) it is the teacher. Raises as `published_parts`.
    """
    return published_parts(source)[0]


def published_parts(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by their published names, what lies beside them in the wrapping, by name).

    What lies beside them are an optimiser's state, other copies of the weights and the like: plain
    values are not named.

    Raises FileNotFoundError, and ValueError for damaged files (a zip archive has checksums, older
    `.pth` files have none), for files that hold anything but plain tensors and values, for entries
    that are no tensors, for tensors that claim more values than they hold, and for tensors that
    differ in their prefixes alone.
    """
    loaded: Any = source if isinstance(source, Mapping) else _read(user_path(source))
    beside: list[str] = []
    for wrapper in ("model", "teacher", "state_dict", "module"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            beside += [
                str(key)
                for key, value in loaded.items()
                if key != wrapper and isinstance(value, Mapping | list) and value
            ]
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError("no state dict found: expected tensors by name, or them under 'model'")
    state: dict[str, Tensor] = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{key!r} is {type(value).__name__}, not a tensor under a name")
        if value.device.type != "cpu" or value.layout is not torch.strided:
            raise ValueError(f"{key} is no plain tensor with values of its own")
        # A pickle of a few bytes can repeat one value to any size by a stride of 0.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{key} claims {value.numel():,} values and holds fewer")
        name = re.sub(r"^(?:module\.|_orig_mod\.|backbone\.)+", "", key)
        if name in state:
            raise ValueError(f"{name} is held twice, the second time as {key}")
        state[name] = value
    return state, beside


def published_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a `ModelConfig` that the tensors of a `published_state` tell.

    Image and patch size, channels, width and depths. Raises ValueError for tensors that are no
    complete CRATE-MAE, or that have a foreign position table.
    """

    def shape(key: str, ndim: int) -> tuple[int, ...]:
        if key not in state or state[key].ndim != ndim:
            found = f"of shape {tuple(state[key].shape)}" if key in state else "missing"
            raise ValueError(f"this is no CRATE-MAE checkpoint: {key} is {found}")
        return tuple(state[key].shape)

    def count(stack: str) -> int:
        found = {
            int(m[1]) for key in state if (m := re.match(rf"{stack}\.(\d{{1,4}})\.layers\.", key))
        }
        if found != set(range(len(found))):
            raise ValueError(f"{stack} are numbered {sorted(found)}, not 0 to {len(found) - 1}")
        return len(found)

    dim, channels, *patch = shape("patch_embed.proj.weight", 4)
    depth, decoder_depth = count("blocks"), count("decoder_blocks")
    if not decoder_depth:
        # Any number of heads above one has the same tensors; four divide every width.
        full = ModelConfig(dim=dim, depth=depth or 1, num_heads=4, decoder_num_heads=4)
        decoder = len(_names(full))
        raise ValueError(
            f"this checkpoint holds an encoder only (0 decoder layers; a full one has {decoder}"
            " tensors or more). Reconstruction needs a full checkpoint."
        )
    shape(POSITIONS, 3)
    grid = _infer_grid(state[POSITIONS])
    return {
        "image_size": (grid[0] * patch[0], grid[1] * patch[1]),
        "patch_size": (patch[0], patch[1]),
        "channels": channels,
        "dim": dim,
        "depth": depth,
        "decoder_depth": decoder_depth,
    }


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        check_zip(path)
        with ExitStack() as stack:
            stack.enter_context(torch.serialization.safe_globals([argparse.Namespace]))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of pickles of other protocols
            source: Any = path
            if not zipfile.is_zipfile(path):  # of PyTorch before 1.6: a pickle
                source = stack.enter_context(_WithinItsSize(path.open("rb", buffering=0)))
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken file fails in too many ways to list
        kind = file_kind(path)
        if kind is not None and not kind.startswith("a zip archive"):  # torch's own files are
            raise ValueError(f"{path} is no checkpoint, but {kind}") from error
        raise ValueError(
            f"{path} could not be read as plain tensors: {_reason(path, error)}. Only tensors,"
            " plain values and argparse.Namespace are accepted; convert anything else where you"
            " trust it."
        ) from error


class _WithinItsSize(BufferedReader):
    """A file that takes no memory for bytes that it does not have.

    A pickle tells how long a text is before it comes, up to 4 GiB, and Python would make room.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes, at most as many as are left."""
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _reason(path: Path, error: Exception) -> str:
    """Why a file is no checkpoint, without PyTorch's advice to run whatever is in it."""
    if path.stat().st_size == 0:
        return "it is empty"
    text = str(error).strip()
    if "Weights only load failed" in text or "weights_only" in text:
        named = re.search(r"GLOBAL ([\w.]+)", text)
        return f"it holds code, {named[1]}" if named else "it is damaged, or holds code"
    return text.splitlines()[0] if text else type(error).__name__


def _infer_grid(table: Tensor) -> tuple[int, int]:
    """The grid (rows, columns) whose sin-cos table this is; ValueError when it is none."""
    num_patches, dim = table.shape[1] - 1, table.shape[2]
    grids = [
        (rows, num_patches // rows) for rows in range(1, num_patches + 1) if num_patches % rows == 0
    ]
    grids.sort(key=lambda grid: abs(grid[0] - grid[1]))
    if dim % 4 == 0 and table.is_floating_point():
        atol = max(1e-4, torch.finfo(table.dtype).eps)  # checkpoints may be in half precision
        for grid in grids:
            if torch.allclose(sincos_positions(dim, grid), table[0].float(), atol=atol, rtol=0):
                return grid
    raise ValueError(
        f"{POSITIONS} of shape {tuple(table.shape)} is no sin-cos table of any grid of"
        f" {num_patches} patches: the checkpoint was trained with other positions"
    )


def _names(config: ModelConfig) -> dict[str, str]:
    """Published key by our key, for every tensor of a model of this configuration."""
    stems = dict(_TOP)
    for stack, theirs, depth, table in (
        ("encoder.layers", "blocks", config.depth, _ENCODER_LAYER),
        ("decoder", "decoder_blocks", config.decoder_depth, _DECODER_LAYER),
    ):
        for index in range(depth):
            for ours, reference in table.items():
                stems[f"{stack}.{index}.{ours}"] = f"{theirs}.{index}.{reference}"
    with torch.device("meta"):
        keys = CrateMAE(config).state_dict().keys()

    def published(key: str) -> str:
        if key in stems:
            return stems[key]
        stem, leaf = key.rsplit(".", 1)
        return f"{stems[stem]}.{leaf}"

    return {key: published(key) for key in keys}
