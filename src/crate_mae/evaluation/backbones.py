"""Every kind of model that can be loaded and measured: one table, one loader.

A new family is a class with the members of `Backbone` and a row in `KINDS`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from crate_mae.common.files import file_hash
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.backbone import Backbone, ImageClassifier, MaskedAutoencoder
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import ModelConfig, Preprocess, size_fault
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.depict import CrateSegmenter, HeadName, segmentation_head
from crate_mae.models.encoder import Encoder
from crate_mae.models.mask_classes import MaskClasses
from crate_mae.vitmae.classifier import ViTClassifier, load_vit_classifier, save_vit_classifier
from crate_mae.vitmae.encoder import ViTEncoder, load_vit_encoder, save_vit_encoder
from crate_mae.vitmae.model import Match, ViTMAE, build_vitmae, vitmae_config
from crate_mae.vitmae.vitmae_folder import load_vitmae, save_vitmae
from crate_mae.weights.info import describe_model
from crate_mae.weights.shipped import TENSORS
from crate_mae.weights.tensors import check_finite
from crate_mae.weights.weights_folder import (
    find_weights,
    kind_of,
    load_crate,
    save_model,
    without_decoder,
)

Layers = Sequence[int | None] | Literal["all"]
"""Numbers of encoder layers passed, None for the features as `encode` gives them; or all."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of model: how its weights folder is read and written, and what it can do."""

    load: Callable[[Path, dict[str, Any]], Backbone]
    """The model, in eval mode, of a folder and what its `config.json` holds."""
    save: Callable[..., Path]
    """As `save_model`: (model, folder, *, overwrite, state)."""
    role: Literal["autoencoder", "encoder", "classifier", "segmenter"]


KINDS: dict[str, Kind] = {
    CrateMAE.kind: Kind(load=load_crate, save=save_model, role="autoencoder"),
    CrateEncoder.kind: Kind(load=load_crate, save=save_model, role="encoder"),
    CrateClassifier.kind: Kind(load=load_crate, save=save_model, role="classifier"),
    CrateSegmenter.kind: Kind(load=load_crate, save=save_model, role="segmenter"),
    ViTMAE.kind: Kind(load=load_vitmae, save=save_vitmae, role="autoencoder"),
    ViTEncoder.kind: Kind(load=load_vit_encoder, save=save_vit_encoder, role="encoder"),
    ViTClassifier.kind: Kind(load=load_vit_classifier, save=save_vit_classifier, role="classifier"),
}
"""By the name that `config.json` gives: `model_type`, as in transformers, or else `model`."""


def load_backbone(
    name: str | Path, *, revision: str | None = None, finite: bool = True
) -> tuple[Backbone, str]:
    """(model in eval mode, SHA-256 of its tensor file) of weights of any kind.

    Takes a weights folder, a run folder, a shipped model or a Hub repository, as `find_weights`;
    `config.json` is read once. Raises FileNotFoundError, ValueError for a kind that is not known
    and for damaged files, IncompleteWeightsError when tensors are missing or do not fit, and
    ValueError for weights that are not finite unless `finite` is off.
    """
    folder, described = find_weights(name, revision=revision)
    kind = kind_of(described)
    if kind not in KINDS:
        raise ValueError(f"{folder} holds a model of kind {kind!r}; known are {', '.join(KINDS)}")
    model = KINDS[kind].load(folder, described)
    if finite:
        check_finite(model.named_parameters(), origin=str(folder / TENSORS))
    return model, file_hash(folder / TENSORS)


def describe_weights(name: str | Path) -> dict[str, Any]:
    """Kind, configuration, preprocessing, parameter counts by part and hash; JSON-able.

    Raises what `load_backbone` raises: the weights are loaded, so an answer means that they are
    whole. Whether they are finite is one of the facts.
    """
    model, sha256 = load_backbone(name, finite=False)
    return describe_model(model, folder=find_weights(name)[0], sha256=sha256)


def load_masked_autoencoder(name: str | Path) -> MaskedAutoencoder:
    """The masked autoencoder of any family that weights hold; as `load_backbone`.

    Raises ValueError when they hold a classifier or an encoder alone.
    """
    model, _ = load_backbone(name)
    if KINDS[model.kind].role != "autoencoder":
        raise ValueError(without_decoder(name, model.kind))
    return cast("MaskedAutoencoder", model)


