"""Multi-page and multi-band TIFF files as a source: every page an image, every band a channel."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from crate_mae.common.file_kinds import file_kind
from crate_mae.sources.arrays import array_pixels
from crate_mae.sources.base import ImageSource, existing_path
from crate_mae.sources.folders import FolderSource, refuse_keys
from crate_mae.sources.found import AS_USUAL, PassedOver, Reading
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage
from crate_mae.sources.pillow_images import SIDEWAYS
from crate_mae.sources.tiff import (
    SUFFIXES,
    check_extent,
    orientation,
    palette,
    scaled,
    tifffile_module,
    upright,
)

_CHANNELS = "CS"


@dataclass(frozen=True)
class Stack:
    """How the images of one file lie."""

    count: int
    channels: int
    height: int
    width: int
    dtype: str
    others: int = 0
    """Pages that are not read, as their size or type is another than the first one's."""


class TiffStackSource(ImageSource):
    """The images of TIFF files, in the order of files and pages."""

    def __init__(self, address: str, files: FolderSource) -> None:
        self.address, self.split = address, files.split
        self.class_names = files.class_names
        self._files = files
        self._faults: dict[int, str] = {}
        self._stacks = [self._stack(number) for number in range(len(files))]
        self._ends = np.cumsum([stack.count for stack in self._stacks])
        self.found = replace(files.found, passed_over=(*files.found.passed_over, *self._others()))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        file, page = self._place(index)
        name = self._files.name(file)
        return name if self._stacks[file].count == 1 else f"{name}/{page:04d}"

    def label(self, index: int) -> int | None:
        return self._files.label(self._place(index)[0])

    def facts(self, index: int) -> ImageFacts:
        file, _ = self._place(index)
        self._check(file, index)
        stack = self._stacks[file]
        return ImageFacts(f"{stack.channels} x {stack.dtype}", stack.height, stack.width)

    def load(self, index: int) -> Sample:
        file, page = self._place(index)
        self._check(file, index)
        name = self.name(index)
        try:
            path = self._files.encoded(file)
            images = _images_of(path, path.stat().st_mtime_ns)
        except Exception as error:  # a decoder may raise anything
            raise UnreadableImage(name, str(error) or type(error).__name__) from error
        image = array_pixels(images[page], name)
        return Sample(image=image, label=self.label(index), name=name)

    def _check(self, file: int, index: int) -> None:
        if file in self._faults:
            raise UnreadableImage(self.name(index), self._faults[file])

    def _place(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - (int(self._ends[file - 1]) if file else 0)

    def _stack(self, number: int) -> Stack:
        path = self._files.encoded(number)
        try:
            return _layout_of(path)
        except Exception as error:  # a decoder may raise anything
            kind = file_kind(path)
            other = None if kind in (None, "TIFF") else f"no TIFF, but {kind}"
            self._faults[number] = other or str(error) or type(error).__name__
            return Stack(1, 1, 1, 1, "uint8")

    def _others(self) -> list[PassedOver]:
        others = {self._files.name(n): s.others for n, s in enumerate(self._stacks) if s.others}
        shown = ", ".join(f"{name} {count}" for name, count in list(others.items())[:5])
        more = ", ..." if len(others) > 5 else ""
        what = f"pages of another size or type than the first ({shown}{more})"
        return [PassedOver(what=what, count=sum(others.values()))] if others else []

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        file, page = self._place(index)
        return (*self._files._identity(file), page)


def open_tiff(rest: str, split: str | None, reading: Reading = AS_USUAL) -> ImageSource:
    """The source of `tiff:PATH`, a file or a folder of files; needs tifffile, an extra.

    Axes of bands and samples become channels, all others (pages, time, depth) images of their own.
    """
    path, address = existing_path(rest, "tiff"), f"tiff:{rest}"
    refuse_keys(reading, address)
    tifffile_module("tiff: sources hold pages and bands")
    if path.is_dir():
        return TiffStackSource(address, FolderSource(address, path, SUFFIXES, split, reading))
    return TiffStackSource(address, _SingleFile(address, path, split))


class _SingleFile(FolderSource):
    """One file in place of a folder."""

    def __init__(self, address: str, path: Path, split: str | None) -> None:
        from crate_mae.sources.splits import match_split

        if split is not None:
            match_split(split, (), address)
        self.address, self.split, self.class_names = address, None, None
        self._labels, self._root, self._names = None, path.parent, [path.name]


def _series(file: Any) -> tuple[list[Any], int]:
    """(The series that are laid out as the first one is, how many pages the others have).

    Pages that were written one by one are a series each.
    """

    def layout(series: Any) -> tuple[object, ...]:
        page = series.keyframe
        kind = np.dtype(series.dtype), page.bitspersample, orientation(page)
        return series.axes, series.shape, *kind

    if not file.series:
        raise ValueError("it holds no page")
    first, *rest = file.series
    alike = [first, *(series for series in rest if layout(series) == layout(first))]
    return alike, sum(_count(series) for series in rest if layout(series) != layout(first))


def _sizes(series: Any) -> tuple[int, int, int]:
    """(Channels, height, width) of every image in a series, as it is stored."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    channels = math.prod(sizes[axis] for axis in sizes if axis in _CHANNELS)
    return channels * (1 if _palette(series) is None else 3), sizes["Y"], sizes["X"]


def _palette(series: Any) -> np.ndarray | None:
    """The colours (3, n) of the numbers that a series holds; None where it holds values."""
    page = series.keyframe
    colours = palette(page)
    if colours is not None and int(page.samplesperpixel) > 1:
        raise ValueError("numbers of a palette beside other channels: save it as PNG")
    return colours


def _count(series: Any) -> int:
    """The images in a series; one where it holds no pictures."""
    if not {"Y", "X"} <= set(series.axes):
        return 1
    return math.prod(
        size
        for axis, size in zip(series.axes, series.shape, strict=True)
        if axis not in f"YX{_CHANNELS}"
    )


def _layout_of(path: Path) -> Stack:
    with tifffile_module("a TIFF").TiffFile(path) as file:
        alike, others = _series(file)
        count, (channels, height, width) = _count(alike[0]) * len(alike), _sizes(alike[0])
        if orientation(alike[0].keyframe) in SIDEWAYS:
            height, width = width, height
        return Stack(count, channels, height, width, str(np.dtype(alike[0].dtype)), others)


@lru_cache(maxsize=2)
def _images_of(path: Path, changed: int) -> np.ndarray:  # noqa: ARG001 - a part of the key
    """All images of a file, upright, (N, C, H, W); a few files are kept: neighbours are asked for.

    `changed` is when the file was, so that another one in its place is read anew.
    """
    with tifffile_module("a TIFF").TiffFile(path) as file:
        alike, _ = _series(file)
        dtype, (channels, height, width) = np.dtype(alike[0].dtype), _sizes(alike[0])
        values = len(alike) * _count(alike[0]) * channels * height * width
        check_extent(height, width, values * dtype.itemsize)
        if dtype.kind not in "ufb":
            raise ValueError(f"pixels of type {dtype} have no known scale: save as floats")
        images = [_images_in(series).reshape(-1, channels, height, width) for series in alike]
        return upright(np.concatenate(images), orientation(alike[0].keyframe))


def _images_in(series: Any) -> np.ndarray:
    """The planes of a series, channels of an image beside each other; for palettes the colours."""
    array = np.asarray(series.asarray())
    array = array.transpose(sorted(range(array.ndim), key=lambda at: _rank(series.axes[at])))
    planes, colours = array.reshape(-1, *array.shape[-2:]), _palette(series)
    if colours is not None:
        return np.moveaxis(colours[:, planes], 0, 1)
    return scaled(planes, series.keyframe)


def _rank(axis: str) -> int:
    return {"Y": 2, "X": 3}.get(axis, 1 if axis in _CHANNELS else 0)
