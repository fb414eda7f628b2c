"""What every measure on labelled features shares: checked labels, grids, accuracy, confusions."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from crate_mae.evaluation.features import Features
from crate_mae.sources.splits import few_shot_indices

HELD_OUT = 0.1
"""Share of the training images on which a setting is chosen."""
MAX_CONFUSION = 200
"""Above this many classes the confusion matrix is left out: it would be millions of numbers."""
TOP_CONFUSIONS = 10
"""Mistakes that are listed, the most frequent ones."""
NATURAL_ENDS = {"k": {1.0}, "weight_decay": {0.0}, "penalty": {0.0}, "whitening": {0.0}}
"""Beyond these no setting makes sense, so that being the end of a grid says nothing."""


def labelled_pair(train: Features, test: Features) -> tuple[Tensor, Tensor]:
    """The labels of both sets, (n,) and (m,), once it is sure that they can be measured.

    Raises ValueError for empty, unlabelled, non-finite or token features, for different widths and
    for a training set of a single class.
    """
    labels = _checked(train, "training"), _checked(test, "test")
    if train.values.shape[1] != test.values.shape[1]:
        raise ValueError(
            f"training features are {train.values.shape[1]} wide, test features"
            f" {test.values.shape[1]}: extract both with the same model and pool"
        )
    if len(torch.unique(labels[0])) < 2:
        raise ValueError(
            f"all training images are of class {int(labels[0][0])}: use images of at least two"
            " classes"
        )
    return labels


def _checked(features: Features, role: str) -> Tensor:
    values, labels = features.values, features.labels
    if labels is None:
        raise ValueError(f"the {role} images have no labels; use a labelled source")
    if values.ndim != 2:
        raise ValueError(
            f"the {role} features have shape {tuple(values.shape)}; one row per image is needed:"
            " extract with another pool than 'tokens'"
        )
    if not len(values):
        raise ValueError(f"the {role} set is empty")
    missing = int((labels < 0).sum())
    if missing:
        raise ValueError(f"{missing} of {len(labels)} {role} images have no label; leave them out")
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"the {role} features of {features.names[row]} are not finite")
    return labels


def few_shot(features: Features, shots: int, seed: int) -> Features:
    """The rows of `shots` labelled images of every class, drawn by the seed.

    Raises ValueError when a class has fewer, naming it, and for unlabelled features.
    """
    labels = [None] * len(features.values) if features.labels is None else features.labels.tolist()
    chosen = few_shot_indices(labels, shots, seed, features.class_names)
    return replace(
        features,
        values=features.values[chosen],
        labels=torch.tensor([labels[i] for i in chosen]),
        names=[features.names[i] for i in chosen],
    )


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One setting that was tried."""

    setting: dict[str, float]
    accuracy: float
    """On the held-out part of the training set."""
    converged: bool = True
    """Whether the fit reached its tolerance or, for SGD, stayed finite."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the setting among them."""
        return {**self.setting, "accuracy": self.accuracy, "converged": self.converged}


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well the test images were classified."""

    accuracy: float
    """Share of the test images that are classified correctly."""
    interval: tuple[float, float]
    """95 % Wilson interval of the accuracy: the sampling error of the test set alone."""
    balanced_accuracy: float
    """Mean over the classes of the test images of the share of each that is classified correctly:
    what always answering one class gives 1 / classes of, however frequent it is."""
    macro_f1: float
    """Mean over classes, of test images or answers, of the harmonic mean of precision and recall.
    """
    chance: float
    """Test accuracy of always answering the most frequent class of the training set."""
    majority: str | None
    """That class; None where several are equally frequent, and the first of them is answered."""
    num_classes: int
    """Classes in the training set."""
    num_train: int
    num_test: int
    per_class: dict[str, float | None]
    """Test accuracy by class; None for classes without test images."""
    unseen_classes: list[str]
    """Classes of test images that the training set lacks: always wrong."""
    confusion: dict[str, Any] | None
    """`classes`, the names, and `counts`: test images by true class (row) and answer (column).
    None above 200 classes."""
    top_confusions: list[dict[str, Any]]
    """The most frequent mistakes: `true`, `predicted` and `count`."""


ScoreT = TypeVar("ScoreT", bound=Score)


@dataclass(frozen=True, kw_only=True)
class TunedScore(Score):
    """A score, and the setting it was reached with."""

    setting: dict[str, float]
    """Chosen on the held-out images, or fixed beforehand when there are none."""
    grid: list[GridPoint]
    """Every setting tried; empty when the setting was fixed."""
    num_held_out: int
    """Training images on which the setting was chosen."""
    folds: int
    """Parts in which they were held out, one after the other: 1, or more for cross-validation; 0
    when the setting was fixed."""
    on_edge: list[str]
    """Where the chosen setting is the first or last tried, so that a better one may lie outside."""
    converged: bool
    """Whether the final fit reached its tolerance or, for SGD, stayed finite."""
    seed: int
    """Fixes the held-out images and, for SGD, order and initial weights."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the values of `setting` stand at the top."""
        values = {k: v for k, v in asdict(self).items() if k != "setting"}
        return {
            **values,
            **self.setting,
            "interval": list(self.interval),
            "grid": [point.to_dict() for point in self.grid],
        }


