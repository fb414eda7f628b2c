"""Labelled batches for supervised training: images, class targets, stochastic depth.

Like masked ones, what a batch holds depends on (seed, epoch, sample) alone. Mixing takes images in
pairs, neighbours in the order of the epoch, so the pairs too are the same however many devices and
accumulation steps share a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from crate_mae.batches.assembly import ImageBatch, Numbered, transformed_images
from crate_mae.batches.config import VALIDATION_SEED, SupervisedAugment
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.on_device import DeviceMaker
from crate_mae.batches.on_device_transforms import mixing_on_device
from crate_mae.batches.transforms import fit, mixing, supervised_transform
from crate_mae.common.randomness import DEPTH, ERASE, MIX, keyed_generator, seed_globally
from crate_mae.models.config import ModelConfig, Preprocess


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

    def __call__(
        self, samples: list[Numbered], broken: list[tuple[str, str]], step: int = 0
    ) -> LabelledBatch:
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
        """Raise ValueError when an augmentation does not take the model's channels."""
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


def _label(label: int | None, name: str) -> int:
    if label is None:
        raise ValueError(f"{name} has no label: leave it out")
    return label
