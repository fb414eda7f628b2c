"""Masked batches for pre-training."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from crate_mae.batches.assembly import BatchMaker
from crate_mae.batches.config import VALIDATION_SEED, Masking
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.on_device import DeviceMaker
from crate_mae.batches.transforms import fit, training_transform
from crate_mae.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class MaskedBatches:
    """Masked batches for pre-training; validation masks never change."""

    masking: Masking = field(default_factory=Masking)

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError when a mask keeps or removes no patch of the model's grid."""
        self.masking.check(model.grid)

    def training_maker(self, data: ImageDataModule) -> BatchMaker:
        """What turns training samples into batches: random transform and mask."""
        transform = training_transform(data.config.augment, data.size)
        return _maker(data, transform, self.masking, data.seed)

    def validation_maker(self, data: ImageDataModule) -> BatchMaker:
        """What turns validation samples into batches: fixed transform, fixed masks."""
        masking, transform = self.masking.of_validation, partial(fit, size=data.size)
        return _maker(data, transform, masking, VALIDATION_SEED)

    def device_maker(self, data: ImageDataModule) -> DeviceMaker:
        """What turns images on a device into training batches there: random transform and mask."""
        return DeviceMaker(
            augment=data.config.augment,
            preprocess=data.preprocess,
            seed=data.seed,
            masking=self.masking,
            grid=data.model_config.grid,
        )


def _maker(data: ImageDataModule, transform: Any, masking: Masking, seed: int) -> BatchMaker:
    return BatchMaker(
        transform=transform,
        preprocess=data.preprocess,
        masking=masking,
        grid=data.model_config.grid,
        seed=seed,
    )
