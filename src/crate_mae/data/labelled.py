"""Labelled batches for supervised training: images, class targets, stochastic depth.

Like masked ones, what a batch holds depends on (seed, epoch, sample) alone. Mixing takes images in
pairs, neighbours in the order of the epoch, so the pairs too are the same however many devices and
accumulation steps share a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from crate_mae.data.batch_transforms import mixing_on_device
from crate_mae.data.batches import (
    DEPTH,
    ERASE,
    MIX,
    ImageBatch,
    Numbered,
    seed_globally,
    transformed_images,
)
from crate_mae.data.module import VALIDATION_SEED, DataConfig, ImageDataModule
from crate_mae.data.on_device import DeviceMaker
from crate_mae.data.sources import ImageSource
from crate_mae.data.transforms import SupervisedAugment, fit, mixing, supervised_transform
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.models.masks import keyed_generator


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig(DataConfig):
    """Which labelled images, how many of their labels are used, and which images test."""

    shots: int | None = None
    """Use this many labelled images of each class (few-shot), drawn by the seed."""
    share: float | None = None
    """Use this share of the labelled images of each class, such as 0.01, drawn by the seed."""
    val_share: float = 0.0
    """Share of the training images of each class held out for validation; 0 for none."""
    test_source: str | None = None
    """Address of the test images; the training source when not given."""
    test_split: str | None = None
    """Split that tests; "test", else "validation", else a held-out fifth when not given."""
    test_limit: int | None = None
    """At most this many test images (a fixed random choice)."""
    augment: SupervisedAugment = field(default_factory=SupervisedAugment)
    """Random changes to training images and labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, count in (("shots", self.shots), ("test_limit", self.test_limit)):
            if count is not None and count < 1:
                raise ValueError(f"data.{name} must be at least 1, not {count}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"data.share must be above 0 and at most 1, not {self.share}")
        if self.shots is not None and self.share is not None:
            raise ValueError("data.shots and data.share both say how many labels: give one")
        augment = self.augment
        if self.on_device and (augment.rand_augment or augment.erasing):
            raise ValueError(
                "data.on_device crops, flips and mixes alone: set augment.rand_augment and"
                " augment.erasing to 0, or leave it out"
            )


class LabelledBatch(ImageBatch):
    """A batch for supervised training."""

    labels: Tensor
    """(B,) int64, class numbers before mixing."""
    targets: Tensor
    """(B,) class numbers or, mixed, (B, classes) the share of each class."""
    keep: Tensor | None
    """(layers, B) factor of each layer's MSSA step for each image: 0, or 1 over the probability of
    being kept; None where every step stays."""


@dataclass(frozen=True, kw_only=True)
class LabelledMaker:
    """Turns labelled samples into batches."""

    transform: v2.Transform | Callable[[Tensor], Tensor]
    preprocess: Preprocess
    seed: int
    erase: v2.Transform | None = None
    """Applied to each normalised image."""
    mix: v2.Transform | None = None
    """Applied to each pair of images and labels."""
    drop_rates: tuple[float, ...] | None = None
    """For each layer, the probability that an image leaves out the MSSA step."""

    def __call__(self, samples: list[Numbered], broken: list[tuple[str, str]]) -> LabelledBatch:
        """The batch of (epoch, index, sample) triples; global random state is left as it was."""
        keys = [(self.seed, epoch, index) for epoch, index, _ in samples]
        images = transformed_images(samples, self.transform, self.preprocess, self.seed)
        labels = torch.tensor([_label(sample.label, sample.name) for _, _, sample in samples])
        targets = labels
        with torch.random.fork_rng(devices=[]):
            if self.erase is not None:
                images = self._erased(images, keys)
            if self.mix is not None:
                images, targets = self._mixed(images, labels, keys)
        return LabelledBatch(
            images=images,
            labels=labels,
            targets=targets,
            keep=None if self.drop_rates is None else keep_factors(self.drop_rates, keys),
            index=torch.tensor([index for _, index, _ in samples]),
            names=[sample.name for _, _, sample in samples],
            broken=broken,
        )

    def _erased(self, images: Tensor, keys: list[tuple[int, int, int]]) -> Tensor:
        assert self.erase is not None
        erased = []
        for image, key in zip(images, keys, strict=True):
            seed_globally(ERASE, *key)
            erased.append(self.erase(image))
        return torch.stack(erased)

    def _mixed(
        self, images: Tensor, labels: Tensor, keys: list[tuple[int, int, int]]
    ) -> tuple[Tensor, Tensor]:
        assert self.mix is not None
        pairs = []
        for first in range(0, len(images), 2):
            seed_globally(MIX, *keys[first])
            pairs.append(self.mix(images[first : first + 2], labels[first : first + 2]))
        return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])


