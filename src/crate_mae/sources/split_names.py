"""Names that mean a split: `train`, `Training`, `seg_train`, `train2017`, `x_val`, `TestSet`, ...

A name is cut into words. One of them says the split; what is left, without words that say nothing
of the images (`data`, `images`, numbers), is what the name is about: `train_station` is about a
station, `seg_train` and `seg_test` are about the same.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

TRAIN, VALIDATION, TEST = "train", "validation", "test"

_MEANINGS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "devel"), VALIDATION),
    **dict.fromkeys(("eval", "evaluation"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
}
_EMPTY = (
    "data|dataset|set|sets|images?|imgs?|pictures?|pics?|photos?|frames?|samples?|files?|folder"
    "|dir|split|part|raw|all|full|subset|shards?|of|the|and|new|final|[xy]|jpe?g|png"
)
_JOINED = re.compile(f"({'|'.join(sorted(_MEANINGS, key=len, reverse=True))})(?:{_EMPTY})")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class SplitName(NamedTuple):
    """What a name says of a split."""

    word: str
    """The word that says it, in lower case: `val`, `valid`, `validation`, ..."""
    meaning: str
    """`train`, `validation` or `test`."""
    about: tuple[str, ...]
    """The other words that say something."""


def words_of(name: str) -> list[str]:
    """The words of a name in lower case: `trainX_2` has `train` and `x`."""
    return [word.lower() for word in _WORD.findall(name)]


@lru_cache(maxsize=4096)
def split_name(name: str) -> SplitName | None:
    """What a name of a file (without suffix) or folder says of a split; None for nothing."""
    found: SplitName | None = None
    about: list[str] = []
    for word in words_of(name):
        joined = _JOINED.fullmatch(word)
        said = joined[1] if joined else word
        if said in _MEANINGS and found is None:
            found = SplitName(said, _MEANINGS[said], ())
        elif found is not None and (found.meaning, _MEANINGS.get(said)) == (TRAIN, VALIDATION):
            found = SplitName("trainval", TRAIN, ())
        elif not re.fullmatch(_EMPTY, word):
            about.append(word)
    return None if found is None else found._replace(about=tuple(about))


def meaning_of(split: str) -> str:
    """The split that a name asks for: its meaning, or the name itself in lower case."""
    said = split_name(split)
    return said.meaning if said is not None and not said.about else split.lower()


def split_folders(folders: Iterable[str]) -> dict[str, str]:
    """The folders beside each other that are splits, with their meanings; empty for classes.

    Two meanings of names about the same make splits (`train` and `test`, `seg_train` and
    `seg_test`), beside other folders if one of them is for training. A single meaning makes a split
    only where all folders have it and say nothing else: one class may well be called `train`.
    """
    names = list(folders)
    said = {name: split_name(name) for name in names}
    known = {name: split for name, split in said.items() if split is not None}
    found: dict[str, str] = {}
    for about in {split.about for split in known.values()}:
        alike = {name: split.meaning for name, split in known.items() if split.about == about}
        if len(set(alike.values())) > 1:
            found |= alike
    if found:
        return found if len(found) == len(names) or TRAIN in found.values() else {}
    if known and len(known) == len(names) and len({split.about for split in known.values()}) == 1:
        single = next(iter(known.values()))
        # `train_station` alone is a class; `seg_train` alone is not: names of splits end so.
        if not single.about or all(_ends_in_split(name) for name in names):
            return {name: split.meaning for name, split in known.items()}
    return {}


def _ends_in_split(name: str) -> bool:
    words = words_of(name)
    return bool(words) and words[-1] in _MEANINGS
