"""Linear probe: how well a linear classifier on frozen features tells the classes apart.

Shapes: n images, d features, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from crate_mae.common.progress import Progress
from crate_mae.evaluation.choosing import held_out_parts, tried_on
from crate_mae.evaluation.features import Features
from crate_mae.evaluation.metrics import (
    GridPoint,
    TunedScore,
    best_point,
    edges,
    labelled_pair,
    score,
)
from crate_mae.evaluation.regression import Regression, row_space, standardising
from crate_mae.evaluation.sgd import LinearGrid

Solver = Literal["exact", "sgd"]
Normalise = Literal["standardise", "batch_norm", "none"]
Setting = dict[str, float]

PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
LEARNING_RATES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
EPOCHS = 90
BATCH_SIZE = 1024

MISSING = 10.0
"""How far below every other bias that of a class without images lies: a share of e^-10."""

# With one image of every class nothing can be held out, so that nothing can be chosen either: of
# the settings asked for the nearest to these is taken.
FIXED_PENALTY = 1e-1
FIXED_SGD = {"learning_rate": 1e-1, "weight_decay": 1e-3}


@dataclass(frozen=True, kw_only=True)
class ProbeResult(TunedScore):
    """What a linear probe measured, with all that was tried on the way.

    `setting` holds `penalty`, the weight of the squared norm in (mean cross-entropy) + penalty / 2
    |W|^2, or, for SGD, `learning_rate` and `weight_decay`.
    """

    solver: Solver
    normalise: Normalise
    epochs: int | None
    """Passes over the training set; None for the exact solver."""
    batch_size: int | None


def linear_probe(
    train: Features,
    test: Features,
    *,
    solver: Solver = "exact",
    normalise: Normalise = "standardise",
    penalties: Sequence[float] = PENALTIES,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> ProbeResult:
    """Test accuracy of a linear classifier on frozen features.

    Solver "exact" is multinomial logistic regression at its minimum (L-BFGS) for each of
    `penalties`; "sgd" trains for `epochs` with momentum and cosine, every pair of `learning_rates`
    and `weight_decays`. The setting with the highest accuracy on held-out training images is taken
    (of equals the stronger penalty, the lower rate) and fitted again to all of them. Held out is a
    tenth, or, where that are few images, each fifth in turn (`held_out_parts`). With one image of
    every class nothing can be held out: of what was asked for the penalty nearest to 0.1 is taken,
    or the rate nearest to 0.1 and the decay nearest to 0.001. The test set is used once, at the
    end.

    Features are standardised by the whole training set, or by `batch_norm` without scale and shift
    (statistics of the batch in training, running ones at the test; SGD only), or not at all.
    Raises ValueError for features that cannot be measured and settings that make no sense.
    """
    train_labels, test_labels = labelled_pair(train, test)
    check_probe(
        solver=solver,
        normalise=normalise,
        penalties=penalties,
        learning_rates=learning_rates,
        weight_decays=weight_decays,
        epochs=epochs,
        batch_size=batch_size,
    )
    classes, targets = torch.unique(train_labels, return_inverse=True)
    mean, scale = standardising(train.values) if normalise == "standardise" else (0.0, 1.0)
    X, y = ((train.values - mean) * scale).to(device), targets.to(device)
    unknown = ((test.values - mean) * scale).to(device)
    if solver == "exact" and X.shape[1] > len(X):
        # The minimum is a sum of training rows, so that nothing is lost among their directions.
        axes = row_space(X)
        X, unknown = X @ axes, unknown @ axes
    fit: _Exact | _Sgd
    if solver == "exact":
        grid_settings = [
            {"penalty": p} for p in sorted(_above("penalties", penalties), reverse=True)
        ]
        fixed, fit = {"penalty": FIXED_PENALTY}, _Exact(len(classes), progress)
    else:
        decays = _above("weight decays", weight_decays, zero=True)
        grid_settings = [
            {"learning_rate": rate, "weight_decay": decay}
            for rate in _above("learning rates", learning_rates)
            for decay in decays
        ]
        batch_norm = normalise == "batch_norm"
        fixed = FIXED_SGD
        fit = _Sgd(len(classes), batch_norm, epochs, batch_size, seed, progress)

    setting, grid, parts = _chosen(fit, grid_settings, fixed, X, y, seed)
    answers, converged = fit.final(setting, X, y, unknown)
    judged = score(train, test_labels, train_labels, classes[answers.cpu()])
    return ProbeResult(
        **vars(judged),
        setting=setting,
        grid=grid,
        num_held_out=sum(int(part.sum()) for part in parts),
        folds=len(parts),
        on_edge=edges(grid),
        converged=converged,
        seed=seed,
        solver=solver,
        normalise=normalise,
        epochs=epochs if solver == "sgd" else None,
        batch_size=min(batch_size, len(X)) if solver == "sgd" else None,
    )


class LinearHead(NamedTuple):
    """Class scores of raw features x (d,) are weight @ x + bias."""

    weight: Tensor
    """(C, d) float32."""
    bias: Tensor
    """(C,) float32."""
    penalty: float
    """That it was fitted with."""


def fitted_head(values: Tensor, labels: Tensor, *, num_classes: int, seed: int = 0) -> LinearHead:
    """The linear probe of features (n, d) with labels (n,) as a layer that takes them as they are.

    It gives the answers of `linear_probe` with its exact solver: the penalty is chosen alike, and
    the standardisation is part of weight and bias. Classes of `num_classes` without images have
    weights of 0 and a bias `MISSING` below the lowest. ValueError unless two classes have images.
    """
    classes, y = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("a linear probe needs images of two classes")
    mean, scale = standardising(values)
    X = (values - mean) * scale
    axes = row_space(X) if X.shape[1] > len(X) else None
    if axes is not None:
        X = X @ axes
    fit = _Exact(len(classes), None)
    penalties = [{"penalty": penalty} for penalty in sorted(PENALTIES, reverse=True)]
    setting, _, _ = _chosen(fit, penalties, {"penalty": FIXED_PENALTY}, X, y, seed)
    fit.final(setting, X, y, X[:0])
    assert fit.regression is not None
    found = fit.regression.weight.float()
    turned = (found if axes is None else found @ axes.T) * scale
    weight = values.new_zeros(num_classes, values.shape[1])
    weight[classes] = turned
    known = fit.regression.bias.float() - turned @ mean
    bias = values.new_full((num_classes,), float(known.min()) - MISSING)
    bias[classes] = known
    return LinearHead(weight, bias, setting["penalty"])


def _chosen(
    fit: "_Exact | _Sgd",
    settings: list[Setting],
    fixed: Setting,
    X: Tensor,
    y: Tensor,
    seed: int,
) -> tuple[Setting, list[GridPoint], list[Tensor]]:
    """The best of some settings on held-out images, all that were tried, and the held-out parts.

    A single setting is taken as it is; where nothing can be held out, that nearest to `fixed`.
    """
    parts = [] if len(settings) == 1 else held_out_parts(y.cpu(), seed)
    if not parts:
        return min(settings, key=lambda setting: _apart(setting, fixed)), [], parts

    def grid_of(held: Tensor) -> list[GridPoint]:
        held = held.to(X.device)
        return fit.grid(settings, X[~held], y[~held], X[held], y[held])

    grid = tried_on(parts, grid_of)
    return best_point(grid).setting, grid, parts


def _apart(setting: Setting, other: Setting) -> list[float]:
    """How far each value is from that of another setting, in the order of the other's.

    Values are compared by their ratio, as they are tried; weight decays, which may be 0, by their
    difference.
    """
    # Rounded, so that 0.01 and 1 are equally far from 0.1.
    return [
        abs(setting[name] - value)
        if name == "weight_decay"
        else round(abs(log(setting[name]) - log(value)), 9)
        for name, value in other.items()
    ]


class _Exact:
    """A regression fitted to each penalty in turn, from the strongest to the weakest."""

    def __init__(self, num_classes: int, progress: Progress | None) -> None:
        self.num_classes, self.progress = num_classes, progress
        self.regression: Regression | None = None

    def grid(
        self, settings: list[Setting], X: Tensor, y: Tensor, other: Tensor, other_y: Tensor
    ) -> list[GridPoint]:
        self.regression = Regression(X, self.num_classes)
        grid = []
        for done, setting in enumerate(settings, start=1):
            converged = self.regression.fit(X, y, setting["penalty"])
            right = (self.regression.scores(other).argmax(dim=1) == other_y).double().mean()
            grid.append(GridPoint(setting=setting, accuracy=float(right), converged=converged))
            if self.progress is not None:
                self.progress(done, len(settings))
        return grid

    def final(self, setting: Setting, X: Tensor, y: Tensor, test: Tensor) -> tuple[Tensor, bool]:
        # What was fitted to the kept part is near, and its coordinates suit the whole as well.
        if self.regression is None:
            self.regression = Regression(X, self.num_classes)
        converged = self.regression.fit(X, y, setting["penalty"])
        return self.regression.scores(test).argmax(dim=1), converged


class _Sgd:
    """Grids of linear classifiers, each trained as a whole."""

    def __init__(
        self,
        num_classes: int,
        batch_norm: bool,
        epochs: int,
        batch_size: int,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.num_classes, self.batch_norm, self.seed = num_classes, batch_norm, seed
        self.epochs, self.batch_size, self.progress = epochs, batch_size, progress

    def grid(
        self, settings: list[Setting], X: Tensor, y: Tensor, other: Tensor, other_y: Tensor
    ) -> list[GridPoint]:
        trained = self._trained(settings, X, y)
        right = (trained.answers(other) == other_y).double().mean(dim=1).tolist()
        return [
            GridPoint(setting=setting, accuracy=accuracy if finite else 0.0, converged=finite)
            for setting, accuracy, finite in zip(settings, right, trained.finite(), strict=True)
        ]

    def final(self, setting: Setting, X: Tensor, y: Tensor, test: Tensor) -> tuple[Tensor, bool]:
        trained = self._trained([setting], X, y)
        return trained.answers(test)[0], trained.finite()[0]

    def _trained(self, settings: list[Setting], X: Tensor, y: Tensor) -> LinearGrid:
        grid = LinearGrid(
            [(setting["learning_rate"], setting["weight_decay"]) for setting in settings],
            dim=X.shape[1],
            num_classes=self.num_classes,
            batch_norm=self.batch_norm,
            seed=self.seed,
            device=X.device,
        )
        grid.train(X, y, epochs=self.epochs, batch_size=self.batch_size, progress=self.progress)
        return grid


def check_probe(
    *,
    solver: str = "exact",
    normalise: str = "standardise",
    penalties: Sequence[float] = PENALTIES,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
) -> None:
    """Raise ValueError for settings that `linear_probe` refuses, before any features."""
    for name, value, choices in (
        ("solver", solver, get_args(Solver)),
        ("normalise", normalise, get_args(Normalise)),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    if solver == "exact" and normalise == "batch_norm":
        raise ValueError("batch_norm needs batches: use solver sgd, or normalise standardise")
    if epochs < 1 or batch_size < 2:
        raise ValueError(
            f"SGD needs at least 1 epoch and batches of at least 2, not {epochs} and {batch_size}"
        )
    if solver == "exact":
        _above("penalties", penalties)
    else:
        _above("learning rates", learning_rates)
        _above("weight decays", weight_decays, zero=True)


def _above(name: str, values: Sequence[float], *, zero: bool = False) -> list[float]:
    """The values, each once, ascending; ValueError unless all are finite and above 0 (or 0)."""
    wrong = [v for v in values if not (0 < v < float("inf") or (zero and v == 0))]
    if wrong or not values:
        bound = "at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be one or more numbers {bound}, not {list(values)}")
    return sorted(set(values))
