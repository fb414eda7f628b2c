"""Published classifiers in and out: CRATE, and CRATE-alpha as its PyTorch port and JAX write it.

Also their encoders alone, as self-distillation (SimDINO) leaves them: the same names without a
classifier's map.

Which family a file is of, its size and its classes are told from its tensors. What no file holds is
given as `ClassifierFacts`, or is what the published sizes have.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelConfig,
    Preprocess,
)
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.pools import Pool
from crate_mae.weights.tensors import check_match, load_exactly

Layout = Literal["crate", "crate-alpha"]
Size = int | tuple[int, int]

HEADS: dict[Layout, dict[int, int]] = {
    "crate": {384: 6, 576: 12, 768: 12, 1024: 16},
    "crate-alpha": {192: 3, 576: 12, 768: 12, 1024: 16, 1280: 16},
}
"""Heads of the published sizes, by width."""
DEMO, DEMO_HEADS = {"dim": 768, "patch_size": (8, 8), "num_classes": 21_842}, 6
"""The one CRATE of another number of heads: the demo's model of ImageNet-21k."""

FOREIGN = " (no published name)"
"""Put behind a name that is no published one, so that it cannot pass for one of ours."""

_LAYER = {
    "norm1": "0.norm",
    "mssa.subspaces": "0.fn.qkv",
    "mssa.output": "0.fn.to_out.0",
    "norm2": "1.norm",
}
_NAMES: dict[Layout, dict[str, str]] = {
    "crate": {
        "encoder.patch_embed.norm1": "to_patch_embedding.1",
        "encoder.patch_embed.linear": "to_patch_embedding.2",
        "encoder.patch_embed.norm2": "to_patch_embedding.3",
        "ista.dictionary": "1.fn.weight",
    },
    "crate-alpha": {
        "encoder.patch_embed": "conv1",
        "ista.dictionary": "1.fn.D",
        "ista.returning": "1.fn.D1",
    },
}
_TOP = {
    "encoder.class_token": "cls_token",
    "encoder.positions": "pos_embedding",
    "encoder.norm": "mlp_head.0",
    "head": "mlp_head.1",
}


@dataclass(frozen=True, kw_only=True)
class ClassifierFacts:
    """What a published classifier's file does not hold; None: as its published size has it."""

    num_heads: int | None = None
    """Known without being told for the published widths, and for files written by JAX."""
    image_size: Size | None = None
    """Height and width in pixels; None: a square grid of patches."""
    patch_size: Size | None = None
    """CRATE's files hold the number of values in a patch; None: a square of `channels`."""
    channels: int | None = None
    """Of CRATE's files; None: 3."""
    step_size: float = 0.1
    """eta; both families' code has this number."""
    sparsity: float = 0.1
    """lambda; both families' code has this number."""
    pool: Pool = "cls"
    """"cls" in every published size; CRATE's other one is "mean-all"."""


def layout_of_classifier(state: Mapping[str, Tensor]) -> Layout | None:
    """The family whose published names these are; None for others."""
    if any(key.startswith("to_patch_embedding.") for key in state):
        return "crate"
    decoupled = any(re.fullmatch(r"transformer\.layers\.\d+\.1\.fn\.D1?", key) for key in state)
    return "crate-alpha" if decoupled else None


def is_encoder_alone(state: Mapping[str, Tensor]) -> bool:
    """Whether published tensors of either family have no map from features to classes."""
    mapped = ("head.weight", "head.bias", "mlp_head.1.weight", "mlp_head.1.bias")
    return layout_of_classifier(state) is not None and not any(key in state for key in mapped)


