"""Folders of image files: names, splits and classes come from the folders' names."""

import os
import re
import unicodedata
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crate_mae.sources.base import EncodedSource, ImageSource, existing_path
from crate_mae.sources.found import AS_USUAL, Found, PassedOver, Reading, Tally, passed_over
from crate_mae.sources.images import image_suffixes
from crate_mae.sources.split_names import TRAIN, split_folders, split_name, words_of
from crate_mae.sources.splits import joined_name, match_split, matching_splits

_CONTAINERS = ("images", "image", "imgs", "img", "data", "jpg")
"""Folders of such names that hold everything are no class."""
_OF_IMAGES = {*_CONTAINERS, "jpeg", "png", "rgb", "photos", "pictures"}
"""Words in the names of folders of images, beside which masks lie."""
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that programs leave, some with thumbnails of every image."""
_LOOKED_AT = 3
"""Levels of folders at which splits that are not read as such are told of."""
_LOOKED_INTO = 20_000
"""Names of files, evenly chosen, of which some may mean a split."""
_PIXEL_LABELS = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "annots", "annot", "gt",
    "groundtruth", "ground_truth", "segmentation", "segmentations", "seg", "segmentationclass",
    "trimaps", "depth", "bbox", "boxes",
}  # fmt: skip
"""Folders of such names beside one of images hold what belongs to them, not further images."""
_BELONGING = re.compile(
    r"[ ._-]*(masks?|seg|segmentation|labels?|labelids|gt|groundtruth|matte|trimap|annotations?"
    r"|depth|thumb|thumbnail)([ ._-]?\d+)?$",
    re.IGNORECASE,
)
"""What names of files end with that belong to the image of the same name without it."""


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
    root, address = existing_path(rest, "imagefolder"), f"imagefolder:{rest}"
    if not root.is_dir():
        raise ValueError(f"{address} is a file: name the folder that holds the images")
    refuse_keys(reading, address)
    return FolderSource(address, root, image_suffixes(), split, reading)


def refuse_keys(reading: Reading, address: str, *, labels: bool = True) -> None:
    """Raise ValueError where a key is chosen of images that are not stored under keys.

    The label key "none" chooses nothing. `labels` False lets the label key be, where it has a
    meaning of its own.
    """
    keys = {"image": reading.image_key}
    if labels and not reading.unlabelled:
        keys["label"] = reading.label_key
    chosen = {what: key for what, key in keys.items() if key is not None}
    if not chosen:
        return
    named = " and ".join(f"the {what} key {key!r}" for what, key in chosen.items())
    options = ", ".join(f"--{what}-key" for what in chosen)
    settings = ", ".join(f"--data.{what}_key" for what in chosen)
    raise ValueError(
        f"{address} has no columns to choose from: leave {named} out ({options}; of a run"
        f" {settings}), or name a table that has such columns and lists the images (csv:FILE)"
    )


# -- files --------------------------------------------------------------------------------------


def list_files(
    root: Path, suffixes: frozenset[str], address: str, *, follow_links: bool = False
) -> tuple[list[str], tuple[PassedOver, ...]]:
    """(Sorted names, relative to root, of the files with one of the suffixes, what else is there).

    Suffixes are of lower case and begin with a dot; names are compared in any case. Links to files
    count as files. Links to folders are entered only where that is asked for, and each folder once.
    What cannot be read, or is gone meanwhile, is passed over like the rest. Raises ValueError where
    nothing is found.
    """
    names: list[str] = []
    others: dict[str, list[str]] = {}
    tally, wanted = Tally(), tuple(suffixes)
    entered: list[str] = []
    for name, entry in _walk(root, tally, entered, follow_links=follow_links):
        try:
            if entry.is_symlink() and not Path(entry.path).exists():
                tally.add("links that lead nowhere", name)
            elif entry.is_dir():
                again = "links to folders that are read already" if follow_links else _FOLDER_LINKS
                tally.add(again, name)
            elif not entry.is_file():
                tally.add("entries that are no files", name)
            elif entry.name.lower().endswith(wanted):
                names.append(name)
            else:
                others.setdefault(_suffix(entry.name) or "without a suffix", []).append(name)
        except OSError as error:  # as on a disk that fails
            tally.add(_CLOSED, f"{name} ({error.strerror or error})")
    for folder in _bare(entered, names):
        tally.add("folders without such files in or below them", folder)
    kinds = sorted(others.items(), key=lambda item: (-len(item[1]), item[0]))
    if kinds:
        shown = ", ".join(f"{kind} {len(found)}" for kind, found in kinds[:10])
        what = f"files of other kinds ({shown}{', ...' if len(kinds) > 10 else ''})"
        for _, found in kinds:
            for name in found:
                tally.add(what, name)
    if not names:
        met = "".join(f"; {entry}" for entry in tally.entries())
        shown = ", ".join(sorted(suffixes)) if len(suffixes) < 9 else "image"
        raise ValueError(f"{address} holds no {shown} files{met}")
    return sorted(names), tally.entries()


_FOLDER_LINKS = "links to folders, which are not followed (--follow-links enters them)"
_CLOSED = "files and folders that cannot be read"


def _suffix(name: str) -> str:
    """The suffix in lower case, with its dot; empty where there is none."""
    return Path(name).suffix.lower()


def _bare(entered: Iterable[str], names: Iterable[str]) -> Iterator[str]:
    """The topmost of the folders, each with a slash at its end, that hold none of the files."""
    held = {""}
    for folder in {name.rpartition("/")[0] for name in names}:
        while folder and folder not in held:
            held.add(folder)
            folder = folder.rpartition("/")[0]
    for place in sorted(entered):
        folder = place.rstrip("/")
        if folder not in held and folder.rpartition("/")[0] in held:
            yield folder


def _walk(
    root: Path, tally: Tally, entered: list[str], *, follow_links: bool
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry that is not hidden or an entered folder, with its name relative to root.

    Names of folders that are read, with a slash at their end, go into `entered`.
    No folder is entered twice, and links are entered last: a folder keeps the name that it has
    without them, where there is one. Folders below root that cannot be read, or are gone meanwhile,
    go into `tally` with the reason.
    """
    read = {_place(root)}
    folders, links = [""], deque[tuple[str, os.DirEntry[str]]]()
    while folders or links:
        if not folders:
            name, entry = links.popleft()
            if _is_new(entry, read):
                folders.append(f"{name}/")
            else:
                yield name, entry
            continue
        prefix = folders.pop()
        try:
            with os.scandir(root / prefix) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            tally.add(_CLOSED, f"{prefix} ({error.strerror or error})")
            continue
        entered.append(prefix)
        for entry in found:
            if entry.name.startswith("."):
                continue
            name = f"{prefix}{entry.name}"
            if entry.name in _OF_SYSTEMS:
                tally.add("folders that programs leave", name)
                continue
            try:
                inner = entry.is_dir(follow_symlinks=follow_links)
                link = inner and entry.is_symlink()
            except OSError:  # what it is, is asked again where it is taken
                inner, link = False, False
            if link:
                links.append((name, entry))
            elif inner and (not follow_links or _is_new(entry, read)):
                folders.append(f"{name}/")
            else:
                yield name, entry


