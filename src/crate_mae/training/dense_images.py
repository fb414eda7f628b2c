"""Which images and masks a run on masks trains on, validates with and is tested on."""

import logging
from dataclasses import dataclass
from typing import Any

from crate_mae.batches.config import VALIDATION_SEED
from crate_mae.batches.opening import named_validation
from crate_mae.common.progress import StartProgress
from crate_mae.dense.class_masks import DenseSource, check_values, counted_values
from crate_mae.dense.masks import encoded_masks
from crate_mae.models.mask_classes import MaskClasses
from crate_mae.sources.address import few, open_pair
from crate_mae.sources.base import ImageSource
from crate_mae.sources.splits import split_off
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.labelled_images import check_apart

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DenseImages:
    """The images of a run on masks, all of the same classes of pixels."""

    train: DenseSource
    val: DenseSource | None
    test: DenseSource
    classes: MaskClasses
    pixels: list[int]
    """Pixels of each class in the training masks, as they are stored."""
    ignored: float
    """The share of the pixels of the training masks that do not count."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class."""
        return self.classes.names

    def facts(self) -> dict[str, Any]:
        """Plain values for the run folder."""
        return {
            "classes": list(self.classes.names),
            "mask_values": list(self.classes.values),
            "ignored_values": list(self.classes.ignored),
            "pixels_per_class": self.pixels,
            "ignored_share": self.ignored,
            "test": {
                "source": self.test.address,
                "split": self.test.split,
                "images": len(self.test),
                "fingerprint": self.test.fingerprint(),
            },
        }


def open_dense(config: FinetuneConfig, *, progress: StartProgress | None = None) -> DenseImages:
    """The images and masks that a configuration names; every mask is read once.

    Raises FileNotFoundError for masks that are not there and ValueError for images that are
    tested or validated on twice, masks of other sizes than their images, masks that are none, and
    values that are no classes.
    """
    data, segment = config.data, config.segment
    masks = segment.masks_of("train")
    train, test = open_pair(
        data.source,
        train_split=data.split,
        test_address=data.test_source,
        test_split=data.test_split,
        limit=data.limit,
        test_limit=data.test_limit,
        reading=data.reading,
        labelled=False,
    )
    for part in (train, test):
        if not len(part):
            raise ValueError(f"{part.address} holds no images")
    train, val = _with_validation(config, train, test)
    named = data.val_source is not None or data.val_split is not None
    encoded = {
        "training": encoded_masks(train, masks),
        "test": encoded_masks(test, segment.masks_of("test")),
    }
    if val is not None:
        encoded["validation"] = encoded_masks(val, segment.masks_of("val") if named else masks)
    report = None if progress is None else progress("reading masks")
    counts = counted_values(encoded["training"], progress=report)
    classes = counts.classes(segment.choice)
    for part_name in ("validation", "test"):
        if part_name in encoded:
            check_values(encoded[part_name], classes)
    pixels = counts.of_classes(classes)
    if empty := [name for name, count in zip(classes.names, pixels, strict=True) if not count]:
        logger.warning("no training pixels of %s", few(empty))
    return DenseImages(
        train=DenseSource(train, encoded["training"], classes),
        val=None if val is None else DenseSource(val, encoded["validation"], classes),
        test=DenseSource(test, encoded["test"], classes),
        classes=classes,
        pixels=pixels,
        ignored=counts.ignored_share(classes),
    )


def _with_validation(
    config: FinetuneConfig, train: ImageSource, test: ImageSource
) -> tuple[ImageSource, ImageSource | None]:
    data = config.data
    if data.val_source is not None or data.val_split is not None:
        val = named_validation(data)
        check_apart(val, train=train, test=test)
        return train, val
    if data.val_share:
        return split_off(train, data.val_share, VALIDATION_SEED, data.val_limit)
    return train, None
