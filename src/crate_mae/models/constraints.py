"""What weights can be kept to while they train: orthogonal matrices, and matrices of bounded norm.

Weights stay ordinary parameters: after every step of the optimiser they are put back to where they
are to be, so whatever reads, saves, moves or exports them needs to know nothing of it.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn


class Constrained(Protocol):
    """A module, an operator as a rule, that knows where training is to keep its weights."""

    def constrain(self, *, frozen: bool = False) -> None:
        """Put the weights back there; those that do not train only where `frozen` is set."""


@torch.no_grad()
def make_orthogonal(matrix: Tensor) -> None:
    """Set a square matrix (d, d) to the orthogonal factor of its columns, in place.

    The factor is Q of QR with a positive diagonal of R, so an orthogonal matrix stays as it is, and
    one that is nearly so hardly moves. Computed in float64, and rounded to the matrix' own type.
    """
    if matrix.is_meta:  # no values yet
        return
    q, r = torch.linalg.qr(_wide(matrix))
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)
    matrix.copy_(q * signs)


@torch.no_grad()
def limit_norm(matrix: Tensor, limit: float) -> None:
    """Set a matrix (d, n), d <= n, to the nearest one of spectral norm up to `limit`, in place.

    That is the one with its singular values cut there. Computed in float64, and rounded to the
    matrix' own type; one that is within stays as it is.
    """
    if matrix.is_meta:
        return
    wide = _wide(matrix)
    squares, vectors = torch.linalg.eigh(wide @ wide.mT)
    kept = (limit / squares.clamp(min=limit**2).sqrt()).clamp(max=1)
    cut = (vectors * kept) @ (vectors.mT @ wide)
    matrix.copy_(torch.where(squares.max() > limit**2, cut, wide))


def _wide(matrix: Tensor) -> Tensor:
    return matrix.float() if matrix.device.type == "mps" else matrix.double()


def keep_constraints(model: nn.Module, *, frozen: bool = False) -> None:
    """Put the weights of all layers of a model back to where its configuration keeps them.

    To be called after every step of an optimiser; nothing happens where nothing is asked for.
    Weights that do not train stay as they are, unless `frozen` is set (an average of models).
    """
    for part in model.modules():
        if hasattr(type(part), "constrain"):  # of its class, for a look at modules takes longer
            cast("Constrained", part).constrain(frozen=frozen)
