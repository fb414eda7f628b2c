"""DEPICT's published segmentation decoders in and out, and decoders in folders of their own."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crate_mae.common.files import read_json_object, user_path
from crate_mae.models.depict import SegmentationDecoder
from crate_mae.weights.published_classifiers import FOREIGN
from crate_mae.weights.segmenter_head import bounded_sizes
from crate_mae.weights.shipped import CONFIG, TENSORS
from crate_mae.weights.tensors import check_match, load_exactly, read_safetensors, write_safetensors
from crate_mae.weights.weights_folder import FORMAT, check_complete, replacing_folder

KIND = "SegmentationDecoder"
"""How `config.json` names a decoder in a folder of its own."""

HEAD_DIM, CROSS_HEAD_DIM = 100, 50
"""Dimensions of a head in the published code: no file holds them."""

_FORMS: dict[str, dict[str, str]] = {
    "self": {"classes": "cls_emb", "layers": "net.layers", "norm": "decoder_norm"},
    "cross": {
        "classes": "cls_emb", "layers": "snet.layers", "norm": "snorm",
        "cross_layers": "cnet.layers", "cross_norm": "cnorm",
    },
}  # fmt: skip
_INSIDE = {"subspaces": "fn.proj", "step_size": "fn.step_size"}


def is_depict(state: Mapping[str, Tensor]) -> bool:
    """Whether these are published names of a DEPICT decoder, with or without an encoder beside."""
    return any(key.removeprefix("decoder.") == "cls_emb" for key in state)


def from_depict(
    state: Mapping[str, Tensor], *, head_dim: int = HEAD_DIM, cross_head_dim: int = CROSS_HEAD_DIM
) -> SegmentationDecoder:
    """The decoder of published tensors, as `published_state` gives them.

    Form, layers, heads, width and classes are told from the tensors; heads from the dimensions of
    one, which no file holds. Tensors of an encoder (`encoder.*`), a ViT, are passed over.
    Raises ValueError for tensors that are missing, unexpected, re-shaped or not finite.
    """
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("encoder."):
            continue
        name = key.removeprefix("decoder.")
        if name in own:
            raise ValueError(f"{name} is held twice, with and without decoder. in front")
        own[name] = value
    form = "cross" if "cnorm.weight" in own else "self"
    sizes = _sizes(own, form, head_dim, cross_head_dim)
    theirs = depict_names(sizes)
    ours = {published: name for name, published in theirs.items()}
    renamed = {ours.get(key, f"{key}{FOREIGN}"): value for key, value in own.items()}
    return _filled(sizes, renamed, "the published decoder", theirs)


def to_depict(decoder: SegmentationDecoder) -> dict[str, Tensor]:
    """A decoder's tensors under the published names, `decoder.` in front; cloned.

    Raises ValueError for a decoder whose heads have other dimensions than the published code's, for
    no file holds them.
    """
    sizes = decoder.sizes
    fixed = {"head_dim": HEAD_DIM}
    if sizes["form"] == "cross":
        fixed["cross_head_dim"] = CROSS_HEAD_DIM
    differing = [f"{key} {sizes[key]} (not {n})" for key, n in fixed.items() if sizes[key] != n]
    if differing:
        raise ValueError(f"the published code of depict cannot express {', '.join(differing)}")
    names = depict_names(sizes)
    return {f"decoder.{names[k]}": v.detach().clone() for k, v in decoder.state_dict().items()}


def save_decoder(
    decoder: SegmentationDecoder, folder: str | Path, *, overwrite: bool = False
) -> Path:
    """The folder, now holding a decoder's tensors and sizes; whole or not at all.

    Raises FileExistsError as `save_model`.
    """
    described = {"format": FORMAT, "model": KIND, "decoder": decoder.sizes}
    tensors = {k: v.detach().cpu().contiguous() for k, v in decoder.state_dict().items()}
    with replacing_folder(folder, overwrite=overwrite) as fresh:
        write_safetensors(tensors, fresh / TENSORS)
        (fresh / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return user_path(folder)


def is_decoder_folder(folder: str | Path) -> bool:
    """Whether a folder's `config.json` names a decoder; ValueError for one that is damaged."""
    described = user_path(folder) / CONFIG
    return described.is_file() and read_json_object(described).get("model") == KIND


