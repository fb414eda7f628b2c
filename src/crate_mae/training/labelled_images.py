"""Which labelled images a supervised run trains on, validates with and is tested on."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from crate_mae.batches.config import VALIDATION_SEED, LabelledDataConfig
from crate_mae.batches.opening import named_validation
from crate_mae.sources.address import (
    CHOICE_SEED,
    open_pair,
    with_classes_of,
)
from crate_mae.sources.base import ImageSource, labels_of, subset
from crate_mae.sources.splits import few_shot_indices, hold_out, share_indices
from crate_mae.sources.torch_datasets import as_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """The images of a supervised run, all of the same classes."""

    train: ImageSource
    val: ImageSource | None
    test: ImageSource
    train_labels: Tensor
    """(n,) int64, of the training images."""
    all_labels: Tensor
    """(N,) int64, before the few labels that train were chosen, and others held out."""
    class_names: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Plain values for the run folder."""
        counts = torch.bincount(self.train_labels, minlength=len(self.class_names))
        return {
            "classes": list(self.class_names),
            "labels_per_class": counts.tolist(),
            "test": {
                "source": self.test.address,
                "split": self.test.split,
                "images": len(self.test),
                "fingerprint": self.test.fingerprint(),
            },
        }


def open_labelled(
    config: LabelledDataConfig,
    *,
    seed: int,
    dataset: Dataset[Any] | ImageSource | None = None,
    test_dataset: Dataset[Any] | ImageSource | None = None,
) -> LabelledImages:
    """The images that a configuration names; Python datasets replace its sources.

    First the labels that the run may use are chosen (`shots` or `share`, by the seed), then
    validation images are held out of those: never of the test images. Raises ValueError for
    unlabelled images, a single class, classes that differ and few-shot sets that cannot be drawn.
    """
    train, test = _pair(config, dataset, test_dataset)
    assert train.class_names is not None
    all_labels = torch.tensor(labels_of(train))
    train = _chosen(train, config, seed)
    val = None
    if config.val_source is not None or config.val_split is not None:
        if dataset is not None and config.val_source is None:
            raise ValueError(
                f"a Python dataset has no split {config.val_split!r}: name data.val_source as well,"
                " or hold out a data.val_share"
            )
        val = _validation(config, train, test)
    elif config.val_share:
        share = config.val_share
        if config.val_limit is not None:
            share = min(share, config.val_limit / len(train))
        held = hold_out(torch.tensor(labels_of(train)), share, VALIDATION_SEED)
        everything = train
        train = subset(everything, (~held).nonzero().flatten().tolist())
        val = subset(everything, held.nonzero().flatten().tolist())
    labels = torch.tensor(labels_of(train))
    if len(torch.unique(labels)) < 2:
        raise ValueError(
            f"all training images of {train.address} are of one class: a classifier needs two"
        )
    assert train.class_names is not None
    _warn_of_missing(labels, train.class_names)
    return LabelledImages(
        train=train,
        val=val,
        test=test,
        train_labels=labels,
        all_labels=all_labels,
        class_names=train.class_names,
    )


def _pair(
    config: LabelledDataConfig,
    dataset: Dataset[Any] | ImageSource | None,
    test_dataset: Dataset[Any] | ImageSource | None,
) -> tuple[ImageSource, ImageSource]:
    if (dataset is None) != (test_dataset is None):
        raise ValueError("a Python dataset needs test images beside it: give both or neither")
    if dataset is not None and test_dataset is not None:
        train = as_source(dataset, config.limit, CHOICE_SEED)
        test = as_source(test_dataset, config.test_limit, CHOICE_SEED)
        test = with_classes_of(train, test, "test")
    else:
        train, test = open_pair(
            config.source,
            train_split=config.split,
            test_address=config.test_source,
            test_split=config.test_split,
            limit=config.limit,
            test_limit=config.test_limit,
            reading=config.reading,
        )
    if not len(train) or not len(test):
        raise ValueError(f"{(test if len(train) else train).address} holds no images")
    labels_of(test)
    if len(train.class_names or ()) < 2:
        raise ValueError(f"{train.address} has one class, {train.class_names}: two are needed")
    return train, test


def _chosen(train: ImageSource, config: LabelledDataConfig, seed: int) -> ImageSource:
    labels = labels_of(train)
    if config.shots is not None:
        return subset(train, few_shot_indices(labels, config.shots, seed, train.class_names))
    if config.share is not None and config.share < 1:
        return subset(train, share_indices(torch.tensor(labels), config.share, seed))
    return train


def _validation(config: LabelledDataConfig, train: ImageSource, test: ImageSource) -> ImageSource:
    val = with_classes_of(train, named_validation(config, labelled=True), "validation")
    check_apart(val, train=train, test=test)
    labels_of(val)
    return val


def check_apart(val: ImageSource, *, train: ImageSource, test: ImageSource) -> None:
    """Raise ValueError where validation images would be training or test images."""
    for other, what in ((test, "test"), (train, "training")):
        same = val.split == other.split or "all" in (val.split, other.split)
        if val.address == other.address and same:
            raise ValueError(
                f"validation images would be {what} images ({val.address} {val.split}): name"
                " another data.val_split, or data.val_share to hold out training images"
            )


def _warn_of_missing(labels: Tensor, names: tuple[str, ...]) -> None:
    present = set(labels.tolist())
    missing = [name for number, name in enumerate(names) if number not in present]
    if missing:
        more = f" and {len(missing) - 5} more" if missing[5:] else ""
        logger.warning("no training images of %s%s", ", ".join(missing[:5]), more)
