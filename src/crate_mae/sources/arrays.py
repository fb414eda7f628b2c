"""Images in arrays: `.npy` and `.npz` files, folders of them, scikit-learn's digits."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crate_mae.sources.base import ImageSource, LabelledSource, existing_path
from crate_mae.sources.folders import FolderSource
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage, max_pixels
from crate_mae.sources.splits import NoSuchSplitError, match_split

MAX_ARCHIVE_BYTES = 8 * 1024**3


class ArraySource(LabelledSource):
    """Images stacked in one array, in memory or mapped from a `.npy` file."""

    def __init__(
        self,
        address: str,
        array: np.ndarray,
        *,
        prefix: str,
        numbers: np.ndarray | None = None,
        mapped: Path | None = None,
        split: str | None = None,
        labels: Any = None,
    ) -> None:
        super().__init__(address, split, labels, None)
        self._array, self._prefix, self._mapped = array, prefix, mapped
        self._numbers = np.arange(len(array)) if numbers is None else numbers
        self._channel_axis = _channel_axis(array.shape[1:])
        _check_dtype(array.dtype)

    def __len__(self) -> int:
        return len(self._array)

    def name(self, index: int) -> str:
        return f"{self._prefix}/{self._numbers[index]:04d}"

    def load(self, index: int) -> Sample:
        name = self.name(index)
        image = array_pixels(channel_planes(self._array[index], self._channel_axis), name)
        return Sample(image=image, label=self.label(index), name=name)

    def facts(self, index: int) -> ImageFacts:
        return array_facts(channel_planes(self._array[index], self._channel_axis))

    def _content(self) -> Iterator[bytes]:
        yield f"{self._array.shape} {self._array.dtype.str}".encode()
        if self._mapped is not None:
            yield str(self._mapped.stat().st_size).encode()
        else:
            yield np.ascontiguousarray(self._array).tobytes()

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would be copied whole into every worker that is not forked.
        kept = None if self._mapped is not None else self._array
        return {**self.__dict__, "_array": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._mapped is not None:
            self._array = _map_array(self._mapped)


class ArrayFolderSource(FolderSource):
    """A folder whose images are `.npy` files."""

    def load(self, index: int) -> Sample:
        name = self.name(index)
        image = array_pixels(self._planes(index), name)
        return Sample(image=image, label=self.label(index), name=name)

    def facts(self, index: int) -> ImageFacts:
        return array_facts(self._planes(index))

    def _planes(self, index: int) -> np.ndarray:
        name = self.name(index)
        try:
            return channel_planes(_map_array(self.encoded(index)))
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise UnreadableImage(name, str(error)) from error


def open_digits(_rest: str, split: str | None) -> ImageSource:
    """scikit-learn's digits; every fifth image of each class is the test split."""
    from sklearn.datasets import load_digits

    split = "train" if split is None else split
    if split not in ("train", "test", "all"):
        raise NoSuchSplitError(
            f"digits has no split {split!r}: its splits are train, test, all", ("train", "test")
        )
    digits = load_digits()
    place_in_class = np.zeros(len(digits.target), dtype=np.int64)
    for digit in range(10):
        members = digits.target == digit
        place_in_class[members] = np.arange(members.sum())
    in_test = place_in_class % 5 == 4
    kept = np.flatnonzero({"train": ~in_test, "test": in_test, "all": in_test | ~in_test}[split])
    images = np.round(digits.images[kept] * 255 / 16).astype(np.uint8)
    return ArraySource(
        "digits",
        images,
        prefix="digits",
        numbers=kept,
        split=split,
        labels=digits.target[kept],
    )


