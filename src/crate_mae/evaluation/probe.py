"""Linear probe: how well a linear classifier on frozen features tells the classes apart.

Shapes: n images, d features, C classes.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from crate_mae.evaluation.features import Features, labelled_pair

PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
HELD_OUT = 0.1
GRADIENT_TOLERANCE = 3e-5
MAX_STEPS = 500

# Above this width a d x d matrix costs more than the steps it would save.
MAX_PRECONDITIONED = 8192


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One penalty that was tried."""

    penalty: float
    accuracy: float
    """On the held-out part of the training set."""
    converged: bool


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a linear probe measured, with all that was tried on the way."""

    accuracy: float
    """Share of the test images that are classified correctly."""
    interval: tuple[float, float]
    """95 % Wilson interval of the accuracy: the sampling error of the test set alone."""
    chance: float
    """Test accuracy of always answering the most frequent class of the training set."""
    num_classes: int
    """Classes in the training set."""
    num_train: int
    num_test: int
    per_class: dict[str, float | None]
    """Test accuracy by class; None for classes without test images."""
    unseen_classes: list[str]
    """Classes of test images that the training set lacks: always wrong."""
    penalty: float
    """Chosen weight of the squared norm, in the loss (mean cross-entropy) + penalty / 2 |W|^2."""
    converged: bool
    """Whether the final fit reached the gradient tolerance."""
    grid: list[GridPoint]
    """Every penalty tried, the strongest first."""
    num_held_out: int
    """Training images on which the penalty was chosen."""
    seed: int
    """Which training images were held out."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "interval": list(self.interval)}


def linear_probe(
    train: Features,
    test: Features,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> ProbeResult:
    """Test accuracy of multinomial logistic regression on standardised features.

    The penalty is the one of `PENALTIES` with the highest accuracy on a held-out tenth of the
    training set (the stronger one of equals); the classifier is then fitted to all of it. The test
    set is used once, at the end. Raises ValueError for features that cannot be measured.
    """
    train_labels, test_labels = labelled_pair(train, test)
    held_out = hold_out(train_labels, HELD_OUT, seed)
    classes, targets = torch.unique(train_labels, return_inverse=True)
    mean, scale = _statistics(train.values)
    X = ((train.values - mean) * scale).to(device)
    y = targets.to(device)
    held = held_out.to(X.device)

    kept, kept_y, other, other_y = X[~held], y[~held], X[held], y[held]
    regression = _Regression(kept, len(classes))
    grid = []
    for penalty in PENALTIES:
        converged = regression.fit(kept, kept_y, penalty)
        right = (regression.scores(other).argmax(dim=1) == other_y).double().mean()
        grid.append(GridPoint(penalty=penalty, accuracy=float(right), converged=converged))
    best = max(grid, key=lambda point: point.accuracy)
    del kept, other
    converged = regression.fit(X, y, best.penalty)

    scores = regression.scores(((test.values - mean) * scale).to(device))
    answers = classes[scores.argmax(dim=1).cpu()]
    right = answers == test_labels
    return ProbeResult(
        accuracy=float(right.double().mean()),
        interval=wilson_interval(int(right.sum()), len(right)),
        chance=chance_level(train_labels, test_labels),
        num_classes=len(classes),
        num_train=len(train_labels),
        num_test=len(test_labels),
        per_class=_per_class(right, train, train_labels, test_labels),
        unseen_classes=[
            class_name(train, label)
            for label in torch.unique(test_labels).tolist()
            if label not in classes.tolist()
        ],
        penalty=best.penalty,
        converged=converged,
        grid=grid,
        num_held_out=int(held_out.sum()),
        seed=seed,
    )


def hold_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """A mask (n,), True for about `share` of the images of every class, drawn from `seed`.

    Every class with two images or more gives at least one and keeps at least one; a class with a
    single image keeps it. Raises ValueError when that leaves nothing to hold out.
    """
    generator = Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not chosen.any():
        raise ValueError(
            f"each of the {len(labels)} training images has a class of its own, so none can be held"
            " out to choose a setting: use at least two images of a class"
        )
    return chosen


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval (low, high) of a share of `right` in `total` trials."""
    z = 1.959963984540054
    share = right / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = ((centre + sign * half) / (1 + z * z / total) for sign in (-1, 1))
    # Rounding must not put the estimate outside of its own interval.
    return min(max(0.0, low), share), max(min(1.0, high), share)


def chance_level(train_labels: Tensor, test_labels: Tensor) -> float:
    """Test accuracy of always answering the most frequent class of the training labels."""
    classes, counts = torch.unique(train_labels, return_counts=True)
    return float((test_labels == classes[counts.argmax()]).double().mean())


def class_name(features: Features, label: int) -> str:
    """The name of a class, or its number when it has none."""
    names = features.class_names
    return names[label] if names is not None and label < len(names) else str(label)


class _Regression:
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


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
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


def _per_class(
    right: Tensor, train: Features, train_labels: Tensor, test_labels: Tensor
) -> dict[str, float | None]:
    result: dict[str, float | None] = {}
    for label in torch.unique(torch.cat([train_labels, test_labels])).tolist():
        members = right[test_labels == label].double()
        result[class_name(train, label)] = float(members.mean()) if len(members) else None
    return result