def without_projection(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without those of SimDINO's projection head, and the names of the latter."""
    found = [key for key in state if re.fullmatch(r"head\.mlp\.\d{1,3}\.(weight|bias)", key)]
    return {key: value for key, value in state.items() if key not in found}, found


def encoder_from_published(
    state: Mapping[str, Tensor], facts: ClassifierFacts | None = None, *, eps: float = 1e-5
) -> CrateEncoder:
    """The encoder of published tensors without a classifier's map; as `from_published`.

    The norm in front of that map is the encoder's last one here, so it must be there.
    """
    facts = ClassifierFacts() if facts is None else facts
    if not is_encoder_alone(state):
        raise ValueError("these are no tensors of a CRATE or CRATE-alpha encoder alone")
    if not {"mlp_head.0.weight", "mlp_head.0.bias"} & state.keys():
        raise ValueError(
            "this encoder has no norm behind its layers (mlp_head.0 is missing, which goes where"
            " mlp_head is replaced whole): every encoder here ends in one, so its features would be"
            " others. Convert a file that kept mlp_head.0"
        )
    if facts.pool != "cls":
        raise ValueError(
            f"the file holds an encoder alone, and no head that a pool ({facts.pool}) could be of"
        )
    return _loaded(state, facts, eps, CrateEncoder)


def from_published(
    state: Mapping[str, Tensor], facts: ClassifierFacts | None = None, *, eps: float = 1e-5
) -> CrateClassifier:
    """The classifier of published tensors, as `published_state` gives them.

    `eps` is that of CRATE-alpha's last norm: 1e-5 in its PyTorch port, 1e-6 in its JAX original.
    The preprocessing is set to ImageNet's mean and std for three channels.
    Raises ValueError for tensors that are of neither family, are missing, unexpected, re-shaped or
    not finite, by name, and for facts that are needed or do not fit the sizes.
    """
    facts = ClassifierFacts() if facts is None else facts
    if layout_of_classifier(state) is None:
        raise ValueError("these are no tensors of a published CRATE or CRATE-alpha classifier")
    state = _one_head(state)
    head = state.get("mlp_head.1.weight")
    if head is None or head.ndim != 2:  # before a number of classes is read from it
        found = "missing" if head is None else f"of shape {tuple(head.shape)}"
        raise ValueError(f"this is no complete checkpoint: mlp_head.1.weight is {found}")
    num_classes = len(head)
    made = partial(CrateClassifier, num_classes=num_classes, pool=facts.pool)
    return _loaded(state, facts, eps, made)


ModelT = TypeVar("ModelT", bound=CrateEncoder)


def _loaded(
    state: Mapping[str, Tensor],
    facts: ClassifierFacts,
    eps: float,
    make: Callable[[ModelConfig], ModelT],
) -> ModelT:
    """What `make` makes of the configuration of published tensors, with all of them, in eval."""
    layout = layout_of_classifier(state)
    assert layout is not None
    config = _sizes(state, layout, facts, eps)
    theirs = published_names(config, layout)
    ours = {published: name for name, published in theirs.items()}
    renamed = {ours.get(key, f"{key}{FOREIGN}"): _shaped(key, v) for key, v in state.items()}
    with torch.device("meta"):  # nothing is allocated before all of it fits
        blank = make(config)
    shapes = {key: tuple(value.shape) for key, value in renamed.items()}
    check_match(shapes, blank, origin="the published checkpoint", names=theirs)
    model = make(config)
    load_exactly(model, renamed, origin="the published checkpoint", names=theirs)
    broken = [theirs[k] for k, v in model.state_dict().items() if not v.isfinite().all()]
    if broken:
        raise ValueError(
            f"the published checkpoint holds values that are not finite, in {', '.join(broken[:3])}"
        )
    if config.channels == 3:
        model.preprocess = Preprocess(size=config.image_hw, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return model.eval()


def to_published(model: CrateEncoder) -> dict[str, Tensor]:
    """The model's weights under the published names of its family; cloned tensors.

    Of an encoder alone without a classifier's map, as `encoder_from_published` reads them.
    Raises ValueError for a model that neither family's code computes, and says in what.
    """
    config = model.config
    layout: Layout = "crate" if config.embedding == "norm-linear-norm" else "crate-alpha"
    # The last norm of CRATE-alpha has one epsilon in its port and another in JAX.
    ported = layout == "crate-alpha" and config.final_norm_eps in (1e-5, 1e-6)
    # What training keeps weights to changes no number, and a decoder's there are none.
    unseen: dict[str, Any] = dict.fromkeys(
        ("orthonormal_subspaces", "bounded_steps", "mirrored_decoder"), False
    )
    wanted = replace(
        config,
        attention="mssa",
        attention_skip="tokens",
        compression_step=None,
        positions="learned",
        head_norm="pooled" if isinstance(model, CrateClassifier) else config.head_norm,
        output_projection="free" if layout == "crate" else "free-no-bias",
        sparse_step="ista" if layout == "crate" else "decoupled",
        overcomplete=1 if layout == "crate" else config.overcomplete,
        step_size=config.step_size if layout == "crate" else 0.1,
        sparsity=0.1,
        subspace_bias=False,
        layer_norm_eps=1e-5 if layout == "crate" else 1e-6,
        final_norm_eps=config.final_norm_eps if ported else 1e-5,
        **unseen,
    ).to_dict()
    # One atom a dimension may be told in two ways.
    mine = config.to_dict() | {"sparse_step": config.sparse_kind} | unseen
    differing = [
        f"{key} {mine[key]!r} (not {wanted[key]!r})" for key in mine if mine[key] != wanted[key]
    ]
    pools = ("cls", "mean-all") if layout == "crate" else ("cls",)
    if isinstance(model, CrateClassifier) and model.pool not in pools:
        differing.append(f"pool {model.pool!r} (not 'cls')")
    if differing:
        raise ValueError(f"the published code of {layout} cannot express {', '.join(differing)}")
    names = published_names(config, layout)
    state = {names[key]: value.detach().clone() for key, value in model.state_dict().items()}
    state["pos_embedding"] = state["pos_embedding"][None]
    return state


def published_names(config: ModelConfig, layout: Layout) -> dict[str, str]:
    """Published name of every tensor of a classifier, by its own name."""
    with torch.device("meta"):
        own = CrateClassifier(config, num_classes=2).state_dict()
    parts = _TOP | _NAMES[layout] | _LAYER
    found = {}
    for key in own:
        inside = re.match(r"encoder\.layers\.(\d+)\.(.+)", key)
        prefix, rest = (f"transformer.layers.{inside[1]}.", inside[2]) if inside else ("", key)
        part = next((p for p in (rest, rest.rpartition(".")[0]) if p in parts), None)
        # A tensor that the layout has no name for keeps its own: it is then named as missing.
        found[key] = key if part is None else prefix + parts[part] + rest.removeprefix(part)
    return found


def _sizes(
    state: Mapping[str, Tensor], layout: Layout, facts: ClassifierFacts, eps: float
) -> ModelConfig:
    """The configuration that the tensors and facts tell."""

    def shape(key: str, ndim: int) -> tuple[int, ...]:
        if key not in state or state[key].ndim != ndim:
            found = f"of shape {tuple(state[key].shape)}" if key in state else "missing"
            raise ValueError(f"this is no complete {layout} checkpoint: {key} is {found}")
        return tuple(state[key].shape)

    numbers = {int(m[1]) for k in state if (m := re.match(r"transformer\.layers\.(\d{1,4})\.", k))}
    if not numbers or numbers != set(range(len(numbers))):
        raise ValueError(f"the layers are numbered {sorted(numbers)}, not 0 to {len(numbers) - 1}")
    num_classes = 0 if is_encoder_alone(state) else shape("mlp_head.1.weight", 2)[0]
    dim = shape("pos_embedding", 3)[2]
    family: dict[str, Any]
    if layout == "crate":
        channels, patch = _patch(shape("to_patch_embedding.2.weight", 2)[1], facts)
        family = {
            "embedding": "norm-linear-norm", "final_norm_eps": 1e-5, "initial_values": "crate",
        }  # fmt: skip
    else:
        _, channels, *kernel = shape("conv1.weight", 4)
        patch = (kernel[0], kernel[1])
        _check_alpha(facts, channels, patch)
        width, atoms = shape("transformer.layers.0.1.fn.D", 2)
        family = {
            "overcomplete": max(1, atoms // max(1, width)), "sparse_step": "decoupled",
            "layer_norm_eps": 1e-6, "final_norm_eps": eps, "output_projection": "free-no-bias",
            "initial_values": "crate-alpha",
        }  # fmt: skip
    has_output = any("to_out" in key for key in state)
    heads = _heads(layout, dim, patch, num_classes, has_output, facts)
    return ModelConfig(
        image_size=_image(shape("pos_embedding", 3)[1] - 1, patch, facts),
        patch_size=patch,
        channels=channels,
        dim=dim,
        depth=len(numbers),
        num_heads=heads,
        decoder_depth=len(numbers),
        decoder_num_heads=heads,
        step_size=facts.step_size,
        sparsity=facts.sparsity,
        positions="learned",
        head_norm="pooled",
        **family,
    )


def _check_alpha(facts: ClassifierFacts, channels: int, patch: tuple[int, int]) -> None:
    """Raise ValueError for facts that are not those of a file of CRATE-alpha, or of its code."""
    other_patch = facts.patch_size is not None and _pair(facts.patch_size) != patch
    if other_patch or facts.channels not in (None, channels):
        raise ValueError(
            f"conv1.weight has patches of {patch[0]} x {patch[1]} pixels and {channels} channels:"
            " leave out patch_size and channels"
        )
    if facts.pool != "cls":
        raise ValueError(
            f"crate-alpha scores the class token alone, whatever pool it is given, not {facts.pool}"
        )


def _patch(values: int, facts: ClassifierFacts) -> tuple[int, tuple[int, int]]:
    """Channels and patch of so many values in a patch."""
    channels = 3 if facts.channels is None else facts.channels
    if channels < 1:
        raise ValueError(f"channels must be a positive whole number, not {channels}")
    if facts.patch_size is not None:
        patch = _pair(facts.patch_size)
    else:
        side = math.isqrt(values // channels)
        patch = (side, side)
    if patch[0] * patch[1] * channels != values:
        raise ValueError(
            f"a patch holds {values} values by to_patch_embedding.2.weight, which is not {channels}"
            f" channels of {patch[0]} x {patch[1]} pixels: give patch_size and channels"
        )
    return channels, patch


def _pair(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _image(patches: int, patch: tuple[int, int], facts: ClassifierFacts) -> tuple[int, int]:
    """Image size of so many patches."""
    if facts.image_size is not None:
        return _pair(facts.image_size)
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not patches:
        raise ValueError(
            f"pos_embedding has {patches} patches, which are no square grid: give image_size"
        )
    return side * patch[0], side * patch[1]


def _heads(
    layout: Layout,
    dim: int,
    patch: tuple[int, int],
    num_classes: int,
    has_output: bool,
    facts: ClassifierFacts,
) -> int:
    if facts.num_heads is not None:
        return facts.num_heads
    if not has_output:
        return 1  # the published code leaves W out with one head of full width, and only then
    if layout == "crate" and {"dim": dim, "patch_size": patch, "num_classes": num_classes} == DEMO:
        return DEMO_HEADS
    if dim in HEADS[layout]:
        return HEADS[layout][dim]
    raise ValueError(
        f"no {layout} of width {dim} was published, and no file holds the number of heads: give"
        " num_heads"
    )


def _one_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with the demo's two maps behind the norm multiplied into one."""
    state = dict(state)
    if not {"head.weight", "mlp_head.1.weight", "mlp_head.1.bias"} <= state.keys():
        return state
    first, offset = state["mlp_head.1.weight"], state["mlp_head.1.bias"]
    second = state.pop("head.weight")
    bias = state.pop("head.bias", None)
    if first.ndim != 2 or second.ndim != 2 or second.shape[1] != first.shape[0]:
        raise ValueError(
            f"head.weight {tuple(second.shape)} does not follow mlp_head.1.weight"
            f" {tuple(first.shape)}"
        )
    for name, vector, rows in (
        ("mlp_head.1.bias", offset, first.shape[0]),
        ("head.bias", bias, second.shape[0]),
    ):
        if vector is not None and tuple(vector.shape) != (rows,):
            raise ValueError(f"{name} is of shape {tuple(vector.shape)}, not ({rows},)")
    shift = second.double() @ offset.double()
    state["mlp_head.1.weight"] = (second.double() @ first.double()).to(second.dtype)
    state["mlp_head.1.bias"] = (shift if bias is None else shift + bias.double()).to(second.dtype)
    return state


def _shaped(key: str, value: Tensor) -> Tensor:
    """A published tensor in the shape that ours has: positions without the batch."""
    return value[0] if key == "pos_embedding" and value.ndim == 3 and len(value) == 1 else value
