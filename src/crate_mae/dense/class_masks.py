"""Masks that number classes: read beside images, checked whole before anything is trained on."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from crate_mae.common.progress import Progress
from crate_mae.dense.masks import encoded_masks, numbers_classes
from crate_mae.models.mask_classes import MOST_VALUE, VOID, ClassChoice, MaskClasses, listed
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import (
    ImageData,
    ImageFacts,
    Sample,
    UnreadableImage,
    decode_class_values,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValueCounts:
    """How many pixels of masks have which value."""

    pixels: Tensor
    """(MOST_VALUE + 2,) int64."""
    beside_void: Tensor
    """(VOID + 1,) int64, of masks that hold `VOID` beside other values above 0."""

    @property
    def values(self) -> tuple[int, ...]:
        """The values that occur, ascending."""
        return tuple(self.pixels.nonzero().flatten().tolist())

    def classes(self, choice: ClassChoice) -> MaskClasses:
        """The classes of a choice; raises as `ClassChoice.of`."""
        return choice.of(self.values, beside_void=numbers_classes(self.beside_void))

    def of_classes(self, classes: MaskClasses) -> list[int]:
        """Pixels of each class."""
        return [int(self.pixels[value]) for value in classes.values]

    def ignored_share(self, classes: MaskClasses) -> float:
        """The share of all pixels that do not count."""
        ignored = sum(int(self.pixels[value]) for value in classes.ignored)
        return ignored / max(1, int(self.pixels.sum()))


class DenseSource(ImageSource):
    """Images with a mask that numbers the classes of their pixels beside each; no other labels."""

    def __init__(
        self, source: ImageSource, masks: Mapping[str, ImageData], classes: MaskClasses
    ) -> None:
        self.address, self.split, self.found = source.address, source.split, source.found
        self.class_names = None
        self.source, self.masks, self.classes = source, masks, classes

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Sample:
        """The image and its mask of class numbers (H, W) uint8, `VOID` where nothing counts."""
        sample = self.source.load(index)
        if sample.name not in self.masks:
            raise UnreadableImage(sample.name, "its header could not be read, so its mask was not")
        values = _decoded(self.masks[sample.name], sample.name)
        height, width = sample.image.shape[-2:]
        if values.shape != (height, width):
            raise UnreadableImage(sample.name, "its mask has another size now")
        return Sample(
            image=sample.image,
            label=None,
            name=sample.name,
            mask=class_numbers(values, self.classes, sample.name),
        )

    def name(self, index: int) -> str:
        """The name of an image."""
        return self.source.name(index)

    def label(self, index: int) -> int | None:
        """None: classes are of pixels."""
        return None

    def facts(self, index: int) -> ImageFacts:
        """Mode and size of an image as stored."""
        return self.source.facts(index)

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        name, *rest = self.source._identity(index)
        mask = self.masks.get(str(name))
        size = mask.stat().st_size if isinstance(mask, Path) else len(mask or b"")  # type: ignore[arg-type]
        return name, *rest, size

    def _content(self) -> Iterator[bytes]:
        return self.source._content()


def class_numbers(values: Tensor, classes: MaskClasses, name: str) -> Tensor:
    """Class numbers (H, W) uint8 of mask values (H, W); `VOID` for those that do not count.

    Raises UnreadableImage for a value that is neither a class nor ignored.
    """
    table = torch.full((MOST_VALUE + 2,), -1, dtype=torch.int16)
    table[list(classes.values)] = torch.arange(len(classes.values), dtype=torch.int16)
    table[list(classes.ignored)] = VOID
    numbers = table[values]
    if bool((numbers < 0).any()):
        strange = sorted(set(values[numbers < 0].tolist()))
        raise UnreadableImage(name, _strange(strange, classes))
    return numbers.to(torch.uint8)


def mask_values(numbers: Tensor, classes: MaskClasses) -> Tensor:
    """Mask values (H, W), int64, of class numbers (H, W), none of which is `VOID`."""
    return torch.tensor(classes.values)[numbers.long()]


def counted_values(
    masks: Mapping[str, ImageData], *, progress: Progress | None = None
) -> ValueCounts:
    """How many pixels of so many masks, by the names of their images, have which value.

    Every mask is decoded. Raises ValueError for one that cannot be, or holds colours.
    """
    pixels = torch.zeros(MOST_VALUE + 2, dtype=torch.int64)
    beside = torch.zeros(VOID + 1, dtype=torch.int64)
    for done, (name, mask) in enumerate(masks.items(), start=1):
        of_mask = torch.bincount(_read(mask, name).flatten(), minlength=MOST_VALUE + 2)
        pixels += of_mask
        if bool(of_mask[VOID]) and bool(of_mask[1:VOID].any()):
            beside += of_mask[: VOID + 1]
        if progress is not None:
            progress(done, len(masks))
    return ValueCounts(pixels=pixels, beside_void=beside)


def check_values(
    masks: Mapping[str, ImageData], classes: MaskClasses, *, progress: Progress | None = None
) -> None:
    """Raise ValueError naming a mask that cannot be read, or whose values are no classes."""
    for done, (name, mask) in enumerate(masks.items(), start=1):
        try:
            class_numbers(_read(mask, name), classes, _place(mask, name))
        except UnreadableImage as error:
            raise ValueError(f"the mask {error}") from error
        if progress is not None:
            progress(done, len(masks))


def with_ignored(classes: MaskClasses, value: int) -> MaskClasses:
    """The classes, of which one mask value does not count; -1: every pixel counts.

    Raises ValueError for the value of a class.
    """
    return replace(classes, ignored=() if value < 0 else (value,))


def dense_source(
    source: ImageSource, masks: str | Path, classes: MaskClasses, *, checked: bool = True
) -> DenseSource:
    """A source with its masks of known classes; raises as `encoded_masks` and `check_values`."""
    encoded = encoded_masks(source, masks)
    if checked:
        check_values(encoded, classes)
    return DenseSource(source, encoded, classes)


def _read(mask: ImageData, name: str) -> Tensor:
    try:
        return _decoded(mask, _place(mask, name))
    except UnreadableImage as error:
        raise ValueError(f"the mask {error}") from error


def _decoded(mask: ImageData, name: str) -> Tensor:
    values = decode_class_values(mask, name)
    if int(values.max()) > MOST_VALUE or int(values.min()) < 0:
        raise UnreadableImage(name, f"it holds values beyond 0 to {MOST_VALUE}")
    return values


def _place(mask: ImageData, name: str) -> str:
    return str(mask) if isinstance(mask, Path) else f"of {name}"


def _strange(values: Sequence[int], classes: MaskClasses) -> str:
    return (
        f"it holds the values {listed(values)}, which are neither classes"
        f" ({listed(classes.values)}) nor ignored ({listed(classes.ignored) or 'none'}): name"
        " them in segment.classes, or leave them out by segment.ignore (segment: --ignore)"
    )
