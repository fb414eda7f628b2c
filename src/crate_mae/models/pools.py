"""Pools: what is kept of an image's tokens as one row of features.

Tokens are (B, 1 + L, d), the class token first.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from crate_mae.models.config import ModelConfig

Pool = Literal["cls", "mean", "mean-all", "mean-std", "layers"]
"""What the head of a classifier can see: see `pooled`."""
WIDE = ("mean-std", "layers")
"""Those that hold more values than a token."""
SIDE_BY_SIDE = 4
"""Places whose tokens the pool "layers" describes, at most."""


def places_of(pool: str, layer: int | None, depth: int) -> tuple[int | None, ...]:
    """After how many encoder layers the tokens are taken that a pool describes.

    The `layer` itself, 0 to `depth`, or None, after all of them and the final norm. For "layers"
    the last `SIDE_BY_SIDE` of 1 to `layer` or, for None, of 1 to `depth` and None, in that order.
    Patches that were only embedded (0) are described for `layer` 0 alone.
    """
    if pool != "layers" or layer == 0:
        return (layer,)
    last = depth if layer is None else layer
    every = [*range(1, last + 1), *([None] if layer is None else [])]
    return tuple(every[-SIDE_BY_SIDE:])


def pooled(states: Sequence[Tensor], pool: str) -> Tensor:
    """Rows of tokens (B, 1 + L, d) of the `places_of` a pool, one of them but for "layers".

    "cls" is the class token (B, d), "mean" that of the patch tokens, "mean-all" that of all tokens
    (CRATE), "both" the first two side by side (B, 2 d). "mean-std" (B, 2 d) is the mean of the
    patch tokens, then their standard deviation; "layers" is that of every place (B, places * 2 d).
    "tokens" gives them all, as they are. Raises ValueError for another name.
    """
    if pool == "layers":
        return torch.cat([pooled([tokens], "mean-std") for tokens in states], dim=1)
    (tokens,) = states
    if pool == "both":
        return torch.cat([pool_tokens(tokens, "cls"), pool_tokens(tokens, "mean")], dim=1)
    if pool == "mean-std":
        # Of the patches that are there, not an estimate: one patch has 0.
        std, mean = torch.std_mean(tokens[:, 1:], dim=1, correction=0)
        return torch.cat([mean, std], dim=1)
    return pool_tokens(tokens, pool)


def pool_tokens(tokens: Tensor, pool: str) -> Tensor:
    """Pooled tokens of (B, 1 + L, d): "cls", "mean" of patches, "mean-all", or all "tokens".

    All but the last give (B, d); "mean-all" has the class token in the mean (CRATE).

    Raises ValueError for another name.
    """
    if pool == "cls":
        return tokens[:, 0]
    if pool == "mean":
        return tokens[:, 1:].mean(dim=1)
    if pool == "mean-all":
        return tokens.mean(dim=1)
    if pool == "tokens":
        return tokens
    raise ValueError(f"pool must be cls, mean, mean-all or tokens, not {pool!r}")


def head_width(pool: str, config: ModelConfig, *, width: int | None = None) -> int:
    """Values of a row that a classifier's head sees, for tokens of `width` (those of `config`).

    Raises ValueError for an unknown pool, and for one that holds more than a token does where the
    final norm stands behind the pool, which is made for one token.
    """
    if pool not in get_args(Pool):
        raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, not {pool!r}")
    tokens = config.dim if width is None else width
    if pool not in WIDE:
        return tokens
    if config.head_norm == "pooled":
        raise ValueError(
            f"pool {pool!r} is wider than a token, and with head_norm 'pooled' the final norm acts"
            " on what was pooled: choose cls, mean or mean-all"
        )
    return tokens * 2 * len(places_of(pool, None, config.depth))
