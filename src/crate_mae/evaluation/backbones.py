"""The models that can be measured, and the tokens after any of their encoder layers.

Layers are counted by how many of them the tokens have passed: 0 is what enters the first layer
(patches embedded, class token and positions in place), the depth is what leaves the last. None is
what `encode` returns: after the last layer and the final norm, which no number includes.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.vitmae.classifier import ViTClassifier, load_vit_classifier, vit_classifier_folder
from crate_mae.vitmae.model import ViTMAE
from crate_mae.vitmae.vitmae_folder import load_vitmae, vitmae_folder, vitmae_hash
from crate_mae.weights.weights_folder import load_autoencoder, load_model, weights_hash

Backbone = CrateMAE | CrateClassifier | ViTMAE | ViTClassifier
Layers = Sequence[int | None] | Literal["all"]


def load_backbone(name: str | Path) -> tuple[Backbone, str]:
    """(model, SHA-256 of its tensor file) of a weights folder, ours or a ViT-MAE of transformers.

    Also takes run folders and, for our own models, Hub repositories. Raises what `load_model`,
    `load_vitmae` and `load_vit_classifier` raise.
    """
    folder = vit_classifier_folder(name)
    if folder is not None:
        return load_vit_classifier(folder), vitmae_hash(folder)
    folder = vitmae_folder(name)
    if folder is not None:
        return load_vitmae(folder), vitmae_hash(folder)
    return load_model(name), weights_hash(name)


def load_completer(name: str | Path) -> CrateMAE | ViTMAE:
    """The masked autoencoder, ours or a ViT-MAE, of a weights folder; as `load_backbone`.

    Raises ValueError when it holds a classifier.
    """
    return load_autoencoder(name) if vitmae_folder(name) is None else load_vitmae(name)


def depth_of(model: Backbone) -> int:
    """Number of encoder layers."""
    return model.config.depth


def checked_layers(model: Backbone, layers: Layers) -> list[int | None]:
    """The asked layers, each once, in order, None last; -1 also means None, "all" every one.

    Raises ValueError for a layer that the model does not have.
    """
    depth = depth_of(model)
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


def layer_tokens(
    model: Backbone, images: Tensor, layers: Sequence[int | None] = (None,)
) -> dict[int | None, Tensor]:
    """Tokens (B, 1 + L, d) of images (B, C, H, W) after each of `layers`, in one pass.

    Nothing is masked, nothing is random, patches are in raster order. The layers must exist.
    """
    if isinstance(model, ViTMAE | ViTClassifier):
        twin = model if isinstance(model, ViTMAE) else model.twin
        return twin.layer_tokens(images, layers)
    if set(layers) == {None}:
        return {None: model.encode(images)}
    encoder = model.encoder
    states: dict[int | None, Tensor] = {}
    tokens = encoder.embed(images)
    for passed, layer in enumerate(encoder.layers):
        if passed in layers:
            states[passed] = tokens
        tokens = layer(tokens)
    states[model.config.depth] = tokens
    if None in layers:
        states[None] = encoder.norm(tokens)
    return {layer: states[layer] for layer in layers}


def random_twin(model: Backbone, seed: int) -> Backbone:
    """An untrained model of the same kind, configuration, preprocessing and device."""
    if isinstance(model, ViTMAE | ViTClassifier):
        trained = model if isinstance(model, ViTMAE) else model.twin
        twin: Backbone = trained.untrained(seed)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(model, CrateClassifier):
                twin = CrateClassifier(
                    model.config,
                    num_classes=model.head.out_features,
                    pool=model.pool,
                    class_names=model.class_names,
                )
            else:
                twin = CrateMAE(model.config)
        twin.preprocess = model.preprocess
    return twin.to(next(model.parameters()).device)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode; each module's own flag is restored after it."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
