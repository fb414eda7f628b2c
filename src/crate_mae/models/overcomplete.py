"""Sparse steps that are not the paper's: ISTA from 0 in a dictionary of more atoms than dimensions.

Shapes: d token width, n atoms for each of the d dimensions. Tokens are rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.ista import SparseStep


class OvercompleteISTA(SparseStep):
    """What two proximal gradient steps from 0 say that tokens are, in more atoms than dimensions.

        a_1 = ReLU( eta x D - eta lambda ),   a_2 = ReLU( a_1 + eta (x - a_1 D^T) D - eta lambda )
        OvercompleteISTA(x) = a_2 D^T

    D is (d, n d), an atom a column, and a_2 >= 0 approaches the code of x in the non-negative LASSO
    1/2 |x - D a|^2 + lambda |a|_1. Not of the CRATE-MAE paper: the published step has n = 1, one
    step from x itself, and its code is the next layer's token. Two steps from 0 in an overcomplete
    dictionary follow CRATE-alpha (Yang et al., arXiv 2405.20299), whose codes return to d
    dimensions by a second matrix (`DecoupledISTA`); here they return by D.
    """

    skip, returns_codes, starts_at_zero = True, False, True

    def __init__(self, *, dim: int, overcomplete: int, step_size: float, sparsity: float) -> None:
        super().__init__()
        self.step_size = step_size
        self.sparsity = sparsity
        self.dictionary = nn.Parameter(torch.empty(dim, overcomplete * dim))  # D
        nn.init.kaiming_uniform_(self.dictionary, mode="fan_out")

    def codes(self, x: Tensor) -> Tensor:
        """Sparse non-negative codes a_2 of tokens x (..., d): (..., n d)."""
        D, eta, bound = self.dictionary, self.step_size, self.step_size * self.sparsity
        # eta scales what has d columns, not n d. In place: no backward pass looks at values before.
        first = ((eta * x) @ D).sub_(bound).relu_()
        residual = x - F.linear(first, D)
        return (first + (eta * residual) @ D).sub_(bound).relu_()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens a_2 D^T that the codes of tokens x (..., d) stand for: (..., d)."""
        return F.linear(self.codes(x), self.dictionary)


class DecoupledISTA(OvercompleteISTA):
    """The same codes, returned to d dimensions by a second matrix, as CRATE-alpha has it.

        DecoupledISTA(x) = a_2 D1^T

    D1 is (d, n d) like D. The codes stay those of the LASSO in D; what they add to a token is free.
    """

    def __init__(self, *, dim: int, overcomplete: int, step_size: float, sparsity: float) -> None:
        super().__init__(dim=dim, overcomplete=overcomplete, step_size=step_size, sparsity=sparsity)
        returning = nn.Parameter(torch.empty(dim, overcomplete * dim))  # D1
        nn.init.kaiming_uniform_(returning, mode="fan_out")
        self.returning = returning

    def forward(self, x: Tensor) -> Tensor:
        """Tokens a_2 D1^T that the codes of tokens x (..., d) are turned into: (..., d)."""
        assert self.returning is not None  # it was made with one
        return F.linear(self.codes(x), self.returning)
