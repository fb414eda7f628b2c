"""Multi-crop batches: several views of each image, for training without masks and labels.

Each view depends on (seed, epoch, sample, view) alone, so that more or fewer local crops leave the
others as they were.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from crate_mae.batches.assembly import Numbered, SampleBatch
from crate_mae.batches.config import VALIDATION_SEED, Crops
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.on_device import DeviceMaker
from crate_mae.batches.transforms import (
    changed_by_type,
    normalised_batch,
    on_unit_scale,
    resized_crop,
)
from crate_mae.common.randomness import VIEW, seed_globally
from crate_mae.models.config import ModelConfig, Preprocess, size_fault
from crate_mae.models.simdino import GLOBAL_VIEWS
from crate_mae.sources.images import to_channels

JITTER = (0.4, 0.4, 0.2, 0.1)
"""Brightness, contrast, saturation and hue of DINO's change of colour."""
JITTERED, FIRST_BLURRED, SECOND_BLURRED, LOCAL_BLURRED = 0.8, 1.0, 0.1, 0.5
"""Shares of views that DINO changes in colour and blurs."""
LEAST_BLUR = 0.1
"""Smallest deviation of a blur, in pixels."""


class CropBatch(SampleBatch):
    """A batch of views; float32, normalised."""

    global_crops: Tensor
    """(2, B, C, H, W)."""
    local_crops: Tensor
    """(n, B, C, h, w); n may be 0."""


@dataclass(frozen=True, kw_only=True)
class CropMaker:
    """Turns samples into batches of views."""

    crops: Crops
    preprocess: Preprocess
    seed: int

    def __call__(
        self, samples: list[Numbered], broken: list[tuple[str, str]], step: int = 0
    ) -> CropBatch:
        """The batch of (epoch, index, sample) triples; global random state is left as it was.

        Raises ValueError naming an image whose channels do not fit.
        """
        images = []
        for _, _, sample in samples:
            try:
                images.append(to_channels(sample.image, self.preprocess.channels))
            except ValueError as error:
                raise ValueError(f"{sample.name}: {error}") from error
        keys = [(self.seed, epoch, index) for epoch, index, _ in samples]
        transforms = view_transforms(self.crops, self.preprocess.size)
        views = []
        with torch.random.fork_rng(devices=[]):
            for view, transform in enumerate(transforms):
                changed = []
                for image, key in zip(images, keys, strict=True):
                    seed_globally(VIEW, *key, view)
                    changed.append(on_unit_scale(image, transform, self.preprocess))
                views.append(normalised_batch(changed, self.preprocess))
        nothing = torch.empty(0, len(images), self.preprocess.channels, *self.crops.local_hw)
        return CropBatch(
            global_crops=torch.stack(views[:GLOBAL_VIEWS]),
            local_crops=torch.stack(views[GLOBAL_VIEWS:]) if views[GLOBAL_VIEWS:] else nothing,
            index=torch.tensor([index for _, index, _ in samples]),
            names=[sample.name for _, _, sample in samples],
            broken=broken,
        )


@dataclass(frozen=True, kw_only=True)
class CropBatches:
    """Batches of views of images; those for validation are always the same ones."""

    crops: Crops = field(default_factory=Crops)

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError when local crops or changes of colour do not suit the model."""
        crops, (height, width) = self.crops, model.image_hw
        fault = size_fault(crops.local_hw, model.patch_hw)
        if fault:
            raise ValueError(f"crops.local_size: {fault}")
        if crops.local_hw[0] > height or crops.local_hw[1] > width:
            raise ValueError(
                f"crops.local_size {crops.local_hw[0]}x{crops.local_hw[1]} is above"
                f" model.image_size {height}x{width}: local crops are the smaller ones"
            )
        if model.channels not in (1, 3) and (crops.jitter or crops.grey):
            raise ValueError(
                "crops.jitter and crops.grey change the colour of images of 1 or 3 channels, not"
                f" {model.channels}: set both to 0"
            )

    def training_maker(self, data: ImageDataModule) -> CropMaker:
        """What turns training samples into batches of random views."""
        return CropMaker(crops=self.crops, preprocess=data.preprocess, seed=data.seed)

    def validation_maker(self, data: ImageDataModule) -> CropMaker:
        """What turns validation samples into batches: random views that never change."""
        return CropMaker(crops=self.crops, preprocess=data.preprocess, seed=VALIDATION_SEED)

    def device_maker(self, data: ImageDataModule) -> DeviceMaker:
        """Raise ValueError: views are not made on a device."""
        raise ValueError("data.on_device makes one view of an image, not several: leave it out")


def view_transforms(crops: Crops, size: tuple[int, int]) -> list[v2.Transform]:
    """The transform of each view, of images (C, H, W) of 8 bits or in [0, 1]; global ones first.

    They draw from torch's global generator. Global crops get the size (height, width) given.
    """
    first = _view(crops, size, crops.global_scale, blurred=FIRST_BLURRED)
    second = _view(crops, size, crops.global_scale, blurred=SECOND_BLURRED, solarised=True)
    local = _view(crops, crops.local_hw, crops.local_scale, blurred=LOCAL_BLURRED)
    return [first, second, *[local] * crops.local_views]


def _view(
    crops: Crops,
    size: tuple[int, int],
    scale: tuple[float, float],
    *,
    blurred: float,
    solarised: bool = False,
) -> v2.Transform:
    steps = [resized_crop(size, scale)]
    if crops.flip:
        steps.append(v2.RandomHorizontalFlip())
    if crops.jitter:
        jitter = v2.ColorJitter(*(crops.jitter * value for value in JITTER))
        steps.append(v2.RandomApply([jitter], p=JITTERED))
    if crops.grey:
        steps.append(v2.RandomGrayscale(crops.grey))
    # Reflection cannot reach further than the image itself.
    reach = min(math.ceil(2 * crops.blur), min(size) - 1)
    if reach:
        blur = v2.GaussianBlur(2 * reach + 1, (min(LEAST_BLUR, crops.blur), crops.blur))
        steps.append(v2.RandomApply([blur], p=blurred))
    if solarised and crops.solarise:
        of_bytes, of_floats = (v2.RandomSolarize(t, p=crops.solarise) for t in (128, 0.5))
        steps.append(v2.Lambda(partial(changed_by_type, of_bytes=of_bytes, of_floats=of_floats)))
    return v2.Compose(steps)