def _is_new(folder: os.DirEntry[str], read: set[tuple[int, int]]) -> bool:
    """Whether the folder was not met before; it is from now on."""
    try:
        place = _place(folder)
    except OSError:  # gone meanwhile: told where it is entered
        return True
    new = place not in read
    read.add(place)
    return new


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
        place = below_containers(folders, 0)
        notes = (
            *split_like(folders),
            *_below(folders, 0, place),
            *_doubtful_classes(folders, place),
            *split_files(names),
            *_belonging_files(names),
        )
        return _Part(names=names, class_depth=place, notes=notes)
    chosen = matching_splits(split, splits, address)
    shown, notes = joined_name(chosen)
    depth_of_classes, kept = class_place(folders, splits, chosen, depth)
    below_split = depth + 1 if depth_of_classes < depth else depth_of_classes
    notes += (
        *_below(kept, depth + 1, depth_of_classes),
        *_doubtful_classes(kept, depth_of_classes, below_split),
        *_belonging_files(names),
    )
    below = [parts[depth] if len(parts) > depth else None for parts in folders]
    return _Part(
        names=[name for name, at in zip(names, below, strict=True) if at in chosen],
        split=shown,
        splits=tuple(sorted(splits)),
        class_depth=depth_of_classes,
        outside=tuple(n for n, at in zip(names, below, strict=True) if at not in splits),
        notes=notes,
    )


def split_level(folders: Sequence[Sequence[str]]) -> tuple[int, dict[str, str]]:
    """(The level of the folders that are splits, their meanings), or (0, {}) for none.

    Splits lie at the top, below a single folder that holds everything, or below every class.
    """
    for depth in range(max(map(len, folders), default=0)):
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
                if not found:
                    return 0, {}
                merged |= found
            # One meaning alone is no division: classes may well be called `train` below others.
            return (depth + 1, merged) if len(set(merged.values())) > 1 else (0, {})
        if not tops:
            break
    return 0, {}


def class_place(
    folders: Sequence[Sequence[str]], splits: Container[str], chosen: Container[str], depth: int
) -> tuple[int, list[Sequence[str]]]:
    """(Where the classes stand, the folders of the chosen splits), of splits at that depth.

    Classes stand above the splits where these lie below several folders, else below them.
    """
    divided = [parts for parts in folders if len(parts) > depth and parts[depth] in splits]
    kept = [parts for parts in divided if parts[depth] in chosen]
    if depth and len({parts[depth - 1] for parts in divided}) > 1:
        return depth - 1, kept
    return below_containers(kept, depth + 1), kept


