"""Compression without the approximation: the gradient of the coding rate R^c itself.

Shapes: B images, N tokens, d token width, K heads (subspaces), p = d / K. Tokens are rows.
Source of the rate and its gradient: "White-Box Transformers via Sparse Rate Reduction" (NeurIPS
2023, arXiv 2306.01129), which goes on to approximate it by MSSA.
"""

import torch
from torch import Tensor, nn

from crate_mae.models.initial_values import init_linear
from crate_mae.models.mssa import Attention


class ExactCompression(Attention):
    """A gradient step on R^c(Z | U), as it stands and not approximated by attention.

        Exact(x) = - sum_k (I + a w_k w_k^T)^-1 w_k U_k^T,    w_k = x U_k,   a = p / (N eps^2)

    which is -dR^c/dx / a: a layer with step c adds c Exact(x), so that c = kappa a for a gradient
    step of size kappa, as in the derivation of MSSA. It returns by U itself, so there is no W. What
    a token takes from another, -(I + a w_k w_k^T)^-1, is no weight: it has either sign, and rows do
    not sum to 1.
    """

    maps = None
    no_maps = (
        "attention exact has no attention maps: a gradient step mixes tokens by"
        " (I + a w w^T)^-1, whose entries have either sign and whose rows do not sum to 1"
    )
    returns_direction = True

    def __init__(self, *, dim: int, num_heads: int, eps_squared: float) -> None:
        super().__init__()
        self.num_heads, self.eps_squared = num_heads, eps_squared
        self.tied, self.output = True, None
        self.subspaces = nn.Linear(dim, dim, bias=False)  # U
        init_linear(self.subspaces)

    def attention(self, x: Tensor) -> Tensor:
        """Raise ValueError: the operator mixes tokens by no weights."""
        raise ValueError(self.no_maps)

    def forward(self, x: Tensor) -> Tensor:
        """The step -dR^c/dx / a for tokens x (B, N, d): (B, N, d)."""
        heads = contracted(self.project(x), self.eps_squared)
        return -self.recombine(heads.transpose(1, 2).flatten(-2))


def contracted(w: Tensor, eps_squared: float) -> Tensor:
    """(I + a w w^T)^-1 w with a = p / (N eps^2), for coordinates w (B, K, N, p): (B, K, N, p).

    The smaller of the two systems is solved: it equals w (I + a w^T w)^-1. Half precision, which no
    solver takes, is widened to float32.
    """
    half = w.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(w.device.type, enabled=False):
        wide = w.float() if half else w
        tokens, p = w.shape[-2:]
        a = p / (tokens * eps_squared)
        if p <= tokens:
            found = wide @ _inverse(wide.mT @ wide, a)
        else:
            found = _inverse(wide @ wide.mT, a) @ wide
        return found.to(w.dtype)


def _inverse(gram: Tensor, a: float) -> Tensor:
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.inv(identity + a * gram)
    return inverse
