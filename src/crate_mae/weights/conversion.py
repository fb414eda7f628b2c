"""Published files of every family in and out: which one a file is of, and what came of it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crate_mae.common.files import check_new_folder, file_hash, replacing, user_path
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.weights.jax_arrays import read_jax, to_jax
from crate_mae.weights.published import published_parts, to_reference
from crate_mae.weights.published_classifiers import (
    ClassifierFacts,
    encoder_from_published,
    from_published,
    is_encoder_alone,
    layout_of_classifier,
    to_published,
    without_projection,
)
from crate_mae.weights.published_depict import (
    from_depict,
    is_decoder_folder,
    is_depict,
    load_decoder,
    save_decoder,
    to_depict,
)
from crate_mae.weights.shipped import TENSORS
from crate_mae.weights.tensors import write_safetensors
from crate_mae.weights.weights_folder import load_model, save_model, weights_hash

Family = Literal["crate-mae", "crate", "crate-alpha", "depict"]

logger = logging.getLogger(__name__)

STEP_SIZE = 0.1
"""eta, where CRATE's code is not told another."""
PORT_EPS, JAX_EPS = 1e-5, 1e-6
"""Epsilon of CRATE-alpha's last norm, in its authors' PyTorch port and in their JAX code."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A published file that was read: its tensors by published names, and whose they are."""

    state: dict[str, Tensor]
    family: Family
    num_heads: int | None
    """Where the file tells it; None elsewhere."""
    from_jax: bool
    passed_over: list[str]


