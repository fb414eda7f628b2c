"""Splits by name, and images set apart by chance: split off, held out, few of every class."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crate_mae.common.hints import did_you_mean
from crate_mae.common.randomness import keyed_generator
from crate_mae.sources.base import LABEL_KEYS, ImageSource, subset
from crate_mae.sources.split_names import TRAIN, SplitName, meaning_of, split_name, words_of

SPLIT_KEYS = ("split", "set", "subset", "partition", "dataset")
"""What tables call a column of splits."""
_ROWS_OF = {"idx", "index", "indices", "ids", "mask", "flag", "samples"}
"""Words beside that of a split in the names of arrays and columns that choose rows."""
MOST_SPLITS = 20
"""A column of more values than that holds something else."""
_HASH = re.compile(r"-of-\d+-[0-9a-f]{8,}$")
"""What names of shards on the Hub end with."""
_TRUTH = {**dict.fromkeys(("1", "1.0", "true", "yes"), True),
          **dict.fromkeys(("0", "0.0", "false", "no"), False)}  # fmt: skip


class NoSuchSplitError(ValueError):
    """Raised when a source is not divided into splits, or has no split of that name."""


# -- names --------------------------------------------------------------------------------------


def matching_splits(split: str | None, present: Iterable[str], address: str) -> list[str]:
    """The present names that mean this split: the one that is spelt so, else all that mean it.

    Without a split, all that are for training. `trainval` holds images of other splits as well, so
    it counts where nothing else does. Raises NoSuchSplitError with those that are there.
    """
    names, wanted = sorted(present), TRAIN if split is None else split
    spelt = [] if split is None else [name for name in names if name.lower() == split.lower()]
    spelt.sort(key=lambda name: name != split)
    alike = [name for name in names if meaning_of(name) == meaning_of(wanted)]
    loose = [name for name in names if _said(name, "meaning") == meaning_of(wanted)]
    for found in (spelt[:1], alike, loose):
        if found:
            return [name for name in found if _said(name, "word") != "trainval"] or found
    if split is None:
        raise NoSuchSplitError(none_for_training(names, address))
    there = f"its splits are {', '.join(names)}" if names else "it is not divided into splits"
    hint = did_you_mean(split, names)
    raise NoSuchSplitError(f"{address} has no split {split!r}{hint}: {there}")


def _said(name: str, what: Literal["word", "meaning"]) -> str | None:
    said = split_name(name)
    return None if said is None else str(getattr(said, what))


def match_split(split: str, present: Iterable[str], address: str) -> str:
    """The present name that means this split; val, valid and validation mean the same."""
    return matching_splits(split, present, address)[0]


def joined_name(chosen: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(What splits that are read together are called, a note that they are)."""
    if len(chosen) == 1:
        return chosen[0], ()
    said = split_name(chosen[0])
    name = chosen[0] if said is None else said.meaning
    return name, (f"split {name} is {', '.join(chosen)} together",)


def none_for_training(present: Iterable[str], address: str) -> str:
    """What to say where no split was asked for and none of those present is for training."""
    names = list(present)
    splits = "split" if len(names) == 1 else "splits"
    return (
        f"{address} has the {splits} {', '.join(names)} and none called train: name one (--split;"
        " of a run --data.split)"
    )


class ChosenFiles(NamedTuple):
    """The files of one split."""

    files: list[Path]
    split: str | None
    splits: tuple[str, ...]
    """Every split that is there."""
    rest: list[Path]
    """Files that belong to no split, where others do and were taken."""
    notes: tuple[str, ...] = ()


def select_shards(
    files: Sequence[Path], root: Path, split: str | None, address: str
) -> ChosenFiles:
    """The files of that split and the split's name, both read off the file and folder names.

    Without a split it is `train` where there is one, else the files of no split: those of a test or
    validation split are nobody's training images unasked. Raises NoSuchSplitError where files have
    other splits alone, more than one of them.
    """
    groups: dict[str | None, list[Path]] = {}
    for file in files:
        groups.setdefault(_split_of(file.relative_to(root)), []).append(file)
    present = tuple(sorted(name for name in groups if name is not None))
    if split is None:
        training = any(meaning_of(name) == TRAIN for name in present)
        if not training and len(groups) == 1:
            only = next(iter(groups))
            told = () if only is None else (f"all files are of the split {only}: it is read",)
            return ChosenFiles(list(files), only, present, [], told)
        if not training and None in groups:
            return ChosenFiles(groups[None], None, present, [])
        if not training:
            raise NoSuchSplitError(none_for_training(present, address))
    chosen = matching_splits(split, present, address)
    name, notes = joined_name(chosen)
    kept = [file for file in files if _split_of(file.relative_to(root)) in chosen]
    notes += _of_several(kept)
    return ChosenFiles(kept, name, present, groups.get(None, []), notes)


