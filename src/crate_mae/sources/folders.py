"""Folders of image files: names, splits and classes come from the folders' names."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crate_mae.sources.base import EncodedSource, ImageSource, existing_path
from crate_mae.sources.found import AS_USUAL, Found, PassedOver, Reading, Tally, passed_over
from crate_mae.sources.images import image_suffixes
from crate_mae.sources.split_names import split_folders, split_name
from crate_mae.sources.splits import match_split, matching_splits

_DEEPEST_SPLIT = 3
"""Levels of folders that are searched for splits."""


class FolderSource(EncodedSource):
    """One file for each image; labels are first-level folders."""

    def __init__(
        self,
        address: str,
        root: Path,
        suffixes: Iterable[str],
        split: str | None,
        reading: Reading = AS_USUAL,
    ) -> None:
        names, passed = list_files(
            root, frozenset(suffixes), address, follow_links=reading.follow_links
        )
        part = _select_split(names, split, address)
        names = part.names
        labels, class_names, why = _folder_classes(names, part.class_depth)
        if reading.unlabelled:
            labels, class_names, why = None, None, "labels are not wanted (label key none)"
        super().__init__(address, part.split, labels, class_names)
        self._root, self._names = root, names
        self.found = Found(
            splits=part.splits,
            passed_over=passed + passed_over("images outside the splits", part.outside),
            notes=part.notes,
            no_labels=why,
        )

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


def open_folder(rest: str, split: str | None, reading: Reading = AS_USUAL) -> ImageSource:
    """The source of `imagefolder:PATH`; without a split, the train folder of a divided one."""
    root = existing_path(rest, "imagefolder")
    if not root.is_dir():
        raise ValueError(f"imagefolder:{rest} is a file: name the folder that holds the images")
    return FolderSource(f"imagefolder:{rest}", root, image_suffixes(), split, reading)


# -- files --------------------------------------------------------------------------------------


def list_files(
    root: Path, suffixes: frozenset[str], address: str, *, follow_links: bool = False
) -> tuple[list[str], tuple[PassedOver, ...]]:
    """(Sorted names, relative to root, of the files with one of the suffixes, what else is there).

    Links to files count as files. Links to folders are entered only where that is asked for; a
    folder that lies within itself is entered once. What cannot be read, or is gone meanwhile, is
    passed over like the rest. Raises ValueError where nothing is found.
    """
    names: list[str] = []
    others: dict[str, list[str]] = {}
    tally = Tally()
    for name, entry in _walk(root, tally, follow_links=follow_links):
        try:
            if entry.is_symlink() and not Path(entry.path).exists():
                tally.add("links that lead nowhere", name)
            elif entry.is_dir():
                again = "links to folders that are read already" if follow_links else _FOLDER_LINKS
                tally.add(again, name)
            elif not entry.is_file():
                tally.add("entries that are no files", name)
            elif _suffix(entry.name) in suffixes:
                names.append(name)
            else:
                others.setdefault(_suffix(entry.name) or "without a suffix", []).append(name)
        except OSError as error:  # as on a disk that fails
            tally.add(_CLOSED, f"{name} ({error.strerror or error})")
    kinds = sorted(others.items(), key=lambda item: (-len(item[1]), item[0]))
    if kinds:
        shown = ", ".join(f"{kind} {len(found)}" for kind, found in kinds[:10])
        what = f"files of other kinds ({shown}{', ...' if len(kinds) > 10 else ''})"
        for _, found in kinds:
            for name in found:
                tally.add(what, name)
    if not names:
        met = "".join(f"; {entry}" for entry in tally.entries())
        shown = ", ".join(sorted(suffixes)) if len(suffixes) < 5 else "image"
        raise ValueError(f"{address} holds no {shown} files{met}")
    return sorted(names), tally.entries()


_FOLDER_LINKS = "links to folders, which are not followed (--follow-links enters them)"
_CLOSED = "files and folders that cannot be read"


def _suffix(name: str) -> str:
    """The suffix in lower case, with its dot; empty where there is none."""
    return Path(name).suffix.lower()


def _walk(
    root: Path, tally: Tally, *, follow_links: bool
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry that is not hidden or an entered folder, with its name relative to root.

    No folder is entered twice on one way down, so the walk always ends. Folders below root that
    cannot be read, or are gone meanwhile, go into `tally` with the reason.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset({_place(root)}))]
    while pending:
        prefix, above = pending.pop()
        try:
            with os.scandir(root / prefix) as entries:
                found = list(entries)
        except OSError as error:
            if not prefix:
                raise
            tally.add(_CLOSED, f"{prefix} ({error.strerror or error})")
            continue
        for entry in found:
            if entry.name.startswith("."):
                continue
            try:
                inner = entry.is_dir(follow_symlinks=follow_links)
                here = _place(entry) if inner and follow_links else None
            except OSError:  # what it is, is asked again where it is taken
                inner, here = False, None
            if not inner or here in above:
                yield f"{prefix}{entry.name}", entry
            else:
                inside = above if here is None else above | {here}
                pending.append((f"{prefix}{entry.name}/", inside))


def _place(entry: Path | os.DirEntry[str]) -> tuple[int, int]:
    facts = entry.stat()
    return facts.st_dev, facts.st_ino


# -- splits and classes -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The names of one split, and where their classes stand."""

    names: list[str]
    split: str | None = None
    splits: tuple[str, ...] = ()
    class_depth: int = 0
    outside: tuple[str, ...] = ()
    """Names that no split holds."""
    notes: tuple[str, ...] = ()