@dataclass(frozen=True, kw_only=True)
class FamilyConversion:
    """What came of a checkpoint of a family other than CRATE-MAE."""

    folder: Path
    family: Family
    facts: dict[str, str]
    """What it is, in words, by name."""
    passed_over: list[str]
    sha256: str

    def text(self) -> str:
        """All of it as text."""
        rows = {
            "family": self.family,
            **self.facts,
            "passed over": ", ".join(self.passed_over) or "nothing",
            "SHA-256": self.sha256,
            "wrote": str(self.folder),
        }
        return "\n".join(f"{name:<12}{value}" for name, value in rows.items())


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A published file: `.pth`, `.safetensors` or, of CRATE-alpha, `.npz`; nothing is executed.

    Raises FileNotFoundError, ValueError for files that hold anything but plain tensors, and for
    families whose layers this package does not have, with the reason.
    """
    path = user_path(path)
    if path.suffix == ".npz":
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint file at {path}")
        state, heads, passed_over = read_jax(path)
        return Checkpoint(
            state=state, family="crate-alpha", num_heads=heads, from_jax=True,
            passed_over=_counted(passed_over, "optimiser's arrays"),
        )  # fmt: skip
    projection: list[str] = []
    state, beside = published_parts(path)
    if layout_of_classifier(state) is not None:
        state, projection = without_projection(state)
    passed_over = _counted(projection, "tensors of SimDINO's projection head")
    if beside:
        passed_over.append(f"{', '.join(beside)} beside the tensors")
    return Checkpoint(
        state=state, family=family_of(state), num_heads=None, from_jax=False,
        passed_over=passed_over,
    )  # fmt: skip


def family_of(state: Mapping[str, Tensor]) -> Family:
    """Whose tensors these are, by their published names.

    Raises ValueError, with the reason, for those of families that are refused. Names of none are
    taken for CRATE-MAE's, whose reader says what is missing.
    """
    layout = layout_of_classifier(state)
    if layout is not None:
        return layout
    if is_depict(state):
        return "depict"
    for known, reason in REFUSED:
        if known(state):
            raise ValueError(reason)
    return "crate-mae"


def convert_family(
    checkpoint: Checkpoint, out: str | Path, facts: ClassifierFacts | None = None
) -> FamilyConversion:
    """What came of a published classifier, encoder or decoder, now a folder, new or empty.

    Raises FileExistsError for a folder with content, before anything is computed, and what
    `from_published`, `encoder_from_published` and `from_depict` raise; then nothing is written.
    """
    check_new_folder(out)
    if checkpoint.family == "depict":
        return _convert_decoder(checkpoint, out)
    facts = ClassifierFacts() if facts is None else facts
    if facts.num_heads is None:
        facts = replace(facts, num_heads=checkpoint.num_heads)
    elif checkpoint.num_heads not in (None, facts.num_heads):
        raise ValueError(
            f"the file has {checkpoint.num_heads} heads in its projections, not {facts.num_heads}"
        )
    alone = is_encoder_alone(checkpoint.state)
    read = encoder_from_published if alone else from_published
    model = read(checkpoint.state, facts, eps=JAX_EPS if checkpoint.from_jax else PORT_EPS)
    folder, config = save_model(model, out), model.config
    return FamilyConversion(
        folder=folder,
        family=checkpoint.family,
        facts={
            "size": f"width {config.dim}, {config.depth} layers,"
            f" {config.image_hw[0]} x {config.image_hw[1]} pixels in patches of"
            f" {config.patch_hw[0]} x {config.patch_hw[1]}, {config.channels} channels",
            "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
            "heads": f"{config.num_heads}" + _origin(checkpoint, facts),
            "classes": f"{model.head.out_features}, pool {model.pool}"
            if isinstance(model, CrateClassifier)
            else "none: an encoder alone",
            "lambda": f"{config.sparsity:g}, eta {config.step_size:g}",
        },
        passed_over=checkpoint.passed_over,
        sha256=weights_hash(folder),
    )


def write_published(weights: str | Path, file: str | Path) -> int:
    """How many tensors went into a new file with the published names of the model's family.

    An encoder alone goes into the wrapping of SimDINO's backbones, as a teacher in a `.pth` file.
    A segmentation decoder in a folder of its own goes out under DEPICT's names.
    `.safetensors` and `.pth`, or `.npz` of CRATE-alpha as JAX has it. Raises ValueError for another
    suffix and for a model that its family's code cannot express, and FileExistsError for a file
    that is there.
    """
    path = user_path(file)
    if path.suffix not in (".safetensors", ".pth", ".npz"):
        raise ValueError(f"{path} must end in .safetensors, .pth or .npz")
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; name another file")
    if is_decoder_folder(weights):
        return _write_decoder(weights, path)
    model = load_model(weights)
    alone = model.kind == CrateEncoder.kind
    if isinstance(model, CrateEncoder) and (alone or isinstance(model, CrateClassifier)):
        state = to_published(model)
        theirs = JAX_EPS if path.suffix == ".npz" else PORT_EPS
        if model.config.sparse_kind == "decoupled" and model.config.final_norm_eps != theirs:
            logger.warning(
                "the code that reads %s has %g as the last norm's epsilon, this model %g: its"
                " scores will differ by about as much",
                path, theirs, model.config.final_norm_eps,
            )  # fmt: skip
        _tell_unwritten(model, path)
    elif isinstance(model, CrateMAE):
        state = to_reference(model)
    else:
        raise ValueError(
            f"{weights} holds a {model.kind}, which no published file is: convert the masked"
            " autoencoder, the classifier or the encoder"
        )
    state = {key: value.contiguous() for key, value in state.items()}
    if path.suffix == ".npz" and alone:
        raise ValueError("JAX's files hold classifiers: name a .pth or .safetensors file")
    if alone:
        state = {f"backbone.{key}": value for key, value in state.items()}
    if path.suffix == ".npz" and layout_of_classifier(state) != "crate-alpha":
        raise ValueError("only CRATE-alpha has files of JAX: name a .pth or .safetensors file")
    with replacing(path) as fresh:
        if path.suffix == ".npz":
            with fresh.open("wb") as handle:  # savez would put a suffix behind another name
                arrays = to_jax(state, model.config.num_heads)
                np.savez(handle, allow_pickle=False, **arrays)
        elif path.suffix == ".pth":
            # CRATE-MAE's training script wraps its tensors, the classifiers' are bare.
            bare = model.kind == "CrateClassifier"
            wrapper = "teacher" if alone else "model"
            torch.save(state if bare else {wrapper: state}, fresh)
        else:
            write_safetensors(state, fresh)
    return len(state)


def _write_decoder(folder: str | Path, path: Path) -> int:
    """How many tensors went into a new file under DEPICT's names, wrapped as its files are."""
    if path.suffix == ".npz":
        raise ValueError("only CRATE-alpha has files of JAX: name a .pth or .safetensors file")
    state = {key: value.contiguous() for key, value in to_depict(load_decoder(folder)).items()}
    with replacing(path) as fresh:
        if path.suffix == ".pth":
            torch.save({"model": state}, fresh)
        else:
            write_safetensors(state, fresh)
    return len(state)


