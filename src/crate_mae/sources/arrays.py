"""Images in arrays: `.npy` and `.npz` files, folders of them, scikit-learn's digits."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crate_mae.common.budgets import check_growth
from crate_mae.common.file_kinds import file_kind
from crate_mae.common.npz_members import check_names, read_header, read_member
from crate_mae.sources.archives import ArchivePart, choose_arrays, member_shapes, split_arrays
from crate_mae.sources.base import ImageSource, LabelledSource, existing_path
from crate_mae.sources.content_samples import WHOLE_BYTES, file_parts, spread
from crate_mae.sources.folders import FolderSource, refuse_keys
from crate_mae.sources.found import AS_USUAL, Found, Reading, passed_over
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage, decoding, max_pixels
from crate_mae.sources.labels import Labels, class_labels, whole_labels
from crate_mae.sources.splits import (
    ChosenRows,
    NoSuchSplitError,
    are_splits,
    match_split,
    rows_of_splits,
    split_column,
    split_rows,
)

MAX_ARCHIVE_BYTES = 8 * 1024**3
_MAGIC = b"\x93NUMPY"
MOST_COLOURS = 4
"""Up to so many values side by side are channels, not columns of a picture."""


class PickledError(ValueError):
    """Raised for an array of Python objects, which would have to be unpickled."""


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
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(address, split, labels, class_names)
        array, note = _as_stack(array)
        self.found = Found(notes=() if note is None else (note,))
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
            yield from file_parts(self._mapped, WHOLE_BYTES)
        else:
            yield np.ascontiguousarray(self._array).tobytes()

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would be copied whole into every worker that is not forked.
        kept = None if self._mapped is not None else self._array
        return {**self.__dict__, "_array": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._mapped is not None:
            self._array = _as_stack(_map_array(self._mapped))[0]


class ArrayFolderSource(FolderSource):
    """A folder whose images are `.npy` files."""

    def load(self, index: int) -> Sample:
        name = self.name(index)
        image = array_pixels(self._planes(index), name)
        return Sample(image=image, label=self.label(index), name=name)

    def facts(self, index: int) -> ImageFacts:
        return array_facts(self._planes(index))

    def _content(self) -> Iterator[bytes]:
        # Arrays of one shape and type are files of one size, whatever they hold.
        for index in spread(len(self)):
            with suppress(OSError):  # a file that is gone has no size, either
                yield from file_parts(self.encoded(index))

    def _planes(self, index: int) -> np.ndarray:
        name = self.name(index)
        with decoding(name):
            return channel_planes(_map_array(self.encoded(index)))


def open_digits(_rest: str, split: str | None) -> ImageSource:
    """scikit-learn's digits; every fifth image of each class is the test split."""
    from sklearn.datasets import load_digits

    split = "train" if split is None else split
    if split not in ("train", "test", "all"):
        raise NoSuchSplitError(f"digits has no split {split!r}: its splits are train, test, all")
    digits = load_digits()
    place_in_class = np.zeros(len(digits.target), dtype=np.int64)
    for digit in range(10):
        members = digits.target == digit
        place_in_class[members] = np.arange(members.sum())
    in_test = place_in_class % 5 == 4
    kept = np.flatnonzero({"train": ~in_test, "test": in_test, "all": in_test | ~in_test}[split])
    images = np.round(digits.images[kept] * 255 / 16).astype(np.uint8)
    source = ArraySource(
        "digits",
        images,
        prefix="digits",
        numbers=kept,
        split=split,
        labels=digits.target[kept],
    )
    source.found = Found(splits=("test", "train"))
    return source


def open_arrays(rest: str, split: str | None, reading: Reading = AS_USUAL) -> ImageSource:
    """The source of `npy:PATH`: a stack in a `.npy` or `.npz` file, or a folder of single images.

    Labels of a `.npy` file lie beside it, in `NAME_labels.npy` or the file that the label key
    names. A file may hold one image alone, (H, W) or (H, W, C) of up to four channels.
    """
    path, address = existing_path(rest, "npy"), f"npy:{rest}"
    if path.is_dir():
        refuse_keys(reading, address)
        return ArrayFolderSource(address, path, {".npy"}, split, reading)
    try:
        if _is_archive(path):
            return _open_archive(path, address, split, reading)
        if split is not None:
            match_split(split, (), address)
        return _open_array(path, address, reading)
    except NoSuchSplitError:
        raise
    except zipfile.BadZipFile as error:
        kind = None if _is_zip(path) else file_kind(path)
        damaged = f"damaged or cut off: {error}"
        raise ValueError(f"{address}: {f'it is {kind}' if kind else damaged}") from error
    except Exception as error:  # a damaged header fails in whatever way its parser does
        raise ValueError(f"{address}: {str(error) or type(error).__name__}") from error


