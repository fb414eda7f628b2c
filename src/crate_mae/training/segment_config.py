"""The settings of training on masks: which masks, which classes, which head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from crate_mae.models.depict import HeadName
from crate_mae.models.mask_classes import ClassChoice


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """What a run of task segment trains on, and its head."""

    masks: str | None = None
    """Masks of the training images: a folder of files named as the images are, or column:NAME, a
    column of the parquet files."""
    val_masks: str | None = None
    """Masks of images that data.val_source or data.val_split names; as `masks` if not given."""
    test_masks: str | None = None
    """Masks of the test images; as `masks` if not given."""
    classes: int | list[int] | None = None
    """How many classes there are, whose mask values then are 0, 1, ...; or the mask value of each;
    those that occur in the training masks if not given."""
    class_names: list[str] | None = None
    """A name for each class; its mask value if not given."""
    ignore: int | list[int] | None = None
    """Mask values that do not count, [] for none; 255 if not given, unless it is a class."""
    head: HeadName = "linear"
    """What tells classes apart: one linear layer on each patch token, or DEPICT's decoder, in which
    class embeddings are compressed with the patches or look at them."""
    freeze: bool = False
    """Train the head alone; the encoder stays as it is."""

    def __post_init__(self) -> None:
        if self.head not in get_args(HeadName):
            raise ValueError(
                f"segment.head must be one of {', '.join(get_args(HeadName))}, not {self.head!r}"
            )
        try:
            self.choice  # noqa: B018 - what it cannot be is told here
        except ValueError as error:
            raise ValueError(f"segment.classes, class_names and ignore: {error}") from error

    @property
    def choice(self) -> ClassChoice:
        """The classes as far as they are said."""
        ignored: Sequence[int] | None
        ignored = [self.ignore] if isinstance(self.ignore, int) else self.ignore
        return ClassChoice(classes=self.classes, names=self.class_names, ignored=ignored)

    def masks_of(self, part: str) -> str:
        """Where the masks of "train", "val" or "test" images lie; ValueError if it is not said."""
        own = {"val": self.val_masks, "test": self.test_masks}.get(part)
        if own is None and self.masks is None:
            raise ValueError(
                "training on masks needs to know where they lie: give segment.masks, a folder of"
                " files named as the images are, or column:NAME of the parquet files"
            )
        return own or str(self.masks)
