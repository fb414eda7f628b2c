"""Multi-page and multi-band TIFF files as a source: every page an image, every band a channel."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from crate_mae.sources.arrays import array_pixels
from crate_mae.sources.base import ImageSource, existing_path
from crate_mae.sources.folders import FolderSource
from crate_mae.sources.found import AS_USUAL, Reading
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage
from crate_mae.sources.tiff import SUFFIXES, check_extent, scaled, tifffile_module

_CHANNELS = "CS"


@dataclass(frozen=True)
class Stack:
    """How the images of one file lie."""

    count: int
    channels: int
    height: int
    width: int
    dtype: str


class TiffStackSource(ImageSource):
    """The images of TIFF files, in the order of files and pages."""

    def __init__(self, address: str, files: FolderSource) -> None:
        self.address, self.split = address, files.split
        self.class_names, self.found = files.class_names, files.found
        self._files = files
        self._faults: dict[int, str] = {}
        self._stacks = [self._stack(number) for number in range(len(files))]
        self._ends = np.cumsum([stack.count for stack in self._stacks])

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
        try:
            return _layout_of(self._files.encoded(number))
        except Exception as error:  # a decoder may raise anything
            self._faults[number] = str(error) or type(error).__name__
            return Stack(1, 1, 1, 1, "uint8")

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        file, page = self._place(index)
        return (*self._files._identity(file), page)


def open_tiff(rest: str, split: str | None, reading: Reading = AS_USUAL) -> ImageSource:
    """The source of `tiff:PATH`, a file or a folder of files; needs tifffile, an extra.

    Axes of bands and samples become channels, all others (pages, time, depth) images of their own.
    """
    path, address = existing_path(rest, "tiff"), f"tiff:{rest}"
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


def _series(file: Any) -> tuple[Any, str]:
    series = file.series[0]
    return series, series.axes


def _layout_of(path: Path) -> Stack:
    with tifffile_module("a TIFF").TiffFile(path) as file:
        series, axes = _series(file)
        sizes = dict(zip(axes, series.shape, strict=True))
        height, width = sizes["Y"], sizes["X"]
        channels = int(np.prod([sizes[axis] for axis in axes if axis in _CHANNELS], dtype=int))
        count = int(series.size) // (channels * height * width)
        return Stack(count, channels, height, width, str(np.dtype(series.dtype)))


@lru_cache(maxsize=2)
def _images_of(path: Path, changed: int) -> np.ndarray:  # noqa: ARG001 - a part of the key
    """All images of a file, (N, C, H, W); a few files are kept, as neighbours are asked for.

    `changed` is when the file was, so that another one in its place is read anew.
    """
    with tifffile_module("a TIFF").TiffFile(path) as file:
        series, axes = _series(file)
        sizes = dict(zip(axes, series.shape, strict=True))
        check_extent(sizes["Y"], sizes["X"], int(series.size) * np.dtype(series.dtype).itemsize)
        if np.dtype(series.dtype).kind not in "uf":
            raise ValueError(f"pixels of type {series.dtype} have no known scale: save as floats")
        array = np.asarray(series.asarray())
        order = sorted(range(len(axes)), key=lambda place: _rank(axes[place]))
        array = array.transpose(order)
        planes = array.reshape(-1, sizes["Y"], sizes["X"])
        planes = scaled(planes, file.pages[0])
    channels = int(np.prod([sizes[axis] for axis in axes if axis in _CHANNELS], dtype=int))
    return planes.reshape(-1, channels, sizes["Y"], sizes["X"])


def _rank(axis: str) -> int:
    return {"Y": 2, "X": 3}.get(axis, 1 if axis in _CHANNELS else 0)