def _of_several(files: Iterable[Path]) -> tuple[str, ...]:
    """A note where files of one split are, by their names, about different things."""
    said = {file.name: split_name(_HASH.sub("", _stem(file))) for file in files}
    about = {split.about: name for name, split in said.items() if split is not None}
    if len(about) < 2:
        return ()
    shown = ", ".join(sorted(about.values())[:5]) + (", ..." if len(about) > 5 else "")
    return (f"files of different names are read together: {shown}",)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def _split_of(path: Path) -> str | None:
    """The split that the file name, or else the nearest folder, carries as a word of its own."""
    for part in (_stem(path), *reversed(path.parent.parts)):
        said = split_name(part)
        if said is not None:
            return said.word
    return None


# -- rows ---------------------------------------------------------------------------------------


class ChosenRows(NamedTuple):
    """The rows of one split, where a column tells splits."""

    kept: np.ndarray | None = None
    """(n,) bool; None for all."""
    split: str | None = None
    splits: tuple[str, ...] = ()
    outside: tuple[int, ...] = ()
    """Rows of no split, where others have one."""
    notes: tuple[str, ...] = ()


def split_column(
    columns: Iterable[str], tells: Callable[[str], bool] = lambda _: False
) -> str | None:
    """The column that may tell splits.

    One of `SPLIT_KEYS` or such as `is_train`, those first of which `tells` says that their values
    are splits; else any column of which it says so.
    """
    names = list(columns)
    usual = {name.lower(): name for name in reversed(names)}
    likely = [usual[key] for key in SPLIT_KEYS if key in usual]
    likely += [name for name in names if _asked(name) is not None and name not in likely]
    others = (name for name in names if name not in likely and name.lower() not in LABEL_KEYS)
    for name in (*likely, *others):
        if tells(name):
            return name
    return likely[0] if likely else None


def are_splits(column: str, values: Sequence[object]) -> bool:
    """Whether the values of a column are names of splits, of more than one, and nothing else."""
    for part in (values[:1000], values):  # most columns are done with after the first rows
        words = set(_row_splits(column, part)) - {""}
        said = {word: split_name(word) for word in words} if len(words) <= MOST_SPLITS else {}
        if not said or None in said.values():
            return False
    return len({name.meaning for name in said.values() if name is not None}) > 1


def rows_of_splits(columns: Iterable[str], used: str | None) -> tuple[str, ...]:
    """A note on columns that by their names choose rows of a split, and are not read so."""
    found = [
        name
        for name in columns
        if name != used and (said := split_name(name)) is not None and set(said.about) <= _ROWS_OF
    ]
    if not found or used is not None:
        return ()
    shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return (f"{shown}: called like splits, and not read as such: all rows are read together",)


def _asked(column: str) -> SplitName | None:
    """The split whose rows are marked by a column such as `is_train` or `is_training_image`."""
    words = words_of(column)
    said = split_name(column) if words[:1] == ["is"] else None
    return said if said is not None and said.about == ("is",) else None


def split_rows(
    column: str, values: Sequence[object], split: str | None, address: str
) -> ChosenRows:
    """The rows of a split, told by a column with the split of every row; as `matching_splits`.

    All rows where its values are no splits; raises NoSuchSplitError then, where one is asked for.
    """
    words = _row_splits(column, values)
    distinct = set(words) - {""}
    said = {word: name for word in distinct if (name := split_name(word)) is not None}
    plain = {name.meaning for name in said.values() if not name.about}
    if not said or not (len(said) == len(distinct) or TRAIN in plain or len(plain) > 1):
        if split is not None:
            match_split(split, (), address)
        few = len(distinct) < min(20, len(words)) and column.lower() != "dataset"
        shown = ", ".join(sorted(distinct)[:5])
        note = f"the column {column} may tell splits, but its values ({shown}) are no names of any"
        return ChosenRows(notes=(f"{note}: all rows are read",) if few and distinct else ())
    chosen = matching_splits(split, said, address)
    called, notes = joined_name(chosen)
    if column.lower() not in SPLIT_KEYS and _asked(column) is None:
        notes += (f"the column {column} tells the splits",)
    return ChosenRows(
        np.array([word in chosen for word in words]),
        called,
        tuple(sorted(said)),
        tuple(row for row, word in enumerate(words) if word not in said),
        notes,
    )