def below_containers(folders: Sequence[Sequence[str]], place: int) -> int:
    """The place, or a deeper one below folders that hold everything and are no class.

    Those are called as the folder above them is, if that is a split (`seg_train/seg_train/forest`),
    or just `images`, or hold every image in one of several folders (`PetImages/Cat`,
    `PetImages/Dog`).
    """
    while True:
        inside = {parts[place] if len(parts) > place else None for parts in folders}
        name = next(iter(inside), None)
        if len(inside) != 1 or name is None:
            return place
        said = split_name(name)
        same = place and said is not None and said == split_name(folders[0][place - 1])
        below = {parts[place + 1] if len(parts) > place + 1 else None for parts in folders}
        if not same and name.lower() not in _CONTAINERS and (len(below) < 2 or None in below):
            return place
        place += 1


def _below(folders: Sequence[Sequence[str]], place: int, classes: int) -> Iterator[str]:
    """A note where folders below a single one are the classes."""
    if classes > place:
        above = "/".join(folders[0][:classes])
        yield f"classes are the folders below {above}, which holds everything"


def split_like(folders: Sequence[Sequence[str]]) -> Iterator[str]:
    """Folders that are read as classes although their names mean a split."""
    inside: dict[str, set[str]] = {}
    for parts in folders:
        for depth in range(1, min(len(parts), _LOOKED_AT)):
            inside.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    found = {top: set(split_folders(folders_in).values()) for top, folders_in in inside.items()}
    # Below a class, one meaning alone tells as well: nobody calls a part of a class `validation`.
    divided = [top for top in sorted(found) if len(found[top]) > 1 or found[top] - {TRAIN}]
    if divided:
        parts_of = ((top, part) for top in divided for part in split_folders(inside[top]))
        below = sorted(f"{top}/{part}" for top, part in parts_of)
        shown = ", ".join(below[:5]) + (", ..." if len(below) > 5 else "")
        yield f"not read as splits, as not every class is divided into the same ones: {shown}"
    tops = sorted({parts[0] for parts in folders if parts})
    alike = [top for top in tops if (said := split_name(top)) is not None and not said.about]
    if alike and len(tops) > 1:
        them = "is read as a class" if len(alike) == 1 else "are read as classes"
        yield f"{', '.join(alike)} {them} beside {len(tops) - len(alike)} others, not as a split"


def _doubtful_classes(
    folders: Sequence[Sequence[str]], place: int, below: int | None = None
) -> Iterator[str]:
    """Notes on folders at that place that are read as classes, and look like something else.

    `below` is where others might be the classes, by default right below.
    """
    below = place + 1 if below is None or below <= place else below
    inside: dict[str, set[str]] = {}
    for parts in folders:
        if len(parts) > place:
            inside.setdefault(parts[place], set()).update(parts[below : below + 1])
    if len(inside) < 2:
        return
    beside = sorted(name for name in inside if _says(name, _PIXEL_LABELS))
    if beside and any(_says(name, _OF_IMAGES) for name in inside if name not in beside):
        yield (
            f"{', '.join(beside)} beside folders of images: read as images of a class; name the"
            " folder of the images where these are masks"
        )
        return
    alike: dict[str, list[str]] = {}
    for name in sorted(inside):
        alike.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), []).append(name)
    twins = [f"{', '.join(map(repr, names))}" for names in alike.values() if len(names) > 1]
    if twins:
        yield f"classes of nearly one name are different classes: {_few(twins)}"
    shared = set.intersection(*inside.values())
    if len(shared) > 1:
        yield (
            f"{_few(sorted(inside))} are read as classes, and each holds {_few(sorted(shared))}:"
            " open one of them where these are the classes"
        )


def _says(name: str, words: Container[str]) -> bool:
    """Whether a name, or a word of it, is among these."""
    return name.lower() in words or any(word in words for word in words_of(name))


def _belonging_files(names: Sequence[str]) -> Iterator[str]:
    """A note on files that are masks and the like, by their names, of images beside them."""
    stems = {name.rpartition(".")[0] for name in names}
    found = []
    for name in names:
        stem = name.rpartition(".")[0]
        short = _BELONGING.sub("", stem)
        if short != stem and short in stems and not short.endswith("/"):
            found.append(name)
    if found:
        yield (
            f"{len(found)} files are called like masks or thumbnails of images beside them, and"
            f" read as images: {_few(found)}; move them elsewhere where they are"
        )


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def split_files(names: Sequence[str]) -> Iterator[str]:
    """A note where names of files mean several splits, which folders alone are read as."""
    stems: dict[str, str] = {}
    for name in names[:: 1 + len(names) // _LOOKED_INTO]:
        stem = name.rpartition("/")[2].rpartition(".")[0]
        said = split_name(stem)
        if said is not None and not said.about:
            stems.setdefault(said.meaning, name)
    if len(stems) > 1:
        yield (
            f"names of files may tell splits ({', '.join(stems.values())}): all are read together;"
            " put each split into a folder of its own"
        )


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
