"""Parameter groups and schedules: pure functions of names and numbers."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

NOT_DECAYED = (
    "class_token", "mask_token", "cls_token", "positions", "temperature", "offsets", "classes",
)  # fmt: skip
"""Names of parameters of two dimensions or more that are no matrices: tokens, in our models and in
those of transformers, learned positions, ToST's temperatures, DEPICT's class embeddings."""


def can_fuse(device_type: str, precision: str) -> bool:
    """Whether AdamW runs as one kernel over each parameter, on a device such as "cpu".

    Not beside a loss scaler: it would leave the gradients scaled until inside the step, and they
    are clipped before.
    """
    return device_type in ("cpu", "cuda") and precision != "16-mixed"


def decayed_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that weight decay acts on: matrices and patch filters.

    Not norms, biases, class and mask tokens (MAE, appendix A.1), nor positions. To be asked before
    a sharded strategy wraps the model, because sharded parameters lose their shape.
    """
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and name.rsplit(".", 1)[-1] not in NOT_DECAYED
    )


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decayed_by_name: frozenset[str],
    *,
    learning_rate: float,
    share_of: Callable[[str], float] = lambda _: 1.0,
) -> list[dict[str, Any]]:
    """AdamW groups: `weight_decay` on the named parameters, none on the rest.

    Each group's own `lr` is `learning_rate` times the share of its parameters' names, so that any
    schedule that multiplies it keeps the shares; the groups with the highest come first. Parameters
    that do not train are left out.
    """
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.replace("_fsdp_wrapped_module.", "")
            groups.setdefault((share_of(plain), plain in decayed_by_name), []).append(parameter)
    return [
        {
            "params": groups[share, decayed],
            "lr": learning_rate * share,
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for share, decayed in sorted(groups, reverse=True)
    ]


def layer_decay_share(name: str, *, decay: float, depth: int) -> float:
    """decay^(depth + 1 - layer), a classifier's learning rate share for a parameter's name.

    Layer 0 is the embedding (patch filters and class token), 1 to `depth` are the encoder layers,
    depth + 1 the final norm and the head. Source: BEiT and MAE (appendix A.1). Raises ValueError
    for a name that is no classifier's.
    """
    match name.replace("vitmae.model.vit.", "encoder.").split("."):  # of a ViT-MAE
        case ["encoder", "patch_embed" | "class_token" | "positions" | "embeddings", *_]:
            layer = 0
        case ["encoder", "layers", index, *_]:
            layer = int(index) + 1
        case ["encoder", "norm" | "layernorm", *_] | ["head", *_]:
            layer = depth + 1
        case _:
            raise ValueError(f"{name} is no parameter of a classifier")
    return decay ** (depth + 1 - layer)


def warmup_cosine(step: int, *, total: int, warmup: int, final: float = 0.0) -> float:
    """The share of the peak learning rate at optimiser step `step` (from 0) of `total`.

    Linear from 1/warmup to 1 over the first `warmup` steps, then half a cosine down to `final`,
    reached at step `total`.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def teacher_momentum(step: int, *, total: int, start: float, end: float = 1.0) -> float:
    """The share of itself that a teacher keeps at optimiser step `step` (from 0) of `total`.

    Half a cosine from `start` to `end`, reached at step `total`. Source: DINO, as BYOL.
    """
    progress = min(1.0, step / max(1, total))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