def _is_archive(path: Path) -> bool:
    """Whether a file holds several arrays; its first bytes tell, whatever it is called."""
    with path.open("rb") as file:
        array = file.read(len(_MAGIC)) == _MAGIC
    return _is_zip(path) or (path.suffix.lower() == ".npz" and not array)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _open_array(path: Path, address: str, reading: Reading) -> ImageSource:
    # The label key is the file that holds the labels; the images are all that this one holds.
    refuse_keys(reading, path.name, labels=False)
    beside = path.with_name(f"{path.stem}_labels.npy")
    if reading.label_key is not None and not reading.unlabelled:
        beside = path.with_name(Path(reading.label_key).name)
        if not beside.is_file():
            raise ValueError(f"there is no file {beside.name} with labels beside it")
    labels = Labels(why_none=f"there is no {beside.name} beside it")
    array = _map_array(path)
    _check_stack(array)
    if beside.is_file() and not reading.unlabelled:
        labels = _label_array(beside, len(_as_stack(array)[0]))
    return _array_source(path, address, array, labels, mapped=path)


def _open_archive(path: Path, address: str, split: str | None, reading: Reading) -> ImageSource:
    _check_archive(path)
    shapes = member_shapes(path)
    lists = [name for name, shape in shapes.items() if len(shape) == 1 or shape[1:] == (1,)]
    column = split_column(lists, lambda name: are_splits(name, _words(path, name)))
    by_rows = column is not None and split_arrays(shapes) == ()
    part = choose_arrays(shapes, None if by_rows else split, reading, address)
    array, values = _read_archive(path, part)
    labels, rows = Labels(why_none=part.why_unlabelled), ChosenRows()
    count = len(_as_stack(array)[0])
    if part.label is not None:
        if array.ndim == 2 and values is not None and values.shape[:1] == array.shape[:1]:
            raise ValueError(
                f"the array {part.image} of shape {array.shape} holds one row for each of"
                f" {len(array)} labels: reshape it to (N, H, W) or (N, H, W, C)"
            )
        labels = array_labels(values, count, f"the array {part.label}")
    if by_rows and column is not None and shapes[column][0] == count:
        words = _words(path, column)
        rows = split_rows(column, words, split, address)
        if not words:
            told = f"the array {column} holds Python objects, which are never loaded"
            rows = rows._replace(notes=(f"{told}: splits, if it tells any, are read together",))
    elif by_rows and split is not None:
        match_split(split, (), address)
    source = _array_source(
        path, address, array, labels, split=part.split or rows.split, kept=rows.kept
    )
    others = passed_over("arrays that may be images", part.others)
    source.found = replace(
        source.found,
        splits=part.splits or rows.splits,
        passed_over=(*others, *passed_over("rows of no split", map(str, rows.outside))),
        notes=(
            *source.found.notes,
            *rows.notes,
            *rows_of_splits(lists, part.split or rows.split),
        ),
    )
    return source


def _words(path: Path, name: str) -> list[object]:
    """The values of a list in an archive; none of a pickle."""
    with zipfile.ZipFile(path) as archive:
        values = read_member(archive, archive.getinfo(f"{name}.npy"))
    return [] if values is None else list(values.reshape(-1).tolist())


def _array_source(
    path: Path,
    address: str,
    array: np.ndarray,
    labels: Labels,
    *,
    kept: np.ndarray | None = None,
    **facts: Any,
) -> ArraySource:
    """The source of the images, or of those kept."""
    numbers, classes = None, labels.numbers
    if kept is not None and kept.any():
        numbers, array = np.flatnonzero(kept), _as_stack(array)[0][kept]
        classes = None if classes is None else classes[kept]
    source = ArraySource(
        address, array, prefix=path.name, labels=classes, class_names=labels.names,
        numbers=numbers, **facts,
    )  # fmt: skip
    source.found = replace(source.found, no_labels=labels.why_none)
    return source


