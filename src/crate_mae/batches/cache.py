"""Small sets decoded once and kept in memory."""

import logging

import torch
from torch import Tensor

from crate_mae.common.progress import Progress
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage

logger = logging.getLogger(__name__)


class CachedSource(ImageSource):
    """A source whose readable images lie decoded in memory; the others are listed in `broken`."""

    def __init__(self, source: ImageSource, *, progress: Progress | None = None) -> None:
        self.address, self.split = source.address, source.split
        self.class_names, self.found = source.class_names, source.found
        self.source = source
        self.broken: list[tuple[str, str]] = []
        self._indices: list[int] = []
        self._labels: list[int | None] = []
        self._masks: list[Tensor | None] = []
        images: list[Tensor] = []
        for index, sample in enumerate(source.samples()):
            if isinstance(sample, Sample):
                images.append(sample.image)
                self._labels.append(sample.label)
                self._masks.append(sample.mask)
                self._indices.append(index)
            else:
                self.broken.append((sample.name, sample.reason))
            if progress is not None:
                progress(index + 1, len(source))
        alike = len({(image.shape, image.dtype) for image in images}) == 1
        # One tensor rather than many: worker processes then share its memory untouched.
        self._images: Tensor | list[Tensor] = torch.stack(images) if alike else images

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def stacked(self) -> Tensor | None:
        """The images in one tensor (n, C, H, W), or None where their shapes or types differ."""
        return self._images if isinstance(self._images, Tensor) else None

    def load(self, index: int) -> Sample:
        """The sample of an index, from memory."""
        return Sample(
            image=self._images[index],
            label=self.label(index),
            name=self.name(index),
            mask=self._masks[index],
        )

    def name(self, index: int) -> str:
        """The name of an image."""
        return self.source.name(self._indices[index])

    def label(self, index: int) -> int | None:
        """The label of an image, or None."""
        return self._labels[index]

    def facts(self, index: int) -> ImageFacts:
        """Mode and size of an image as stored."""
        return self.source.facts(self._indices[index])

    def fingerprint(self) -> str:
        """The fingerprint of the source behind."""
        return self.source.fingerprint()


def decoded_bytes(source: ImageSource, *, probe: int = 64) -> int:
    """About how many bytes a source takes decoded, from the headers of evenly spread images."""
    count = len(source)
    total = known = 0
    for index in range(0, count, max(1, count // probe)):
        try:
            facts = source.facts(index)
        except UnreadableImage:
            continue
        total += facts.height * facts.width * _bytes_per_pixel(facts.mode)
        known += 1
    return total * count // known if known else 0


def _bytes_per_pixel(mode: str) -> int:
    """Bytes of a decoded pixel: modes are Pillow's, or like "5 x uint16" for arrays."""
    channels, cross, dtype = mode.partition(" x ")
    if cross:
        return int(channels) * (1 if dtype == "uint8" else 4)
    if mode[0] in "IF":
        return 4
    return 1 if mode in ("1", "L", "LA", "La") else 3
