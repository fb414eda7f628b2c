"""Parameter groups and schedules: pure functions of names and numbers."""

import math
from typing import Any

from torch import Tensor, nn


def decayed_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that weight decay acts on: matrices and patch filters.

    Not norms, biases, class and mask tokens (MAE, appendix A.1). To be asked before a sharded
    strategy wraps the model, because sharded parameters lose their shape.
    """
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in ("class_token", "mask_token")
    )


def parameter_groups(
    model: nn.Module, weight_decay: float, decayed_by_name: frozenset[str]
) -> list[dict[str, Any]]:
    """AdamW groups: `weight_decay` on the named parameters, none on the rest.

    Parameters that do not train are left out.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.replace("_fsdp_wrapped_module.", "")
            (decayed if plain in decayed_by_name else free).append(parameter)
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