def _tell_unwritten(model: CrateEncoder, path: Path) -> None:
    """Warn of what CRATE's code has to be told, for its files do not hold it."""
    told = []
    if model.config.step_size != STEP_SIZE:
        told.append(f"ista={model.config.step_size:g}")
    if isinstance(model, CrateClassifier) and model.pool == "mean-all":
        told.append("pool='mean'")
    if told:
        logger.warning(
            "%s cannot hold %s: the code that reads it must be told", path, " and ".join(told)
        )


def _convert_decoder(checkpoint: Checkpoint, out: str | Path) -> FamilyConversion:
    decoder = from_depict(checkpoint.state)
    sizes = decoder.sizes
    folder = save_decoder(decoder, out)
    encoder = [key for key in checkpoint.state if key.startswith("encoder.")]
    return FamilyConversion(
        folder=folder,
        family="depict",
        facts={
            "size": f"{sizes['form']}-attention, width {sizes['dim']}, {sizes['num_layers']}"
            f" layers, {sizes['num_heads']} heads",
            "parameters": f"{sum(p.numel() for p in decoder.parameters()):,}",
            "classes": f"{sizes['num_classes']}",
        },
        passed_over=_counted(encoder, "tensors of an encoder, a ViT") + checkpoint.passed_over,
        sha256=file_hash(folder / TENSORS),
    )


def _origin(checkpoint: Checkpoint, facts: ClassifierFacts) -> str:
    if checkpoint.num_heads is not None:
        return " (by the shapes of its projections)"
    return " (as given)" if facts.num_heads is not None else " (of its published size)"


def _counted(names: list[str], what: str) -> list[str]:
    return [f"{len(names)} {what}"] if names else []


def _any(state: Mapping[str, Tensor], *parts: str) -> bool:
    return any(part in key for key in state for part in parts)


REFUSED: tuple[tuple[Callable[[Mapping[str, Tensor]], bool], str], ...] = (
    (
        lambda state: "blocks.0.attn.temp" in state,
        "this is a ToST model: its blocks have an MLP each and its class token enters by class"
        " attention, neither of which is white-box and part of this package. Its attention is:"
        " attention=tssa, to be trained",
    ),
    (
        lambda state: "transformer.h.0.attn.temp" in state,
        "this is a language model of ToST: its blocks have an MLP each, which is not white-box, and"
        " no model here takes text. Its attention is crate_mae.models.CausalTSSA",
    ),
    (
        lambda state: _any(state, "visual.transformer.resblocks."),
        "this is a CLIPA model with a text tower: only classifiers of CRATE-alpha are read",
    ),
    (
        lambda state: _any(state, "blocks.0.attn.qkv.weight", "blocks.0.0.attn.qkv.weight"),
        "this is a ViT (SimDINO's published backbones and DEPICT's encoders are ViTs), whose"
        " attention has three projections and whose layers have MLPs: none of it is a CRATE",
    ),
)
"""Families that are recognised and not read, and why."""
