"""What every source of images offers, parts of a source, and what the openers share."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crate_mae.sources.found import Found
from crate_mae.sources.images import (
    ImageData,
    ImageFacts,
    Sample,
    UnreadableImage,
    decode_image,
    probe_image,
)

IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "picture", "jpg", "png", "x")
"""What data sets call their images; the first one present is taken."""
LABEL_KEYS = (
    "label", "labels", "fine_label", "class", "target", "targets", "class_name", "class_label",
    "label_name", "classname", "classes", "category", "category_name", "cls", "class_id",
    "category_id", "label_id", "y",
)  # fmt: skip
"""What data sets call their classes; the first one present is taken."""
MAX_LABEL = 1_000_000
"""The largest class number that is believed."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which images one reader takes, and in which order: by default all of them, as stored.

    Readers are the workers of every process; together they take each image of an epoch once.
    """

    seed: int = 0
    """With the epoch, fixes the order of shuffled images."""
    epoch: int = 0
    shuffle: bool = False
    """False for the order in which images are stored."""
    rank: int = 0
    """Which process this is, of `world_size`."""
    world_size: int = 1
    worker: int = 0
    """Which worker of its process this is, of `num_workers`."""
    num_workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and 0 <= self.worker < self.num_workers):
            raise ValueError(
                f"rank {self.rank} of {self.world_size} and worker {self.worker} of"
                f" {self.num_workers} do not exist"
            )

    @property
    def readers(self) -> int:
        """How many readers share the images."""
        return self.world_size * self.num_workers

    @property
    def place(self) -> int:
        """Which of the readers this is, from 0.

        Processes come before workers: a remainder then spreads over the processes evenly.
        """
        return self.worker * self.world_size + self.rank


WHOLE = Share()
"""All images of an epoch, as stored."""


class Source(ABC):
    """Images that can be counted and read one after the other."""

    address: str
    split: str | None
    class_names: tuple[str, ...] | None
    """One name for each class number, or None when the images carry no labels."""
    found: Found = Found()
    """What was met beside the images."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def samples(self) -> Iterator[Sample | UnreadableImage]:
        """Every image once, in the order stored; those that cannot be read as the reason why."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hex digest that changes with the images."""


class ImageSource(Source):
    """Images that can be asked for by number; `load` decodes, everything else avoids it."""

    decodes: bool = False
    """Whether every image is decoded by itself: work that several processes can share."""

    @abstractmethod
    def load(self, index: int) -> Sample:
        """The decoded image with label and name; raises UnreadableImage."""

    @abstractmethod
    def name(self, index: int) -> str:
        """A name that is unique in the source and does not depend on where the source lies."""

    @abstractmethod
    def label(self, index: int) -> int | None:
        """The class number, or None for an image without one."""

    @abstractmethod
    def facts(self, index: int) -> ImageFacts:
        """Mode and size, from the header where there is one; raises UnreadableImage."""

    def read(self, index: int) -> Sample | UnreadableImage:
        """What `load` gives, or the reason why it cannot."""
        try:
            return self.load(index)
        except UnreadableImage as error:
            return error

    def samples(self) -> Iterator[Sample | UnreadableImage]:
        """Every image once, in order; those that cannot be read as the reason why."""
        return map(self.read, range(len(self)))

    def fingerprint(self) -> str:
        """A hex digest of names, labels and sizes, and of values where sizes cannot tell.

        These are all values of arrays in memory and in small files, else parts of them.
        """
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for index in range(len(self)):
            digest.update(json.dumps(self._identity(index)).encode())
        for block in self._content():
            digest.update(block)
        return digest.hexdigest()

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        """What the fingerprint covers of an image."""
        return self.name(index), self.label(index)

    def _content(self) -> Iterator[bytes]:
        """What the fingerprint covers beside the entry of each image."""
        return iter(())


class LabelledSource(ImageSource):
    """A source whose labels are known beforehand; a negative label means none."""

    def __init__(
        self, address: str, split: str | None, labels: Any, class_names: Sequence[str] | None
    ) -> None:
        self.address, self.split = address, split
        self._labels, self.class_names = checked_labels(labels, class_names, address)

    def label(self, index: int) -> int | None:
        if self._labels is None or self._labels[index] < 0:
            return None
        return int(self._labels[index])


class EncodedSource(LabelledSource):
    """Images that are files, or bytes of files, and are decoded each time they are loaded."""

    decodes = True

    @abstractmethod
    def encoded(self, index: int) -> ImageData:
        """The file of an image, or its bytes; raises UnreadableImage where there are none."""

    def load(self, index: int) -> Sample:
        name = self.name(index)
        image = decode_image(self.encoded(index), name)
        return Sample(image=image, label=self.label(index), name=name)

    def facts(self, index: int) -> ImageFacts:
        return probe_image(self.encoded(index), self.name(index))


def checked_labels(
    labels: Any, class_names: Sequence[str] | None, address: str
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """The labels as integers with a name for every class, or None twice if nothing is labelled."""
    values = None if labels is None else np.asarray(labels)
    if values is None or values.size == 0 or int(values.max()) < 0:
        return None, None
    highest = int(values.max())
    if highest > MAX_LABEL:
        raise ValueError(
            f"{address} has a label {highest}, above the limit of {MAX_LABEL}: choose another"
            " column with --label-key, or none"
        )
    names = tuple(map(str, range(highest + 1))) if class_names is None else tuple(class_names)
    if highest >= len(names):
        raise ValueError(f"{address} has a label {highest} but only {len(names)} class names")
    return values.astype(np.int64), names


def labels_of(source: ImageSource) -> list[int]:
    """The class number of every image of a source; ValueError when some have none."""
    if source.class_names is None:
        raise ValueError(without_labels(source))
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


def without_labels(source: Source) -> str:
    """The words for a source that has no labels: why, where that is known, and what to do."""
    why = source.found.no_labels or "put images into one folder per class"
    return f"{source.address} has no labels: {why}"


def subset(source: ImageSource, indices: Sequence[int]) -> ImageSource:
    """The source cut down to these indices, in this order; names, labels and classes stay."""
    for index in indices:
        if not 0 <= index < len(source):
            raise ValueError(f"index {index} is outside {source.address} of {len(source)} images")
    return _Subset(source, np.asarray(indices, dtype=np.int64))


def random_subset(source: ImageSource, limit: int, seed: int = 0) -> ImageSource:
    """That many images of the source, drawn by the seed and kept in order; all if it has fewer."""
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if limit >= len(source):
        return source
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    return subset(source, sorted(order[:limit].tolist()))


class _Subset(ImageSource):
    """Some images of another source, which is never itself a subset."""

    _source: ImageSource
    _indices: np.ndarray

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        if isinstance(source, _Subset):
            indices = source._indices[indices]
            source = source._source
        self.address, self.split = source.address, source.split
        self.class_names, self.found = source.class_names, source.found
        self.decodes = source.decodes
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> Sample:
        return self._source.load(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def label(self, index: int) -> int | None:
        return self._source.label(int(self._indices[index]))

    def facts(self, index: int) -> ImageFacts:
        return self._source.facts(int(self._indices[index]))

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        return self._source._identity(int(self._indices[index]))

    def _content(self) -> Iterator[bytes]:
        return self._source._content()


def existing_path(rest: str, scheme: str) -> Path:
    """The file or folder that an address `scheme:rest` names; FileNotFoundError without one."""
    path = Path(rest).expanduser()
    if not path.exists():
        here = "" if path.is_absolute() else f" in the working directory {Path.cwd()}"
        raise FileNotFoundError(f"{scheme}:{rest}: there is no file or folder {path}{here}")
    return path
