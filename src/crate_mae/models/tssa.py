"""Token statistics self-attention (ToST): compression in time linear in the number of tokens.

Shapes: B images, N tokens, d token width, K heads (subspaces), p = d / K. Tokens are rows.
Source: "Token Statistics Transformer: Linear-Time Attention via Variational Rate Reduction" (ICLR
2025, arXiv 2412.17810), as its authors' code computes it; docs/family.md says where paper and code
differ.
"""

import torch
from torch import Tensor, nn

from crate_mae.models.config import OutputProjection
from crate_mae.models.initial_values import init_linear
from crate_mae.models.mssa import Attention

FLOOR = 1e-12
"""The least column norm (vision), or sum of squares so far (causal), that is divided by."""
MEMBERS = 1e-8
"""Added to the sum of memberships before it is divided by."""


class TokenStatistics(Attention):
    """What both forms share: U, W, a temperature a head, and memberships in place of maps."""

    maps = "membership"
    returns_direction = True

    def __init__(
        self, *, dim: int, num_heads: int, output_projection: OutputProjection, bias: bool
    ) -> None:
        super().__init__()
        if num_heads < 2:
            raise ValueError(
                "tssa needs two heads or more: every token's membership in a single one is 1"
            )
        self.num_heads = num_heads
        self.tied = output_projection == "tied"
        self.subspaces = nn.Linear(dim, dim, bias=bias)  # U
        self.temperature = nn.Parameter(torch.ones(num_heads, 1))
        with_bias = output_projection == "free"
        self.output = None if self.tied else nn.Linear(dim, dim, bias=with_bias)  # W
        for linear in (self.subspaces, self.output):
            if linear is not None:
                init_linear(linear)

    def attention(self, x: Tensor) -> Tensor:
        """Raise ValueError: no N x N weights exist."""
        raise ValueError(
            "attention tssa makes no N x N attention maps: no token looks at another one, each"
            " belongs to heads. Ask for its membership (B, K, N)"
        )

    def membership(self, x: Tensor) -> Tensor:
        """The memberships Pi of tokens x (B, N, d) in heads: (B, K, N), 1 in sum over K."""
        squares, _ = self._squares(x)
        return self.shares_of(squares)

    def forward(self, x: Tensor) -> Tensor:
        """The compression step for tokens x (B, N, d): (B, N, d); its sign is inside."""
        squares, w = self._squares(x)
        shares = self.shares_of(squares)[..., None]
        heads = -(w * shares) / (1 + self.moments_of(squares, shares))
        return self.recombine(heads.to(x.dtype).transpose(1, 2).flatten(-2))

    def _squares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squares of the coordinates, and the coordinates: (B, K, N, p), not in half precision."""
        w = self.project(x)
        if w.dtype in (torch.bfloat16, torch.float16):
            w = w.float()
        return w.square(), w

    def shares_of(self, squares: Tensor) -> Tensor:
        """The memberships (B, K, N) that squares of coordinates (B, K, N, p) tell."""
        raise NotImplementedError

    def moments_of(self, squares: Tensor, shares: Tensor) -> Tensor:
        """Second moments of the members of each head, in every one of its p directions."""
        raise NotImplementedError


class TSSA(TokenStatistics):
    """Every token is shrunk in each head, by how much it belongs there and how large members are.

        s_kn = t_k sum_j w_knj^2 / |w_k.j|^2   (norms over the N tokens)
        Pi   = softmax of s over heads,   m_kj = sum_n Pi_kn w_knj^2 / (sum_n Pi_kn + 1e-8)
        TSSA(x) = W concat_k( - Pi_kn w_knj / (1 + m_kj) ),   w_k = x U_k

    No N x N tensor exists, in time or in memory: what can be shown of a head is its membership Pi.
    Norms are over the tokens, so a token's membership depends on how many others there are.
    """

    def shares_of(self, squares: Tensor) -> Tensor:
        """The memberships (B, K, N) that squares of coordinates (B, K, N, p) tell."""
        norms = squares.sum(dim=-2, keepdim=True).clamp(min=FLOOR**2)
        return ((squares / norms).sum(dim=-1) * self.temperature).softmax(dim=1)

    def moments_of(self, squares: Tensor, shares: Tensor) -> Tensor:
        """m (B, K, 1, p)."""
        members = shares.sum(dim=-2, keepdim=True) + MEMBERS
        return (shares * squares).sum(dim=-2, keepdim=True) / members


class CausalTSSA(TokenStatistics):
    """The form for sequences: token n knows of tokens 1 to n alone. No image model here uses it.

        s_kn = t_k sum_j ( w_knj^2 / max(sum_{i <= n} w_kij^2, 1e-12) + b_kn )

    and sums up to n in the place of those over all tokens in m, which then is one for every token.
    `b` (K, length, 1) starts at 0; `length` is the longest sequence.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        output_projection: OutputProjection,
        length: int,
        bias: bool = False,
    ) -> None:
        super().__init__(
            dim=dim, num_heads=num_heads, output_projection=output_projection, bias=bias
        )
        self.offsets = nn.Parameter(torch.zeros(num_heads, length, 1))  # b

    def shares_of(self, squares: Tensor) -> Tensor:
        """As in `TSSA`, of the tokens up to each; ValueError for more tokens than `length`."""
        tokens, length = squares.shape[-2], self.offsets.shape[1]
        if tokens > length:
            raise ValueError(f"{tokens} tokens are more than this operator's length of {length}")
        shares = squares / squares.cumsum(dim=-2).clamp(min=FLOOR) + self.offsets[:, :tokens]
        return (shares.sum(dim=-1) * self.temperature).softmax(dim=1)

    def moments_of(self, squares: Tensor, shares: Tensor) -> Tensor:
        """m (B, K, N, p), for each token of those up to it."""
        return (shares * squares).cumsum(dim=-2) / (shares.cumsum(dim=-2) + MEMBERS)