def save_backbone(
    model: Backbone,
    folder: str | Path,
    *,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder, now holding what `load_backbone` reads back; as `save_model`."""
    return KINDS[model.kind].save(model, folder, overwrite=overwrite, state=state)


def as_classifier(model: Backbone | None) -> ImageClassifier | None:
    """The model where it is a classifier, None where it is none or there is none."""
    is_classifier = model is not None and KINDS[model.kind].role == "classifier"
    return cast("ImageClassifier", model) if is_classifier else None


def as_segmenter(model: Any) -> CrateSegmenter | None:
    """The model where it tells classes of pixels, None where it does not or there is none."""
    is_segmenter = model is not None and KINDS[model.kind].role == "segmenter"
    return cast("CrateSegmenter", model) if is_segmenter else None


def build_autoencoder(
    config: ModelConfig, *, vitmae: Match | None = None, seed: int
) -> MaskedAutoencoder:
    """A masked autoencoder with fresh weights, to train: a CRATE-MAE, or its ViT-MAE baseline.

    A CRATE-MAE draws from torch's global generator, as training seeds it; a ViT-MAE from `seed`.
    """
    if vitmae is None:
        return CrateMAE(config)
    prepared = Preprocess.identity(config)
    return build_vitmae(vitmae_config(config, vitmae), preprocess=prepared, seed=seed).train()


def build_encoder(
    config: ModelConfig, *, vitmae: Match | None = None, seed: int
) -> CrateEncoder | ViTEncoder:
    """An encoder with fresh weights, to train: a CRATE encoder, or a ViT of the same sizes.

    The random numbers are drawn as `build_autoencoder` says.
    """
    encoder = CrateEncoder(config) if vitmae is None else ViTEncoder(config, vitmae, seed=seed)
    return encoder.train()


def build_classifier(
    config: ModelConfig,
    *,
    origin: Backbone | None = None,
    vitmae: Match | None = None,
    seed: int,
    **head: Any,
) -> ImageClassifier:
    """A classifier on a copy of the encoder of `origin`, or from fresh weights, in training mode.

    `head` is `num_classes`, `pool`, `class_names`; the head is always a new one. Raises ValueError
    for an origin of a family without classifiers.
    """
    if origin is not None and origin.kind not in _CLASSIFIER_OF:
        raise ValueError(f"there is no classifier on a model of kind {origin.kind!r}")
    if origin is not None:
        classifier: ImageClassifier = _CLASSIFIER_OF[origin.kind](origin, **head)
    elif vitmae is not None:
        classifier = ViTClassifier(config, vitmae, seed=seed, **head)
    else:
        classifier = CrateClassifier(config, **head)
    cast("nn.Module", classifier).train()
    return classifier


def build_segmenter(
    config: ModelConfig, *, origin: Backbone | None = None, head: HeadName, classes: MaskClasses
) -> CrateSegmenter:
    """A segmenter on a copy of the encoder of `origin`, or from fresh weights, in training mode.

    The head is always a new one; both draw from torch's global generator. Raises ValueError for an
    origin that has no CRATE encoder.
    """
    if origin is None:
        encoder = Encoder(config)
        decoder = segmentation_head(head, dim=config.dim, num_classes=len(classes.values))
        return CrateSegmenter(encoder, decoder, classes=classes).train()
    if not isinstance(origin, CrateMAE | CrateEncoder):
        raise ValueError(
            "a segmentation head is trained on a CRATE encoder, and these weights hold a model of"
            f" kind {origin.kind!r}"
        )
    return CrateSegmenter.from_pretrained(origin, head=head, classes=classes).train()


_CLASSIFIER_OF: dict[str, Callable[..., ImageClassifier]] = {
    CrateMAE.kind: CrateClassifier.from_pretrained,
    CrateEncoder.kind: CrateClassifier.from_pretrained,
    CrateClassifier.kind: CrateClassifier.from_pretrained,
    CrateSegmenter.kind: CrateClassifier.from_pretrained,
    ViTMAE.kind: ViTClassifier.from_pretrained,
    ViTEncoder.kind: ViTClassifier.from_pretrained,
    ViTClassifier.kind: ViTClassifier.from_pretrained,
}


def checked_layers(model: Backbone, layers: Layers) -> list[int | None]:
    """The asked layers, each once, in order, None last; -1 also means None, "all" every one.

    Raises ValueError for a layer that the model does not have.
    """
    depth = model.config.depth
    if layers == "all":
        return [*range(depth + 1), None]
    asked = [None if layer == -1 else layer for layer in layers]
    wrong = [layer for layer in asked if layer is not None and not 0 <= layer <= depth]
    if wrong or not asked:
        raise ValueError(
            f"layers {wrong} do not exist: this model has 0 (before the first) to {depth} (after"
            " the last), and the default, after the final norm"
            if wrong
            else "no layer was asked for"
        )
    numbers: list[int | None] = [*sorted({layer for layer in asked if layer is not None})]
    return [*numbers, None] if None in asked else numbers


def at_size(model: Backbone, size: tuple[int, int] | None) -> Backbone:
    """The model, whose images are brought to `size` (height, width) from now on; None: its own.

    Raises ValueError for a size that its patches do not divide, and for another than its own where
    a family takes no other.
    """
    if size is None or size == model.preprocess.size:
        return model
    fault = size_fault(size, model.config.patch_hw)
    if fault:
        raise ValueError(fault)
    if model.match is not None:
        height, width = model.preprocess.size
        raise ValueError(f"a ViT-MAE takes images of its own size, {height}x{width}, only")
    model.preprocess = replace(model.preprocess, size=size)
    return model


def random_baseline(model: Backbone, seed: int) -> Backbone:
    """The same model with fresh weights and the same preprocessing, on the same device."""
    fresh = model.untrained(seed)
    fresh.preprocess = model.preprocess
    fresh.to(next(model.parameters()).device)
    return fresh


@contextlib.contextmanager
def evaluating(model: Backbone | nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode; each module's own flag is restored after it."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
