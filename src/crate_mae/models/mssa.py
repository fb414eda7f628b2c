"""Attention operators: the interface, and MSSA, the published one.

Shapes: B images, N tokens (class token first), d token width, K heads (subspaces), p = d / K.
Tokens are rows: x is (B, N, d). Source: "Masked Completion via Structured Diffusion with White-Box
Transformers" (ICLR 2024, arXiv 2404.02446); docs/model.md lists every equation with its file and
line.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.config import OutputProjection
from crate_mae.models.constraints import make_orthogonal
from crate_mae.models.initial_values import init_linear

Maps = Literal["attention", "membership"]
"""What a head can show of its tokens: weights (N, N) between them, or one weight (N) for each."""


class Attention(nn.Module):
    """What a layer compresses tokens with: an operator on normalised tokens that a layer is given.

    A subclass has heads with coordinates of their own, and gives what the tokens move by or toward.
    """

    maps: ClassVar[Maps | None] = "attention"
    """Which of `attention` and `membership` it has; the other one raises ValueError."""
    no_maps: ClassVar[str] = "this attention has no maps of its tokens"
    """Why there is neither, where there is none."""
    returns_direction: ClassVar[bool] = False
    """Whether it returns the step itself, and not the point that a step of size c goes toward."""
    num_heads: int
    """K."""
    tied: bool
    """Whether the output map is the transpose of U."""
    subspaces: nn.Linear
    """U, the subspaces U_k side by side: w = x U."""
    output: nn.Linear | None
    """W, the learned output map; None where there is none."""
    orthonormal: bool = False
    """Whether training keeps U orthogonal."""

    def constrain(self, *, frozen: bool = False) -> None:
        """Put U back to where training is to keep it: to an orthogonal one, if to any.

        One that does not train is left alone, unless `frozen` is set.
        """
        U = self.subspaces.weight
        if self.orthonormal and (frozen or U.requires_grad):
            make_orthogonal(U)

    def project(self, x: Tensor) -> Tensor:
        """The coordinates w_k of tokens x (B, N, d) in every head: (B, K, N, p)."""
        w: Tensor = self.subspaces(x)
        return w.view(*w.shape[:2], self.num_heads, -1).transpose(1, 2)

    def recombine(self, tokens: Tensor) -> Tensor:
        """The direction (B, N, d) that the subspaces' coordinates side by side (B, N, d) mean.

        By U^T where the output map is tied, else by W, else the coordinates themselves.
        """
        if self.tied:
            return F.linear(tokens, self.subspaces.weight.mT)
        return tokens if self.output is None else self.output(tokens)

    def attention(self, x: Tensor) -> Tensor:
        """How much each token attends to each other one, for tokens x (B, N, d): (B, K, N, N).

        Raises ValueError for an operator without such weights.
        """
        raise ValueError(f"{type(self).__name__} has no N x N attention maps")

    def membership(self, x: Tensor) -> Tensor:
        """How much each token belongs to each head, for tokens x (B, N, d): (B, K, N), sum over K.

        Raises ValueError for an operator without memberships.
        """
        raise ValueError(f"{type(self).__name__} has no memberships of tokens in heads")

    def forward(self, x: Tensor) -> Tensor:
        """The compression direction for tokens x (B, N, d): (B, N, d)."""
        raise NotImplementedError


class MSSA(Attention):
    """Multi-head subspace self-attention: one approximate gradient step on the coding rate R^c.

        MSSA(x) = W( concat_k softmax(w_k w_k^T / sqrt(p)) w_k ),    w_k = x U_k

    Query, key and value are the same projection, so a head needs one matrix where a transformer
    has three. `output_projection="free"` learns W with a bias (published code; with a single head
    there is no W), "free-no-bias" without one (CRATE-alpha), "tied" uses the transpose of U (paper,
    up to the scale p / (N eps^2)).
    """

    def __init__(self, *, dim: int, num_heads: int, output_projection: OutputProjection) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.tied = output_projection == "tied"
        self.subspaces = nn.Linear(dim, dim, bias=False)  # U
        has_output = not self.tied and num_heads > 1
        bias = output_projection == "free"
        self.output = nn.Linear(dim, dim, bias=bias) if has_output else None  # W
        for linear in (self.subspaces, self.output):
            if linear is not None:
                init_linear(linear)

    def attention(self, x: Tensor) -> Tensor:
        """The weights softmax(w_k w_k^T / sqrt(p)) for tokens x (B, N, d): (B, K, N, N)."""
        w = self.project(x)
        return (w @ w.mT / math.sqrt(w.shape[-1])).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """The compression direction for tokens x (B, N, d): (B, N, d). No N x N tensor is made."""
        return self.recombine(self.attend(self.project(x)).transpose(1, 2).flatten(-2))

    def attend(self, w: Tensor) -> Tensor:
        """What the tokens' coordinates w (B, K, N, p) become in each subspace: (B, K, N, p)."""
        return attend(w)


def attend(w: Tensor) -> Tensor:
    """softmax(w w^T / sqrt(p)) w for subspace coordinates w (B, K, N, p): (B, K, N, p).

    Half precision is widened on CPUs, where the fused kernel's backward pass is slower in it.
    """
    if w.device.type != "cpu" or w.dtype not in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(w, w, w)
    with torch.autocast("cpu", enabled=False):
        wide = w.float()
        return F.scaled_dot_product_attention(wide, wide, wide).to(w.dtype)