def _row_splits(column: str, values: Sequence[object]) -> list[str]:
    """The split of every row in words, "" where it has none; as stored where it is no such column.

    `is_valid` may as well say that a row is sound, and marks nothing.
    """
    plain = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value
             for value in values]  # fmt: skip
    words = ["" if value is None else str(value).strip() for value in plain]
    asked = _asked(column)
    marks = [_TRUTH.get(word.lower()) for word in words]
    if asked is None or asked.word == "valid":
        return words
    if any(mark is None and word for mark, word in zip(marks, words, strict=True)):
        return words
    other = TRAIN if asked.meaning != TRAIN else "test"
    return ["" if mark is None else asked.meaning if mark else other for mark in marks]


# -- chance -------------------------------------------------------------------------------------


def split_off(
    source: ImageSource, share: float, seed: int, limit: int | None = None
) -> tuple[ImageSource, ImageSource]:
    """(training, held-out) parts of a source: a random `share`, at least one image, is held out.

    At most `limit` images are. Raises ValueError when none would be left to train on.
    """
    count = held_out_count(len(source), share, limit)
    if count >= len(source):
        raise ValueError(
            f"{len(source)} images cannot be split with val_share={share}: add images, or train on"
            " all of them (of a run --data.val_share 0)"
        )
    order = torch.randperm(len(source), generator=keyed_generator(seed, len(source))).tolist()
    return subset(source, sorted(order[count:])), subset(source, sorted(order[:count]))


def held_out_count(images: int, share: float, limit: int | None = None) -> int:
    """How many of so many images `split_off` holds out; it refuses to where none would be left."""
    count = max(1, round(images * share))
    return count if limit is None else min(count, limit)


def can_hold_out(labels: Tensor) -> bool:
    """Whether some class has two images, so that `hold_out` can take one."""
    return bool((torch.unique(labels, return_counts=True)[1] > 1).any())


def hold_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """A mask (n,), True for about `share` of the images of every class, drawn from `seed`.

    Every class with two images or more gives at least one and keeps at least one; a class with a
    single image keeps it. Raises ValueError when that leaves nothing to hold out.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not chosen.any():
        raise ValueError(
            f"each of the {len(labels)} training images has a class of its own, so none can be held"
            " out to choose a setting: use at least two images of a class"
        )
    return chosen


def few_shot_indices(
    labels: Sequence[int | None], shots: int, seed: int, names: Sequence[str] | None = None
) -> list[int]:
    """The indices, ascending, of `shots` images of every class, drawn at random by the seed.

    Images without a label (None or below 0) are never drawn. Raises ValueError for `shots` below
    1, when nothing is labelled, and for classes with fewer than `shots` images, by their `names`.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, not {shots}")
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        if label is not None and label >= 0:
            members.setdefault(int(label), []).append(index)
    if not members:
        raise ValueError("no image has a label: few-shot sets are drawn by class")
    short = {label: len(found) for label, found in sorted(members.items()) if len(found) < shots}
    if short:
        shown = ", ".join(
            f"class {names[label] if names and label < len(names) else label} has {count}"
            for label, count in list(short.items())[:10]
        )
        more = f" and {len(short) - 10} more" if len(short) > 10 else ""
        raise ValueError(
            f"{shots} images of every class were asked for, but {shown}{more}: ask for at"
            f" most {min(short.values())}, add images, or leave such classes out"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for label in sorted(members):
        found = members[label]
        order = torch.randperm(len(found), generator=generator)[:shots].tolist()
        chosen += [found[i] for i in order]
    return sorted(chosen)


def share_indices(labels: Tensor, share: float, seed: int) -> list[int]:
    """The indices, ascending, of about `share` of the labels of each class, at least one of each.

    Drawn by the seed.
    """
    counts = torch.bincount(labels)
    single = counts[labels] == 1
    chosen = single if bool(single.all()) else hold_out(labels, share, seed) | single
    indices: list[int] = chosen.nonzero().flatten().tolist()
    return indices