def _select_split(names: list[str], split: str | None, address: str) -> _Part:
    """The names below the folders of that split, if the folders are divided into splits at all."""
    folders = [name.split("/")[:-1] for name in names]
    depth, splits = split_level(folders)
    if not splits:
        if split is not None:
            match_split(split, (), address)
        return _Part(names=names, notes=tuple(_split_like(folders)))
    chosen = matching_splits("train" if split is None else split, splits, address)
    below = [parts[depth] if len(parts) > depth else None for parts in folders]
    kept = [
        (name, parts) for name, parts, at in zip(names, folders, below, strict=True) if at in chosen
    ]
    shown = chosen[0] if len(chosen) == 1 else splits[chosen[0]]
    notes = [] if len(chosen) == 1 else [f"split {shown} is {', '.join(chosen)} together"]
    return _Part(
        names=[name for name, _ in kept],
        split=shown,
        splits=tuple(sorted(splits)),
        class_depth=_class_depth([parts for _, parts in kept], depth),
        outside=tuple(n for n, at in zip(names, below, strict=True) if at not in splits),
        notes=tuple(notes),
    )


def split_level(folders: Sequence[Sequence[str]]) -> tuple[int, dict[str, str]]:
    """(The level of the folders that are splits, their meanings), or (0, {}) for none.

    Splits lie at the top, below a single folder that holds everything, or below every class.
    """
    for depth in range(_DEEPEST_SPLIT):
        tops = {parts[depth] for parts in folders if len(parts) > depth}
        found = split_folders(tops)
        if found:
            return depth, found
        if len(tops) > 1:
            inside: dict[str, set[str]] = {top: set() for top in tops}
            for parts in folders:
                if len(parts) > depth + 1:
                    inside[parts[depth]].add(parts[depth + 1])
            merged: dict[str, str] = {}
            for names in inside.values():
                found = split_folders(names)
                if len(set(found.values())) < 2:
                    return 0, {}
                merged |= found
            return depth + 1, merged
        if not tops:
            break
    return 0, {}


def _class_depth(folders: Sequence[Sequence[str]], depth: int) -> int:
    """Where the classes of a split stand: above it where they are divided there, else below.

    A folder below a split that holds all of it and is called as the split is, or just `images`,
    is no class (`seg_train/seg_train/forest`).
    """
    if depth and len({parts[depth - 1] for parts in folders}) > 1:
        return depth - 1
    place = depth + 1
    while True:
        inside = {parts[place] if len(parts) > place else None for parts in folders}
        name = next(iter(inside))
        if len(inside) != 1 or name is None:
            return place
        said = split_name(name)
        same = said is not None and said == split_name(folders[0][depth])
        if not same and name.lower() not in ("images", "image", "imgs", "img", "data", "jpg"):
            return place
        place += 1


def _split_like(folders: Sequence[Sequence[str]]) -> Iterator[str]:
    """Folders that are read as classes although their names mean a split."""
    tops = sorted({parts[0] for parts in folders if parts})
    alike = [top for top in tops if (said := split_name(top)) is not None and not said.about]
    if alike and len(tops) > 1:
        them = "is read as a class" if len(alike) == 1 else "are read as classes"
        yield f"{', '.join(alike)} {them} beside {len(tops) - len(alike)} others, not as a split"


def _folder_classes(
    names: Sequence[str], depth: int
) -> tuple[list[int] | None, tuple[str, ...] | None, str | None]:
    """(Labels, class names, None) if every file lies below a folder at that depth, else why not."""
    parts = [name.split("/") for name in names]
    stray = [name for name, part in zip(names, parts, strict=True) if len(part) < depth + 2]
    if stray:
        if len(stray) == len(names):
            return None, None, "put images into one folder per class"
        more = f" and {len(stray) - 1} more" if len(stray) > 1 else ""
        return None, None, f"{stray[0]}{more} lies beside the class folders, not in one: move it"
    classes = sorted({part[depth] for part in parts})
    number = {name: index for index, name in enumerate(classes)}
    return [number[part[depth]] for part in parts], tuple(classes), None
