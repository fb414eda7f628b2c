"""Multinomial logistic regression, solved to its minimum.

Shapes: n images, d features, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GRADIENT_TOLERANCE = 3e-5
MAX_STEPS = 500

# Above this width a d x d matrix costs more than the steps it would save.
MAX_PRECONDITIONED = 8192


class Regression:
    """Multinomial logistic regression by L-BFGS, in coordinates in which it is well conditioned.

    With H = X^T X / n = Q diag(e) Q^T the second derivative at zero weights is H / C + penalty, for
    each class up to a constant. In the coordinates V of W = V diag(e / C + penalty)^(-1/2) Q^T it
    is near the identity, so that a dozen steps reach what takes hundreds on correlated features.
    The minimum is the same. Products with X are float32, everything else float64.
    """

    def __init__(self, X: Tensor, num_classes: int) -> None:
        self.num_classes = num_classes
        self.spectrum: Tensor | None = None
        if X.shape[1] <= MAX_PRECONDITIONED:
            spectrum, self.axes = torch.linalg.eigh(X.T @ X / len(X))
            self.spectrum = spectrum.double().clamp_min_(0)
        # Kept from one penalty to the next: a warm start.
        self.weight = X.new_zeros(num_classes, X.shape[1], dtype=torch.float64)
        self.bias = X.new_zeros(num_classes, dtype=torch.float64)

    def scores(self, X: Tensor) -> Tensor:
        """Class scores (n, C) of standardised features (n, d)."""
        return F.linear(X, self.weight.to(X.dtype), self.bias.to(X.dtype))

    def fit(self, X: Tensor, y: Tensor, penalty: float) -> bool:
        """Whether the fit converged; moves weight and bias to the minimum for a penalty."""
        n, C = len(X), self.num_classes
        truth = F.one_hot(y, C).double()
        scale = self._scale(penalty)
        V = (self._turn(self.weight) / scale).requires_grad_()
        b = self.bias.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [V, b],
            max_iter=MAX_STEPS,
            max_eval=2 * MAX_STEPS,
            history_size=20,
            tolerance_grad=GRADIENT_TOLERANCE,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def loss() -> float:
            self.weight, self.bias = self._turn_back(V * scale), b.clone()
            log_shares = self.scores(X).double().log_softmax(dim=1)
            residual = (log_shares.exp() - truth) / n
            gradient = (residual.T.to(X.dtype) @ X).double() + penalty * self.weight
            V.grad, b.grad = self._turn(gradient) * scale, residual.sum(dim=0)
            fit = -(log_shares * truth).sum() / n
            return float(fit + penalty / 2 * self.weight.square().sum())

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        loss()  # the line search may have looked further than the point it settled on
        assert V.grad is not None
        assert b.grad is not None
        largest = max(float(V.grad.abs().max()), float(b.grad.abs().max()))
        return largest <= GRADIENT_TOLERANCE

    def _scale(self, penalty: float) -> Tensor:
        if self.spectrum is None:
            return torch.ones_like(self.weight[0])
        return (self.spectrum / self.num_classes + penalty).rsqrt()

    def _turn(self, weight: Tensor) -> Tensor:
        return weight if self.spectrum is None else _product(weight, self.axes)

    def _turn_back(self, weight: Tensor) -> Tensor:
        return weight if self.spectrum is None else _product(weight, self.axes.T)


def _product(weight: Tensor, axes: Tensor) -> Tensor:
    return (weight.to(axes.dtype) @ axes).double()


def row_space(X: Tensor) -> Tensor:
    """An orthonormal basis (d, r) of the directions in which n rows (n, d) lie, n < d.

    Directions in which they hardly extend, by the resolution of float32, are left out.
    """
    wide = X.double()
    spectrum, left = torch.linalg.eigh(wide @ wide.T)
    lengths = spectrum.clamp_min(0).sqrt()
    kept = lengths > 1e-6 * lengths.max()
    basis: Tensor = wide.T @ (left[:, kept] / lengths[kept])
    return basis.to(X.dtype)


def standardising(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation (d,) in float32, from float64 sums.

    The reciprocal is 0 for features that never change, which takes them out.
    """
    blocks = torch.split(values, 4096)  # float64 copies of pieces, not of everything
    mean = sum((block.double().sum(dim=0) for block in blocks), torch.zeros(())) / len(values)
    squares = (((block.double() - mean) ** 2).sum(dim=0) for block in blocks)
    std = (sum(squares, torch.zeros(())) / len(values)).sqrt()
    constant = std <= 1e-7 * mean.abs()  # the resolution of float32
    scale = torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, std))
    return mean.float(), scale.float()
