"""On which training images a setting is chosen: a held-out tenth, or in turn all, where few."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from crate_mae.evaluation.metrics import HELD_OUT, GridPoint
from crate_mae.sources.splits import can_hold_out, hold_out

FEW_HELD_OUT = 100
"""Held-out images below which settings are chosen by cross-validation: of 12 images one is worth
8 points of accuracy, so that luck would choose."""
FOLDS = 5
"""Parts that are held out in turn, at most."""


def held_out_parts(labels: Tensor, seed: int) -> list[Tensor]:
    """Masks (n,), True for images held out together, drawn from `seed`; none where none can be.

    One mask, of about a tenth of each class, where that are at least `FEW_HELD_OUT` images. Else
    up to `FOLDS`, which hold every image out once, but for the only one of a class. Of each class
    some images stay in training every time.
    """
    if not can_hold_out(labels):
        return []
    if round(HELD_OUT * len(labels)) >= FEW_HELD_OUT:
        return [hold_out(labels, HELD_OUT, seed)]
    numbers = fold_numbers(labels, FOLDS, seed)
    parts = [numbers == fold for fold in range(FOLDS)]
    return [part for part in parts if bool(part.any())]


def fold_numbers(labels: Tensor, folds: int, seed: int) -> Tensor:
    """The fold (n,), from 0, that each image is held out in; -1 for the only image of a class.

    The images of a class are spread evenly over `folds` >= 2, at random by `seed`; the next class
    goes on where the one before ended, so that all folds are of nearly one size.
    """
    generator = torch.Generator().manual_seed(seed)
    found = torch.full((len(labels),), -1)
    start = 0
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            continue
        order = members[torch.randperm(len(members), generator=generator)]
        found[order] = (torch.arange(len(members)) + start) % folds
        start += len(members)
    return found


def tried_on(
    parts: Sequence[Tensor], grid_of: Callable[[Tensor], list[GridPoint]]
) -> list[GridPoint]:
    """The points of a grid, each with the share of all held-out images that it got right.

    `grid_of` gives the same settings, in the same order, for each of the masks.
    """
    grids = [grid_of(part) for part in parts]
    counts = [int(part.sum()) for part in parts]
    return [
        GridPoint(
            setting=points[0].setting,
            accuracy=sum(p.accuracy * n for p, n in zip(points, counts, strict=True)) / sum(counts),
            converged=all(point.converged for point in points),
        )
        for points in zip(*grids, strict=True)
    ]


def chosen_by(folds: int, images: int) -> str:
    """How a setting was chosen, in words; empty where it was not chosen."""
    if not images:
        return ""
    if folds > 1:
        return f"{folds}-fold cross-validation of {images:,} training images"
    return f"{images:,} held-out images"