def open_arrays(rest: str, split: str | None) -> ImageSource:
    """The source of `npy:PATH`: a stack in a `.npy` or `.npz` file, or a folder of single images.

    Labels of a `.npy` file lie beside it, in `NAME_labels.npy`.
    """
    path, address = existing_path(rest, "npy"), f"npy:{rest}"
    if path.is_dir():
        return ArrayFolderSource(address, path, {".npy"}, split)
    if split is not None:
        match_split(split, (), address)
    try:
        if path.suffix.lower() == ".npz":
            array, labels = _read_archive(path)
            return ArraySource(address, array, prefix=path.name, labels=labels)
        beside = path.with_name(f"{path.stem}_labels.npy")
        array, labels = _map_array(path), _map_array(beside) if beside.is_file() else None
        _check_stack(array, labels)
        return ArraySource(address, array, prefix=path.name, mapped=path, labels=labels)
    except (OSError, EOFError, SyntaxError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{address}: {error}") from error


def _map_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file, mapped; pickled objects are refused."""
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError(f"{path.name} is not a .npy file")
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _read_archive(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_ARCHIVE_BYTES:
            raise ValueError(f"it unpacks to {unpacked} bytes, above {MAX_ARCHIVE_BYTES}: use .npy")
    with np.load(path, allow_pickle=False) as content:
        if "images" not in content.files:
            there = ", ".join(content.files) or "nothing"
            raise ValueError(f"the archive needs an array named images; it holds {there}")
        try:
            array = content["images"]
            labels = content["labels"] if "labels" in content.files else None
        except MemoryError as error:
            raise ValueError(f"its arrays do not fit into memory: {error}") from error
    _check_stack(array, labels)
    return array, labels


def _check_stack(array: np.ndarray, labels: np.ndarray | None) -> None:
    if array.ndim not in (3, 4) or len(array) == 0:
        raise ValueError(
            f"shape {array.shape} is not (N, H, W), (N, H, W, C) or (N, C, H, W) with N > 0"
        )
    if labels is None:
        return
    if labels.dtype.kind not in "iu" or labels.shape != (len(array),):
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}, not integers of ({len(array)},)"
        )


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Where the channels of one image are: last if the smallest axis, else first, None for grey."""
    if len(shape) == 2:
        return None
    if len(shape) != 3:
        raise ValueError(
            f"one image of shape {shape} is not (H, W), (H, W, C) or (C, H, W)"
            " (open a file with a stack of images by naming the file itself)"
        )
    if shape[2] < min(shape[:2]):
        return 2
    if shape[0] < min(shape[1:]):
        return 0
    raise ValueError(f"shape {shape} is ambiguous: the channels must be the smallest axis")


def channel_planes(array: np.ndarray, axis: int | None = -1) -> np.ndarray:
    """One image as (C, H, W), by its known channel axis or, by default, by its shape."""
    axis = _channel_axis(array.shape) if axis == -1 else axis
    return array[None] if axis is None else np.moveaxis(array, axis, 0)


def array_facts(planes: np.ndarray) -> ImageFacts:
    """Size and kind of an image (C, H, W); its mode is like "3 x uint8"."""
    return ImageFacts(f"{planes.shape[0]} x {planes.dtype}", *planes.shape[1:])


def _check_dtype(dtype: np.dtype) -> None:
    if dtype.kind not in "bf" and dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"pixels of type {dtype} have no known scale: save them as uint8, uint16, or floats"
        )


def array_pixels(planes: np.ndarray, name: str) -> Tensor:
    """The (C, H, W) array as uint8 or float32; raises UnreadableImage if that is impossible."""
    _, height, width = planes.shape
    if planes.size == 0 or height * width > max_pixels():
        raise UnreadableImage(name, f"shape {planes.shape} is empty or has too many pixels")
    try:
        _check_dtype(planes.dtype)
    except ValueError as error:
        raise UnreadableImage(name, str(error)) from error
    if planes.dtype == np.uint8:
        return torch.from_numpy(np.array(planes, order="C"))
    with np.errstate(over="ignore"):
        values = np.array(planes, dtype=np.float32, order="C")
    if planes.dtype == np.uint16:
        values /= np.float32(65535)
    if not np.isfinite(values).all():
        raise UnreadableImage(name, "it holds values that are not finite")
    return torch.from_numpy(values)
