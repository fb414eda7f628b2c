"""What to do when a number stops being finite: find where it began and say so."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier, pool_tokens
from crate_mae.models.patches import grid_of

ADVICE = (
    "lower optim.base_lr, lengthen optim.warmup_epochs, lower optim.clip, or use"
    " trainer.precision=32-true"
)


class NonFiniteError(RuntimeError):
    """Raised on every rank when loss or gradients are not finite; `report` is JSON-able."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        samples = report["samples"]
        shown = ", ".join(samples[:5]) + (f" and {len(samples) - 5} more" if samples[5:] else "")
        super().__init__(
            f"{report['what']} is not finite at step {report['step']} (epoch {report['epoch']},"
            f" seed {report['seed']}).\n  began in: {report['began_in']}\n  samples: {shown}\n"
            f"  last good checkpoint: {report['checkpoint'] or 'none yet'}\n  what to try: {ADVICE}"
        )


@torch.no_grad()
def locate_nonfinite(model: CrateMAE, images: Tensor, mask: Tensor) -> str:
    """The name of the first tensor that is not finite on the way to the loss, or "not found".

    Looks at the input, then the parameters, then every half step in the order of computation,
    in the model's own precision.
    """

    tokens, where = _walk_encoder(model, images, lambda: model.embed_masked(images, mask))
    if where is not None:
        return where
    grid = grid_of(images, model.config.patch_hw)
    tokens = model.decoder_input(tokens, mask, grid)
    for index, decoder_layer in enumerate(model.decoder):
        for step in ("expand", "decompress"):
            tokens = getattr(decoder_layer, step)(tokens)
            if _bad(tokens):
                return f"decoder layer {index}, {step}"
    prediction = model.prediction(model.decoder_norm(tokens))[:, 1:]
    if _bad(prediction):
        return "prediction"
    if _bad(model.target(images)):
        return "target"
    return "loss" if _bad(model.loss(images, prediction, mask)) else "not found"


@torch.no_grad()
def locate_nonfinite_scores(model: CrateClassifier, images: Tensor) -> str:
    """As `locate_nonfinite`, for a classifier: "loss" when its scores are still finite."""
    tokens, where = _walk_encoder(model, images, lambda: model.encoder.embed(images))
    if where is not None:
        return where
    return "scores" if _bad(model.head(pool_tokens(tokens, model.pool))) else "loss"


def _bad(tensor: Tensor) -> bool:
    return not bool(torch.isfinite(tensor).all())


def _walk_encoder(
    model: CrateMAE | CrateClassifier, images: Tensor, embed: Callable[[], Tensor]
) -> tuple[Tensor, str | None]:
    """The encoder's normalised tokens (B, N, d), and where on the way there something broke."""
    if _bad(images):
        return images, "input images"
    for name, parameter in model.named_parameters():
        if _bad(parameter):
            return images, f"parameter {name}"
    tokens = embed()
    if _bad(tokens):
        return tokens, "patch embedding"
    for index, layer in enumerate(model.encoder.layers):
        for step in ("compress", "sparsify"):
            tokens = getattr(layer, step)(tokens)
            if _bad(tokens):
                return tokens, f"encoder layer {index}, {step}"
    return model.encoder.norm(tokens), None


def locate_nonfinite_gradient(model: nn.Module) -> str:
    """The parameters whose gradients are not finite, the last ones in the backward pass first."""
    named = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    if not named:
        return "not found"
    more = f" and {len(named) - 3} more" if named[3:] else ""
    return "gradient of " + ", ".join(reversed(named[-3:])) + more
