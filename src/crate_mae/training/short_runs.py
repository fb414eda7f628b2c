"""What a recipe becomes where there are too few images for it: adapted, and said."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.opening import TooFewImagesError
from crate_mae.training.config import RunConfig

STEPS_AN_EPOCH = 4
"""Optimiser steps that an epoch should have: with one, a shuffled epoch is no more than a batch."""

ConfigT = TypeVar("ConfigT", bound=RunConfig)

logger = logging.getLogger(__name__)


def fitted_to_images(config: ConfigT, images: int, shares: int) -> ConfigT:
    """The configuration with a batch that so many training images fill; itself where they do.

    The batch becomes a power of two times `shares` (devices x accumulated batches) that gives
    `STEPS_AN_EPOCH` steps an epoch. The learning rate falls with the root of the batch, as AdamW's
    does (Malladi et al., "On the SDEs and scaling rules for adaptive gradient algorithms", 2022),
    not in proportion as `base_lr` is scaled: a tenth of the batch would otherwise hardly learn.
    What is changed is logged. Where not even `shares` images are there, nothing can be changed.
    """
    old = config.optim
    if images >= old.batch_size or images < shares:
        return config
    batch = shares
    while batch * 2 <= min(images // STEPS_AN_EPOCH, old.batch_size):
        batch *= 2
    base = old.base_lr * (old.batch_size / batch) ** 0.5
    new = replace(old, batch_size=batch, base_lr=float(f"{base:.3g}"))
    logger.warning(
        "%d training images do not fill a batch of %d: optim.batch_size is %d and optim.base_lr"
        " %.3g here (the rate falls from %.3g to %.3g, with the root of the batch)",
        images, old.batch_size, batch, new.base_lr, old.peak_lr, new.peak_lr,
    )  # fmt: skip
    return replace(config, optim=new)


def opened_to_fit(
    config: ConfigT, make: Callable[[ConfigT], ImageDataModule], *, world_size: int, resume: bool
) -> tuple[ConfigT, ImageDataModule]:
    """(A configuration whose batch the images fill, what loads them so, open).

    `make` makes that of a configuration; it is asked again where `fitted_to_images` changes it. A
    run that is resumed is never changed. Raises what opening raises.
    """
    data = make(config)
    try:
        data.open()
    except TooFewImagesError as error:
        shares = world_size * config.trainer.accumulate
        smaller = fitted_to_images(config, error.images, shares)
        if resume or smaller is config:
            raise
        config, data = smaller, make(smaller)
        data.open()
    return config, data
