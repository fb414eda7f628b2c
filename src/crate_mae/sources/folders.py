"""Folders of image files: names, splits and classes come from the folders' names."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from crate_mae.sources.base import EncodedSource, ImageSource, existing_path
from crate_mae.sources.images import image_suffixes
from crate_mae.sources.splits import SPLIT_NAMES, match_split

logger = logging.getLogger(__name__)


class FolderSource(EncodedSource):
    """One file for each image; labels are first-level folders."""

    def __init__(
        self, address: str, root: Path, suffixes: Iterable[str], split: str | None
    ) -> None:
        names = files_below(root, frozenset(suffixes), address)
        names, chosen = _select_split(names, split, address)
        labels, class_names = _folder_classes(names, depth=0 if chosen is None else 1)
        super().__init__(address, chosen, labels, class_names)
        self._root, self._names = root, names

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def encoded(self, index: int) -> Path:
        """The file of an image."""
        return self._root / self.name(index)

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        return self.name(index), self.label(index), size_of(self.encoded(index))


def size_of(file: Path) -> int | None:
    """The size of a file in bytes; None for one that is gone or cannot be asked for."""
    try:
        return file.stat().st_size
    except OSError:
        return None


def open_folder(rest: str, split: str | None) -> ImageSource:
    """The source of `imagefolder:PATH`; without a split, the train folder of a divided one."""
    root = existing_path(rest, "imagefolder")
    if not root.is_dir():
        raise ValueError(f"imagefolder:{rest} is a file: name the folder that holds the images")
    return FolderSource(f"imagefolder:{rest}", root, image_suffixes(), split)


def files_below(root: Path, suffixes: frozenset[str], address: str) -> list[str]:
    """Sorted names, relative to root, of the files (or links to files) with one of the suffixes."""
    names, folder_links = [], 0
    lost: list[tuple[str, str]] = []
    for name, entry in _walk(root, lost):
        try:
            if entry.is_symlink() and entry.is_dir():
                folder_links += 1
            elif f".{name.rpartition('.')[2]}".lower() in suffixes and entry.is_file():
                names.append(name)
        except OSError as error:  # a link to itself, a disk that fails
            lost.append((name, error.strerror or str(error)))
    if lost:
        named = "; ".join(f"{name} ({reason})" for name, reason in lost[:5])
        more = f" and {len(lost) - 5} more" if lost[5:] else ""
        logger.warning("%s: %d passed over: %s%s", address, len(lost), named, more)
    if not names:
        links = f" ({folder_links} links to folders are not followed)" * bool(folder_links)
        shown = ", ".join(sorted(suffixes)) if len(suffixes) < 5 else "image"
        raise ValueError(f"{address} holds no {shown} files{links}")
    return sorted(names)


def _walk(root: Path, lost: list[tuple[str, str]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry that is not hidden or a folder, with its name relative to root.

    Links to folders are not entered, so the walk always ends. Folders below root that cannot be
    read, or are gone meanwhile, go into `lost` with the reason.
    """
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(root / prefix) as entries:
                found = list(entries)
        except OSError as error:
            if not prefix:
                raise
            lost.append((prefix, error.strerror or str(error)))
            continue
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry


def _select_split(
    names: list[str], split: str | None, address: str
) -> tuple[list[str], str | None]:
    """The names below the folder of that split, if the folder is divided into splits at all."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    splits = {top for top in tops if top.lower() in SPLIT_NAMES}
    # One class may well be called "train"; a train folder beside a test folder is no class.
    divided = bool(splits) and (splits == tops or (len(splits) > 1 and "train" in splits))
    if not divided:
        if split is not None:
            match_split(split, (), address)
        return names, None
    chosen = match_split("train" if split is None else split, splits, address)
    return [name for name in names if name.startswith(f"{chosen}/")], chosen


def _folder_classes(
    names: Sequence[str], depth: int
) -> tuple[list[int] | None, tuple[str, ...] | None]:
    """Labels and class names, if every file lies below a folder at that depth."""
    parts = [name.split("/") for name in names]
    if any(len(part) < depth + 2 for part in parts):
        return None, None
    classes = sorted({part[depth] for part in parts})
    number = {name: index for index, name in enumerate(classes)}
    return [number[part[depth]] for part in parts], tuple(classes)