def _label_array(path: Path, count: int) -> Labels:
    try:
        values: np.ndarray | None = _map_array(path)
    except PickledError:
        values = None
    return array_labels(values, count, path.name)


def array_labels(values: np.ndarray | None, count: int, where: str) -> Labels:
    """The labels of `count` images in an array; of one that is a pickle (None), why there are none.

    Raises ValueError for an array of another length.
    """
    if values is None:
        return Labels(
            why_none=f"{where} holds Python objects, which are never loaded: save the labels as"
            " numbers or with dtype=str"
        )
    if values.ndim == 0 and count == 1:
        values = values[None]
    if values.ndim == 0 or len(values) != count:
        raise ValueError(
            f"labels are {values.dtype} of shape {values.shape}, not one for each of {count} images"
        )
    if values.ndim == 1 and values.dtype.kind in "iu":
        return whole_labels(np.asarray(values), None, where)
    return class_labels(list(values), None, where)


def _map_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file, mapped; pickled objects are refused."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            kind = file_kind(path)
            known = f", but {kind}" if kind else ""
            raise ValueError(f"{path.name} is not a .npy file{known}")
        file.seek(0)
        if read_header(file)[1].hasobject:
            raise PickledError(
                f"{path.name} holds Python objects, which are never loaded: save it as numbers or"
                " with dtype=str"
            )
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _check_archive(path: Path) -> None:
    """Raise for an archive that unpacks to more than is held, or whose names are damaged."""
    with zipfile.ZipFile(path) as archive:
        check_names(archive)
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_ARCHIVE_BYTES:
            raise ValueError(f"it unpacks to {unpacked} bytes, above {MAX_ARCHIVE_BYTES}: use .npy")
        check_growth(path.stat().st_size, unpacked, "its arrays")


def _read_archive(path: Path, part: ArchivePart) -> tuple[np.ndarray, np.ndarray | None]:
    """(The images, the labels); labels are None where there are none or they are a pickle."""
    with zipfile.ZipFile(path) as archive:
        array, labels = read_member(archive, archive.getinfo(f"{part.image}.npy")), None
        if array is None:
            raise ValueError(f"the array {part.image} holds Python objects, which are never loaded")
        if part.label is not None:
            labels = read_member(archive, archive.getinfo(f"{part.label}.npy"))
    _check_stack(array)
    return array, labels


def _check_stack(array: np.ndarray) -> None:
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise ValueError(
            f"shape {array.shape} is not (N, H, W), (N, H, W, C), (N, C, H, W) with N > 0, nor one"
            " image (H, W) or (H, W, C)"
        )


def _as_stack(array: np.ndarray) -> tuple[np.ndarray, str | None]:
    """(A stack of images, what a single one or a doubtful shape was taken for)."""
    if array.ndim == 2:
        note = f"shape {array.shape} is read as one grey image"
        if any(math.isqrt(n) ** 2 == n for n in (array.shape[1], array.shape[1] // 3)):
            note += f"; for {len(array)} images, one a row, reshape it to (N, H, W) or (N, H, W, C)"
        return array[None], note
    if array.ndim != 3:
        return array, None
    first, rows, columns = array.shape
    if columns <= MOST_COLOURS < min(first, rows):
        return array[None], f"shape {array.shape} is read as one image of {columns} channels"
    if first == rows != columns:
        return array, (
            f"shape {array.shape} is read as {first} grey images of {rows} x {columns}; where the"
            " images are counted last, move that axis to the front"
        )
    if first in (3, MOST_COLOURS) and min(rows, columns) > MOST_COLOURS:
        return array, (
            f"shape {array.shape} is read as {first} grey images; one image of {first} channels"
            f" has shape (1, {first}, {rows}, {columns})"
        )
    return array, None


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
    if dtype.kind not in "bf" and dtype.newbyteorder("=") not in (np.uint8, np.uint16):
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
    if planes.dtype.newbyteorder("=") == np.uint16:
        values /= np.float32(65535)
    if not np.isfinite(values).all():
        raise UnreadableImage(name, "it holds values that are not finite")
    return torch.from_numpy(values)