def score(train: Features, test_labels: Tensor, train_labels: Tensor, answers: Tensor) -> Score:
    """The score of answers (m,), class numbers, for test labels (m,); `train` names the classes."""
    seen = torch.unique(train_labels)
    classes = torch.unique(torch.cat([train_labels, test_labels]))
    names = [class_name(train, label) for label in classes.tolist()]
    counts = confusion(classes, test_labels, answers)
    totals, right = counts.sum(dim=1), counts.diagonal()
    return Score(
        accuracy=int(right.sum()) / len(test_labels),
        interval=wilson_interval(int(right.sum()), len(test_labels)),
        balanced_accuracy=balanced_accuracy(counts),
        macro_f1=macro_f1(counts),
        chance=chance_level(train_labels, test_labels),
        majority=majority(train, train_labels),
        num_classes=len(seen),
        num_train=len(train_labels),
        num_test=len(test_labels),
        per_class={
            name: hits / total if total else None
            for name, hits, total in zip(names, right.tolist(), totals.tolist(), strict=True)
        },
        unseen_classes=[
            name
            for name, known in zip(names, torch.isin(classes, seen).tolist(), strict=True)
            if not known
        ],
        confusion={"classes": names, "counts": counts.tolist()}
        if len(classes) <= MAX_CONFUSION
        else None,
        top_confusions=_top(counts, names),
    )


def confusion(classes: Tensor, truth: Tensor, answers: Tensor) -> Tensor:
    """Counts (K, K) of true class (row) and answer (column), both among sorted `classes` (K,)."""
    count = len(classes)
    cells = torch.searchsorted(classes, truth) * count + torch.searchsorted(classes, answers)
    return torch.bincount(cells, minlength=count * count).view(count, count)


def best_point(grid: Sequence[GridPoint]) -> GridPoint:
    """The point of the highest held-out accuracy; the first of equals."""
    return max(grid, key=lambda point: point.accuracy)


def edges(grid: Sequence[GridPoint]) -> list[str]:
    """For every setting whose best values are the lowest or the highest tried: a text saying so.

    Nothing is said where a value inside the grid is as good, of a setting tried with one value, and
    of natural ends (k = 1, no weight decay, no whitening).
    """
    found = []
    top = max((point.accuracy for point in grid), default=0.0)
    for name in grid[0].setting if grid else ():
        tried = sorted({point.setting[name] for point in grid})
        best = {point.setting[name] for point in grid if point.accuracy == top}
        if len(tried) < 2:
            continue
        if best <= NATURAL_ENDS.get(name, set()):
            continue
        if best == {tried[0]}:
            found.append(f"{name} {tried[0]:g} is the smallest tried")
        elif best == {tried[-1]}:
            found.append(f"{name} {tried[-1]:g} is the largest tried")
    return found


def wilson_interval(right: float, total: int) -> tuple[float, float]:
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


def majority(train: Features, labels: Tensor) -> str | None:
    """The name of the most frequent class of labels (n,); None where several are as frequent."""
    classes, counts = torch.unique(labels, return_counts=True)
    most = classes[counts == counts.max()]
    return class_name(train, int(most[0])) if len(most) == 1 else None


def balanced_accuracy(counts: Tensor) -> float:
    """The mean share that is classified correctly over the classes that confusions (K, K) have."""
    totals = counts.sum(dim=1).double()
    return float((counts.diagonal() / totals)[totals > 0].mean())


def macro_f1(counts: Tensor) -> float:
    """The mean F1 of the classes that occur in confusions (K, K), as truth or as answer.

    F1 = 2 hits / (images of the class + answers of the class).
    """
    occurs = (counts.sum(dim=1) + counts.sum(dim=0)).double()
    return float((2 * counts.diagonal() / occurs)[occurs > 0].mean())


def with_majority_of(result: ScoreT, train: Features, test_labels: Tensor) -> ScoreT:
    """The result with the chance level of all training images, of which it learned from some.

    A few-shot set has as many images of every class: it has no most frequent one.
    """
    assert train.labels is not None
    known = train.labels[train.labels >= 0]
    return replace(result, chance=chance_level(known, test_labels), majority=majority(train, known))


def class_name(features: Features, label: int) -> str:
    """The name of a class, or its number when it has none."""
    names = features.class_names
    return names[label] if names is not None and label < len(names) else str(label)


def _top(counts: Tensor, names: list[str]) -> list[dict[str, Any]]:
    wrong = counts - torch.diag(counts.diagonal())
    order = wrong.flatten().sort(descending=True, stable=True)
    found = []
    for count, cell in zip(order.values[:TOP_CONFUSIONS], order.indices, strict=False):
        if count:
            true, predicted = divmod(int(cell), len(names))
            pair = {"true": names[true], "predicted": names[predicted]}
            found.append({**pair, "count": int(count)})
    return found
