"""Nearest neighbours: how well images that lie close in feature space share their class.

Shapes: n images, m queries, d features, C classes, K neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import log

import torch
import torch.nn.functional as F
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
from crate_mae.evaluation.whitening import Whitening

Spaces = Iterator[tuple[float, Tensor, Tensor]]
"""Strengths of whitening, and queries (m, d) and keys (n, d) at them."""
Choice = tuple[float, int, float]
"""Strength of whitening, number of neighbours, temperature."""

NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.002, 0.005, 0.02, 0.07, 0.2)
AS_THEY_ARE = 0.0
"""The strength of whitening at which features are compared as they are, not even standardised."""
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Strengths of whitening that are worth a try: the first for hundreds of images, the last for tens
of thousands."""
FIXED = (1, 0.07)
"""k and temperature where nothing can be held out, so that nothing can be chosen: with one image
of every class. Of what was asked for the nearest to them is taken."""

BLOCK_VALUES = 1 << 26
"""Similarities that are held at once: 256 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class KnnResult(TunedScore):
    """What a vote of nearest neighbours measured; `setting` holds `k` and `temperature`, and
    `whitening` where another strength of it than 0 was tried."""

    whitened: bool
    """Whether features were whitened before they were compared."""
    by_k: dict[int, float]
    """Test accuracy for each k at the chosen temperature: to be looked at, not chosen from."""
    skipped_k: list[int]
    """Numbers of neighbours that were asked for but are more than the training images."""

    @property
    def k(self) -> int:
        """The chosen number of neighbours."""
        return int(self.setting["k"])


def nearest_neighbours(
    train: Features,
    test: Features,
    *,
    k: Sequence[int] = NEIGHBOURS,
    temperatures: Sequence[float] = TEMPERATURES,
    whitening: Sequence[float] = (AS_THEY_ARE,),
    seed: int = 0,
    block: int | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> KnnResult:
    """Test accuracy of a weighted vote of the k most similar training images.

    Similarity s is the cosine, a vote weighs exp(s / temperature); the search is exact. k and
    temperature are chosen together on held-out training images, as `held_out_parts` takes them (of
    equals the smallest k, then the lowest temperature). With one image of every class nothing can
    be held out: of `k` and `temperatures` those nearest to 1 and 0.07 are taken. The published
    protocol compares features as they are. At a strength of `whitening` above 0 they are whitened
    before, by the images that are searched (`Whitening`); among several strengths it is chosen with
    k and temperature (of equals the lowest), the lowest where nothing can be held out. `block`
    queries are compared at a time (by default as many as fit 256 MiB).
    Raises ValueError for features that cannot be measured and for a k or temperature that is not
    above 0, or a strength below 0.
    """
    train_labels, test_labels = labelled_pair(train, test)
    check_knn(k=k, temperatures=temperatures, whitening=whitening)
    warmth = sorted(set(temperatures))
    strengths = sorted(set(whitening))
    # With one setting nothing need be held out.
    chosen_already = len(set(k)) == len(warmth) == len(strengths) == 1
    parts = [] if chosen_already else held_out_parts(train_labels, seed)
    most_held = max((int(part.sum()) for part in parts), default=0)
    usable, skipped = _usable(k, len(train_labels) - most_held)

    classes, votes_for = torch.unique(train_labels, return_inverse=True)
    X, Q = train.values.to(device), test.values.to(device)
    y = votes_for.to(X.device)

    def answers(
        queries: Tensor,
        keys: Tensor,
        labels: Tensor,
        temperatures: Sequence[float],
    ) -> dict[tuple[int, float], Tensor]:
        queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
        blocks = torch.split(queries, block or max(1, BLOCK_VALUES // len(keys)))
        found: list[dict[tuple[int, float], Tensor]] = []
        for done, part in enumerate(blocks, start=1):
            neighbours = nearest(part, keys, max(usable))
            found.append(
                {
                    (count, value): answer
                    for value in temperatures
                    for count, answer in vote(
                        *neighbours, labels, len(classes), usable, value
                    ).items()
                }
            )
            if progress is not None:
                progress(done, len(blocks))
        return {choice: torch.cat([part[choice] for part in found]).cpu() for choice in found[0]}

    grid: list[GridPoint] = []
    choices: list[Choice] = list(product(strengths, usable, warmth))

    def setting_of(choice: Choice) -> dict[str, float]:
        strength, count, value = choice
        first = {} if strengths == [AS_THEY_ARE] else {"whitening": strength}
        return {**first, "k": count, "temperature": value}

    def spaces(queries: Tensor, keys: Tensor, strengths: Sequence[float]) -> Spaces:
        """Queries and keys at each strength; directions are found once for all."""
        found = Whitening(keys) if any(strengths) else None
        for strength in strengths:
            if found is None or strength == AS_THEY_ARE:
                yield strength, queries, keys
            else:
                yield strength, found(queries, strength), found(keys, strength)

    def grid_of(held: Tensor) -> list[GridPoint]:
        here = held.to(X.device)
        tried = {
            (strength, *rest): answer
            for strength, queries, keys in spaces(X[here], X[~here], strengths)
            for rest, answer in answers(queries, keys, y[~here], warmth).items()
        }
        return [
            GridPoint(
                setting=setting_of(choice),
                accuracy=float((tried[choice] == votes_for[held]).double().mean()),
            )
            for choice in choices
        ]

    if len(choices) == 1:
        best, parts = choices[0], []
    elif not parts:
        best = (strengths[0], *_nearest_to_fixed(usable, warmth))
        usable = [best[1]]
    else:
        grid = tried_on(parts, grid_of)
        chosen = best_point(grid).setting
        strength = chosen.get("whitening", strengths[0])
        best = strength, int(chosen["k"]), chosen["temperature"]
    strength, count, value = best
    ((_, queries, keys),) = spaces(Q, X, [strength])
    final = {
        number: classes[answer]
        for (number, _), answer in answers(queries, keys, y, [value]).items()
    }
    return KnnResult(
        **vars(score(train, test_labels, train_labels, final[count])),
        setting=setting_of(best),
        grid=grid,
        num_held_out=sum(int(part.sum()) for part in parts),
        folds=len(parts),
        on_edge=edges(grid),
        converged=True,
        seed=seed,
        whitened=strength != AS_THEY_ARE,
        by_k={number: float((a == test_labels).double().mean()) for number, a in final.items()},
        skipped_k=skipped,
    )


def check_knn(
    *,
    k: Sequence[int] = NEIGHBOURS,
    temperatures: Sequence[float] = TEMPERATURES,
    whitening: Sequence[float] = (AS_THEY_ARE,),
) -> None:
    """Raise ValueError for settings that `knn` would refuse, before there are features.

    That k is more than the training images is seen only there.
    """
    if not temperatures or not all(0 < value < float("inf") for value in temperatures):
        raise ValueError(f"temperature must be above 0, not {list(temperatures)}")
    if not whitening or not all(0 <= value < float("inf") for value in whitening):
        raise ValueError(f"the strength of whitening must be 0 or above, not {list(whitening)}")
    if not k or min(k) < 1:
        raise ValueError(f"k must be one or more numbers of at least 1, not {list(k)}")


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


def _nearest_to_fixed(usable: Sequence[int], warmth: Sequence[float]) -> tuple[int, float]:
    """(k, temperature) of those asked for, ascending; of equally near ones the lower.

    Temperatures are compared by their ratio, as they are tried.
    """
    count, value = FIXED
    # Rounded, so that 0.007 and 0.7 are equally far from 0.07.
    return (
        min(usable, key=lambda asked: abs(asked - count)),
        min(warmth, key=lambda asked: round(abs(log(asked) - log(value)), 9)),
    )


def _usable(k: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    asked = sorted(set(k))
    usable = [count for count in asked if count <= limit]
    if not usable:
        raise ValueError(
            f"k = {asked} is more than the {limit} training images that are not held out; use a"
            " smaller k"
        )
    return usable, asked[len(usable) :]