@dataclass(frozen=True, kw_only=True)
class LabelledBatches:
    """Batches of images with class targets; those for validation are never changed or mixed."""

    augment: SupervisedAugment
    num_classes: int
    drop_path: float = 0.0
    """Probability of leaving out the last layer's MSSA step; it grows evenly from 0 at the first.
    """

    def check(self, model: ModelConfig) -> None:
        """Nothing; raises ValueError when an augmentation does not take the model's channels."""
        supervised_transform(self.augment, Preprocess.identity(model))

    def training_maker(self, data: ImageDataModule) -> LabelledMaker:
        """What turns training samples into batches: transform, erasing, mixing, dropped steps."""
        augment, depth = self.augment, data.model_config.depth
        return LabelledMaker(
            transform=supervised_transform(augment, data.preprocess),
            preprocess=data.preprocess,
            seed=data.seed,
            erase=v2.RandomErasing(augment.erasing, value="random") if augment.erasing else None,
            mix=mixing(augment, self.num_classes),
            drop_rates=drop_rates(self.drop_path, depth) if self.drop_path else None,
        )

    def device_maker(self, data: ImageDataModule) -> DeviceMaker:
        """What turns images on a device into training batches there: mixed, steps dropped."""
        depth = data.model_config.depth
        return DeviceMaker(
            augment=self.augment,
            preprocess=data.preprocess,
            seed=data.seed,
            mix=mixing_on_device(self.augment, self.num_classes),
            drop_rates=drop_rates(self.drop_path, depth) if self.drop_path else None,
        )

    def validation_maker(self, data: ImageDataModule) -> LabelledMaker:
        """What turns validation samples into batches: the fixed transform alone."""
        return LabelledMaker(
            transform=partial(fit, size=data.size),
            preprocess=data.preprocess,
            seed=VALIDATION_SEED,
        )


def drop_rates(last: float, depth: int) -> tuple[float, ...]:
    """For each of `depth` layers the probability of a dropped step: evenly from 0 up to `last`.

    A single layer has `last`. Source: stochastic depth (Huang et al., 2016), its linear decay rule.
    """
    if depth == 1:
        return (last,)
    return tuple(last * layer / (depth - 1) for layer in range(depth))


def keep_factors(rates: tuple[float, ...], keys: list[tuple[int, int, int]]) -> Tensor:
    """Factors (layers, B): 0 with each layer's rate, else 1 / (1 - rate), so the mean is 1.

    Drawn for each (seed, epoch, index) of `keys` on its own.
    """
    kept = 1 - torch.tensor(rates)
    draws = [torch.rand(len(rates), generator=keyed_generator(DEPTH, *key)) for key in keys]
    return torch.stack([(draw < kept) / kept for draw in draws], dim=1)


def labels_of(source: ImageSource) -> list[int]:
    """The class number of every image of a source; ValueError when some have none."""
    if source.class_names is None:
        raise ValueError(f"{source.address} has no labels: put images into one folder per class")
    labels: list[int] = []
    without: list[int] = []
    for index in range(len(source)):
        label = source.label(index)
        if label is None:
            without.append(index)
        else:
            labels.append(label)
    if without:
        raise ValueError(
            f"{len(without)} of {len(source)} images of {source.address} have no label, such as"
            f" {source.name(without[0])}: leave them out"
        )
    return labels


def _label(label: int | None, name: str) -> int:
    if label is None:
        raise ValueError(f"{name} has no label: leave it out")
    return label
