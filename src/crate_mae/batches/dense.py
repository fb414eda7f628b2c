"""Batches of images with a class for every pixel, both changed alike.

Like all others, what a batch holds depends on (seed, epoch, sample) alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from crate_mae.batches.assembly import ImageBatch, Numbered
from crate_mae.batches.config import VALIDATION_SEED, Augment
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.labelled import drop_rates, keep_factors
from crate_mae.batches.on_device import DeviceMaker
from crate_mae.batches.transforms import dense_fit, dense_transform, normalised_batch
from crate_mae.common.randomness import AUGMENT, seed_globally
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.sources.images import Sample, to_channels

JointTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of an image (C, H, W) and its mask (H, W) of class numbers."""


class DenseBatch(ImageBatch):
    """A batch for training on masks."""

    masks: Tensor
    """(B, H, W) int64, the class number of every pixel, `VOID` where nothing counts."""
    keep: Tensor | None
    """(layers, B) as in `LabelledBatch`."""


@dataclass(frozen=True, kw_only=True)
class DenseMaker:
    """Turns samples that have masks into batches."""

    transform: JointTransform
    preprocess: Preprocess
    seed: int
    drop_rates: tuple[float, ...] | None = None
    """For each layer, the probability that an image leaves out the MSSA step."""

    def __call__(
        self, samples: list[Numbered], broken: list[tuple[str, str]], step: int = 0
    ) -> DenseBatch:
        """The batch of (epoch, index, sample) triples; global random state is left as it was."""
        pairs = []
        with torch.random.fork_rng(devices=[]):
            for epoch, index, sample in samples:
                seed_globally(AUGMENT, self.seed, epoch, index)
                pairs.append(self.transform(*image_and_mask(sample, self.preprocess.channels)))
        keys = [(self.seed, epoch, index) for epoch, index, _ in samples]
        return DenseBatch(
            images=normalised_batch([image for image, _ in pairs], self.preprocess),
            masks=torch.stack([mask for _, mask in pairs]).long(),
            keep=None if self.drop_rates is None else keep_factors(self.drop_rates, keys),
            index=torch.tensor([index for _, index, _ in samples]),
            names=[sample.name for _, _, sample in samples],
            broken=broken,
        )


@dataclass(frozen=True, kw_only=True)
class DenseBatches:
    """Batches of images with masks; those for validation are fitted alone, never changed."""

    augment: Augment
    drop_path: float = 0.0
    """Probability of leaving out the last layer's MSSA step; it grows evenly from 0 at the first.
    """

    def check(self, model: ModelConfig) -> None:
        """Do nothing: crops and flips suit every model."""

    def training_maker(self, data: ImageDataModule) -> DenseMaker:
        """What turns training samples into batches: crops and flips of image and mask alike."""
        return DenseMaker(
            transform=dense_transform(self.augment, data.preprocess.size),
            preprocess=data.preprocess,
            seed=data.seed,
            drop_rates=drop_rates(self.drop_path, data.model_config.depth)
            if self.drop_path
            else None,
        )

    def device_maker(self, data: ImageDataModule) -> DeviceMaker:
        """Raise ValueError: masks are not kept on a device."""
        raise ValueError("data.on_device has no masks: leave it out")

    def validation_maker(self, data: ImageDataModule) -> DenseMaker:
        """What turns validation samples into batches: the fixed fit alone."""
        return DenseMaker(
            transform=partial(dense_fit, size=data.size),
            preprocess=data.preprocess,
            seed=VALIDATION_SEED,
        )


def image_and_mask(sample: Sample, channels: int) -> tuple[Tensor, Tensor]:
    """The image (C, H, W) of a sample and its mask (H, W); ValueError where it has none."""
    if sample.mask is None:
        raise ValueError(f"{sample.name} has no mask: leave it out")
    try:
        return to_channels(sample.image, channels), sample.mask
    except ValueError as error:
        raise ValueError(f"{sample.name}: {error}") from error
