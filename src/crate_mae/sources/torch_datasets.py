"""Any map-style torch Dataset as a source of images."""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crate_mae.sources.arrays import array_facts, array_pixels, channel_planes
from crate_mae.sources.base import (
    IMAGE_KEYS,
    LABEL_KEYS,
    ImageSource,
    checked_labels,
    random_subset,
)
from crate_mae.sources.content_samples import spread
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage, decode_image, probe_image


def wrap_dataset(
    dataset: torch.utils.data.Dataset[Any], *, class_names: Sequence[str] | None = None
) -> ImageSource:
    """A source over a map-style torch Dataset of images, (image, label) pairs or dictionaries.

    Images may be PIL images, (C, H, W) tensors or arrays. Class names come from the argument,
    else from the dataset's `classes`; without either, labels are gathered in one pass over it.
    """
    return WrappedDataset(dataset, class_names)


def as_source(
    dataset: torch.utils.data.Dataset[Any] | ImageSource, limit: int | None, seed: int = 0
) -> ImageSource:
    """The source of a dataset, or the source given; at most `limit` images, drawn by the seed."""
    source = dataset if isinstance(dataset, ImageSource) else wrap_dataset(dataset)
    return source if limit is None else random_subset(source, limit, seed)


class WrappedDataset(ImageSource):
    """A map-style torch Dataset, in whatever form its items come."""

    def __init__(
        self, dataset: torch.utils.data.Dataset[Any], class_names: Sequence[str] | None
    ) -> None:
        kind = type(dataset).__name__
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(f"{kind} is not a map-style dataset: it has no length or no items")
        self._dataset: Any = dataset
        self._prefix = kind.lower()
        self.address, self.split = f"dataset:{kind}", None
        if len(self) == 0:
            raise ValueError(f"{self.address} is empty")
        names = _dataset_classes(dataset) if class_names is None else tuple(class_names)
        labels = _dataset_labels(dataset)
        if labels is None and names is None and self._has_labels():
            labels = np.array([self._scanned_label(index) for index in range(len(self))])
        self._labels: np.ndarray | None = None
        if labels is not None:
            self._labels, self.class_names = checked_labels(labels, names, self.address)
        else:
            self.class_names = names if self._has_labels() else None

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"{self._prefix}/{index:06d}"

    def label(self, index: int) -> int | None:
        if self.class_names is None:
            return None
        label = self._item(index)[1] if self._labels is None else int(self._labels[index])
        return None if label is None or label < 0 else label

    def load(self, index: int) -> Sample:
        image, label = self._item(index)
        name = self.name(index)
        if self._labels is not None:
            label = int(self._labels[index])
        if self.class_names is None or label is None or label < 0:
            label = None
        return Sample(image=_item_pixels(image, name), label=label, name=name)

    def facts(self, index: int) -> ImageFacts:
        image = self._item(index)[0]
        if isinstance(image, Image.Image):
            return probe_image(image, self.name(index))
        pixels = _item_pixels(image, self.name(index))
        return array_facts(pixels.numpy())

    def _item(self, index: int) -> tuple[Any, int | None]:
        try:
            return _image_and_label(self._dataset[index])
        except (OSError, SyntaxError, EOFError, struct.error, zlib.error) as error:
            raise UnreadableImage(self.name(index), str(error)) from error

    def _has_labels(self) -> bool:
        """Whether the first image that can be read comes with a label."""
        for index in range(min(len(self), 16)):
            try:
                return self._item(index)[1] is not None
            except UnreadableImage:
                continue
        return False

    def _scanned_label(self, index: int) -> int:
        try:
            label = self._item(index)[1]
        except UnreadableImage:
            return -1
        return -1 if label is None else label

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        label = None if self._labels is None else int(self._labels[index])
        return self.name(index), label

    def _content(self) -> Iterator[bytes]:
        """The array of a dataset that has one, else the pixels of images spread over it."""
        data = getattr(self._dataset, "data", None)
        if isinstance(data, np.ndarray | Tensor):
            yield np.ascontiguousarray(data).tobytes()
            return
        for index in spread(len(self)):
            try:
                yield self.load(index).image.numpy().tobytes()
            except UnreadableImage as error:
                yield str(error).encode()


def _image_and_label(item: Any) -> tuple[Any, int | None]:
    """The two parts of a dataset's item; a label that is not one integer is none."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        if image is None:
            known, there = ", ".join(IMAGE_KEYS), ", ".join(map(str, item))
            raise ValueError(f"an item has none of the keys {known}; it has {there}")
    elif isinstance(item, tuple | list):
        image, label = item[0], item[1] if len(item) > 1 else None
    else:
        image, label = item, None
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
    return image, int(label) if whole and label is not None else None


def _item_pixels(image: Any, name: str) -> Tensor:
    if isinstance(image, Image.Image):
        return decode_image(image, name)
    try:
        if isinstance(image, Tensor):
            if image.ndim not in (2, 3):
                raise ValueError(f"a tensor of shape {tuple(image.shape)} is not (C, H, W)")
            tensor = image.detach().cpu()
            array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            return array_pixels(array[None] if array.ndim == 2 else array, name)
        if isinstance(image, np.ndarray):
            return array_pixels(channel_planes(image), name)
    except ValueError as error:
        raise UnreadableImage(name, str(error)) from error
    raise ValueError(f"{name} is a {type(image).__name__}, not a PIL image, a tensor or an array")


def _dataset_labels(dataset: Any) -> np.ndarray | None:
    """The labels that a dataset keeps in one of the usual attributes, without decoding anything."""
    if isinstance(dataset, torch.utils.data.Subset):
        labels = _dataset_labels(dataset.dataset)
        return None if labels is None else labels[np.asarray(dataset.indices)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, attribute, None)
        if not isinstance(values, list | tuple | np.ndarray | Tensor) or len(values) == 0:
            continue
        if isinstance(values, list | tuple) and not all(isinstance(v, int) for v in values):
            continue
        array = np.asarray(values)
        if array.shape == (len(dataset),) and array.dtype.kind in "iu":
            return array
    return None


def _dataset_classes(dataset: Any) -> tuple[str, ...] | None:
    if isinstance(dataset, torch.utils.data.Subset):
        return _dataset_classes(dataset.dataset)
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, list | tuple) and classes:
        # torchvision's ImageNet gives several words for each class.
        return tuple(c if isinstance(c, str) else ", ".join(map(str, c)) for c in classes)
    number = getattr(dataset, "num_classes", None)
    return tuple(map(str, range(number))) if isinstance(number, int) and number > 0 else None
