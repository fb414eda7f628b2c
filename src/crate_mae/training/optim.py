"""Parameter groups and schedules: pure functions of names and numbers."""

import math
from typing import Any

from torch import Tensor, nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: `weight_decay` on matrices and patch filters, none on the rest.

    Norms, biases and the class and mask tokens are not decayed (MAE, appendix A.1). Parameters
    that do not train are left out.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_token = name.rsplit(".", 1)[-1] in ("class_token", "mask_token")
            (free if parameter.ndim < 2 or is_token else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, *, total: int, warmup: int, final: float = 0.0) -> float:
    """The share of the peak learning rate at optimiser step `step` (from 0) of `total`.

    Linear from 1/warmup to 1 over the first `warmup` steps, then half a cosine down to `final`,
    reached at step `total`.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
