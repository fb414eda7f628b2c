"""What to do when a number stops being finite: find where it began and say so."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crate_mae.models.backbone import Backbone

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
def locate_nonfinite(
    model: Backbone | nn.Module, images: Tensor, tensors: Iterable[tuple[str, Tensor]]
) -> str:
    """The name of the first tensor that is not finite on the way to the loss, or "not found".

    Looks at the input images, then the parameters, then `tensors`, names and values in the order of
    computation, in the model's own precision. None of them is computed beyond the first.
    """
    if _bad(images):
        return "input images"
    for name, parameter in model.named_parameters():
        if _bad(parameter):
            return f"parameter {name}"
    return next((name for name, tensor in tensors if _bad(tensor)), "not found")


def _bad(tensor: Tensor) -> bool:
    return not bool(torch.isfinite(tensor).all())


def locate_nonfinite_gradient(model: Backbone | nn.Module) -> str:
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
