"""What every source of images offers, and what the openers share."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crate_mae.data.images import ImageFacts, Sample
from crate_mae.data.streams import MAX_LABEL

IMAGE_KEYS = ("image", "img", "pixel_values")
LABEL_KEYS = ("label", "labels", "fine_label", "class", "target", "targets")


class ImageSource(ABC):
    """Images that can be asked for by number; `load` decodes, everything else avoids it."""

    address: str
    split: str | None
    class_names: tuple[str, ...] | None
    """One name for each class number, or None when the images carry no labels."""

    @abstractmethod
    def __len__(self) -> int: ...

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

    def fingerprint(self) -> str:
        """A hex digest of names, labels and sizes (arrays in memory: of their values)."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for index in range(len(self)):
            digest.update(json.dumps(self._identity(index)).encode())
        for block in self._content():
            digest.update(block)
        return digest.hexdigest()

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
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


def checked_labels(
    labels: Any, class_names: Sequence[str] | None, address: str
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """The labels as integers with a name for every class, or None twice if nothing is labelled."""
    values = None if labels is None else np.asarray(labels)
    if values is None or values.size == 0 or int(values.max()) < 0:
        return None, None
    highest = int(values.max())
    if highest > MAX_LABEL:
        raise ValueError(f"{address} has a label {highest}, above the limit of {MAX_LABEL}")
    names = tuple(map(str, range(highest + 1))) if class_names is None else tuple(class_names)
    if highest >= len(names):
        raise ValueError(f"{address} has a label {highest} but only {len(names)} class names")
    return values.astype(np.int64), names


def existing_path(rest: str, scheme: str) -> Path:
    path = Path(rest).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{scheme}:{rest}: there is no file or folder {path}")
    return path
