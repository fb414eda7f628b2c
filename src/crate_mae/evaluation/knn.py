"""Nearest neighbours: how well images that lie close in feature space share their class.

Shapes: n training images, m queries, d features, C classes, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.evaluation.features import Features, labelled_pair
from crate_mae.evaluation.probe import HELD_OUT, chance_level, hold_out, wilson_interval

BLOCK_VALUES = 1 << 26
"""Similarities that are held at once: 256 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class KnnResult:
    """What a vote of nearest neighbours measured, for every number of neighbours."""

    accuracy: float
    """Share of the test images that are classified correctly, with the chosen k."""
    interval: tuple[float, float]
    """95 % Wilson interval of the accuracy: the sampling error of the test set alone."""
    chance: float
    """Test accuracy of always answering the most frequent class of the training set."""
    k: int
    """Number of neighbours with the highest held-out accuracy; the smallest of equals."""
    by_k: dict[int, float]
    """Test accuracy for each k, to be looked at and not chosen from."""
    held_out_by_k: dict[int, float]
    """Accuracy for each k on the held-out part of the training set."""
    skipped_k: list[int]
    """Numbers of neighbours that were asked for but are more than the training images."""
    temperature: float
    num_classes: int
    num_train: int
    num_test: int
    num_held_out: int
    seed: int
    """Which training images were held out."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "interval": list(self.interval)}


def knn(
    train: Features,
    test: Features,
    *,
    k: Sequence[int] = (1, 5, 10, 20, 50),
    temperature: float = 0.07,
    seed: int = 0,
    block: int | None = None,
    device: str | torch.device | None = None,
) -> KnnResult:
    """Test accuracy of a weighted vote of the k most similar training images.

    Similarity s is the cosine, a vote weighs exp(s / temperature); the search is exact. k is chosen
    on a held-out tenth of the training set. `block` queries are compared at a time (by default as
    many as fit 256 MiB). Raises ValueError for features that cannot be measured and for a k or
    temperature that is not above 0.
    """
    train_labels, test_labels = labelled_pair(train, test)
    held_out = hold_out(train_labels, HELD_OUT, seed)
    num_kept = int((~held_out).sum())
    usable, skipped = _usable(k, num_kept)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")

    classes, votes_for = torch.unique(train_labels, return_inverse=True)
    X = F.normalize(train.values.to(device), dim=1)
    y, held = votes_for.to(X.device), held_out.to(X.device)
    queries = F.normalize(test.values.to(device), dim=1)

    def answers(queries: Tensor, keys: Tensor, labels: Tensor) -> dict[int, Tensor]:
        size = block or max(1, BLOCK_VALUES // len(keys))
        found = [
            vote(*nearest(q, keys, max(usable)), labels, len(classes), usable, temperature)
            for q in torch.split(queries, size)
        ]
        return {k: torch.cat([answer[k] for answer in found]).cpu() for k in usable}

    tried = answers(X[held], X[~held], y[~held])
    held_out_by_k = _accuracies(tried, votes_for[held_out])
    final = {k: classes[answer] for k, answer in answers(queries, X, y).items()}
    by_k = _accuracies(final, test_labels)
    best = max(usable, key=lambda k: held_out_by_k[k])
    return KnnResult(
        accuracy=by_k[best],
        interval=wilson_interval(int((final[best] == test_labels).sum()), len(test_labels)),
        chance=chance_level(train_labels, test_labels),
        k=best,
        by_k=by_k,
        held_out_by_k=held_out_by_k,
        skipped_k=skipped,
        temperature=temperature,
        num_classes=len(classes),
        num_train=len(train_labels),
        num_test=len(test_labels),
        num_held_out=len(train_labels) - num_kept,
        seed=seed,
    )


def nearest(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and indices (m, k) of the keys (n, d) most similar to queries (m, d).

    Most similar first; of equally similar keys the one with the lower index.
    """
    similarities = queries @ keys.T
    values, indices = similarities.topk(min(k + 1, len(keys)), dim=1)
    # Only a stable sort keeps the order of equals, and it is too slow for rows that have none.
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().flatten()
    for rows in torch.split(tied, 256):
        ordered, order = similarities[rows].sort(dim=1, descending=True, stable=True)
        values[rows], indices[rows] = ordered[:, : values.shape[1]], order[:, : values.shape[1]]
    return values[:, :k], indices[:, :k]


def vote(
    similarities: Tensor,
    neighbours: Tensor,
    labels: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> dict[int, Tensor]:
    """The class (m,) that the first k neighbours (m, K) vote for, for each k in `ks`.

    `labels` (n,) are the classes of the keys. Votes that differ by less than rounding are equal;
    the lowest class of equals wins.
    """
    # Relative to the nearest, so that nothing overflows at low temperatures.
    weights = ((similarities - similarities[:, :1]).double() / temperature).exp()
    classes = labels[neighbours]
    answers = {}
    for k in ks:
        votes = weights.new_zeros(len(weights), num_classes)
        votes.scatter_add_(1, classes[:, :k], weights[:, :k])
        top = votes >= votes.amax(dim=1, keepdim=True) * (1 - 1e-6)
        answers[k] = top.to(torch.uint8).argmax(dim=1)
    return answers


def _usable(k: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    asked = sorted(set(k))
    if not asked or asked[0] < 1:
        raise ValueError(f"k must be one or more numbers of at least 1, not {list(k)}")
    usable = [count for count in asked if count <= limit]
    if not usable:
        raise ValueError(
            f"k = {asked} is more than the {limit} training images that are not held out; use a"
            " smaller k"
        )
    return usable, asked[len(usable) :]


def _accuracies(answers: dict[int, Tensor], labels: Tensor) -> dict[int, float]:
    return {k: float((answer == labels).double().mean()) for k, answer in answers.items()}