def load_decoder(folder: str | Path) -> SegmentationDecoder:
    """The decoder, in eval mode, of a folder that `save_decoder` wrote.

    Raises FileNotFoundError when a file is missing and ValueError for damaged ones.
    """
    folder = user_path(folder)
    check_complete(folder, (TENSORS, CONFIG))
    described = read_json_object(folder / CONFIG)
    if described.get("model") != KIND or described.get("format") != FORMAT:
        raise ValueError(
            f"{folder / CONFIG} names {described.get('model')!r} of format"
            f" {described.get('format')!r}, not {KIND} of {FORMAT}"
        )
    sizes = described.get("decoder")
    if not isinstance(sizes, dict) or sizes.keys() != SIZES:
        raise ValueError(f"{folder / CONFIG} must name {', '.join(sorted(SIZES))} of the decoder")
    return _filled(bounded_sizes(sizes), read_safetensors(folder / TENSORS), str(folder), {})


SIZES = {
    "dim", "num_classes", "form", "num_layers", "num_heads", "head_dim", "cross_head_dim",
}  # fmt: skip


def depict_names(sizes: Mapping[str, Any]) -> dict[str, str]:
    """Published name of every tensor of a decoder of these sizes, by its own name."""
    with torch.device("meta"):
        own = SegmentationDecoder(**sizes).state_dict()
    parts = _FORMS[sizes["form"]] | {"class_norm": "mask_norm"}
    found = {}
    for key in own:
        part, _, rest = key.partition(".")
        if inside := re.fullmatch(r"(\d+)\.(\w+)", rest):
            rest = f"{inside[1]}.{_INSIDE[inside[2]]}"
        found[key] = ".".join(filter(None, (parts[part], rest)))
    return found


def _sizes(
    own: Mapping[str, Tensor], form: str, head_dim: int, cross_head_dim: int
) -> dict[str, Any]:
    net = _FORMS[form]["layers"]

    def shape(key: str, ndim: int) -> tuple[int, ...]:
        if key not in own or own[key].ndim != ndim:
            found = f"of shape {tuple(own[key].shape)}" if key in own else "missing"
            raise ValueError(f"this is no complete DEPICT decoder: {key} is {found}")
        return tuple(own[key].shape)

    pattern = re.escape(net) + r"\.(\d{1,4})\."
    numbers = {int(m[1]) for key in own if (m := re.match(pattern, key))}
    if not numbers or numbers != set(range(len(numbers))):
        raise ValueError(f"{net} are numbered {sorted(numbers)}, not 0 to {len(numbers) - 1}")
    _, num_classes, dim = shape("cls_emb", 3)
    rows = shape(f"{net}.0.fn.proj", 2)[0]
    if head_dim < 1 or rows % head_dim:
        raise ValueError(f"{net}.0.fn.proj has {rows} rows, which are no heads of {head_dim}")
    return bounded_sizes(
        {
            "dim": dim,
            "num_classes": num_classes,
            "form": form,
            "num_layers": len(numbers),
            "num_heads": rows // head_dim,
            "head_dim": head_dim,
            "cross_head_dim": cross_head_dim,
        }
    )


def _filled(
    sizes: dict[str, Any], tensors: Mapping[str, Tensor], origin: str, names: Mapping[str, str]
) -> SegmentationDecoder:
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    with torch.device("meta"):  # nothing is allocated before all of it fits
        check_match(shapes, SegmentationDecoder(**sizes), origin=origin, names=names)
    decoder = SegmentationDecoder(**sizes)
    load_exactly(decoder, tensors, origin=origin, names=names)
    if broken := [k for k, v in decoder.state_dict().items() if not v.isfinite().all()]:
        raise ValueError(f"{origin} holds values that are not finite, in {', '.join(broken[:3])}")
    return decoder.eval()
