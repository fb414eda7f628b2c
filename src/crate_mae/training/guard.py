"""What to do when a number stops being finite: find where it began and say so."""

from typing import Any

import torch
from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE
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

    def bad(tensor: Tensor) -> bool:
        return not bool(torch.isfinite(tensor).all())

    if bad(images):
        return "input images"
    for name, parameter in model.named_parameters():
        if bad(parameter):
            return f"parameter {name}"
    tokens = model.embed_masked(images, mask)
    if bad(tokens):
        return "patch embedding"
    for index, layer in enumerate(model.encoder.layers):
        for step in ("compress", "sparsify"):
            tokens = getattr(layer, step)(tokens)
            if bad(tokens):
                return f"encoder layer {index}, {step}"
    tokens = model.encoder.norm(tokens)
    grid = grid_of(images, model.config.patch_hw)
    tokens = model.decoder_input(tokens, mask, grid)
    for index, decoder_layer in enumerate(model.decoder):
        for step in ("expand", "decompress"):
            tokens = getattr(decoder_layer, step)(tokens)
            if bad(tokens):
                return f"decoder layer {index}, {step}"
    prediction = model.prediction(model.decoder_norm(tokens))[:, 1:]
    if bad(prediction):
        return "prediction"
    if bad(model.target(images)):
        return "target"
    return "loss" if bad(model.loss(images, prediction, mask)) else "not found"


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
