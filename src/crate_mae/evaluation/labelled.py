"""Features with labels: checked before they are measured, cut down to a few per class."""

from dataclasses import replace

import torch
from torch import Tensor

from crate_mae.data.few_shot import few_shot_indices
from crate_mae.evaluation.features import Features


def few_shot(features: Features, shots: int, seed: int) -> Features:
    """The rows of `shots` labelled images of every class, drawn by the seed.

    Raises ValueError when a class has fewer, naming it, and for unlabelled features.
    """
    labels = [None] * len(features.values) if features.labels is None else features.labels.tolist()
    chosen = few_shot_indices(labels, shots, seed)
    return replace(
        features,
        values=features.values[chosen],
        labels=torch.tensor([labels[i] for i in chosen]),
        names=[features.names[i] for i in chosen],
    )


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
            " extract with pool 'mean', 'cls' or 'both'"
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
