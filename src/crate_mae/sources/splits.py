"""Splits by name, and images set apart by chance: split off, held out, few of every class."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from crate_mae.common.randomness import keyed_generator
from crate_mae.sources.base import ImageSource, subset

SPLIT_NAMES = ("train", "val", "valid", "validation", "test")
"""Names of files and folders that are splits."""
SYNONYMS = frozenset({"val", "valid", "validation"})
"""Names that mean the same split."""


class NoSuchSplitError(ValueError):
    """Raised when a source is not divided into splits, or has no split of that name."""

    def __init__(self, message: str, present: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.present = tuple(present)
        """The splits that are there."""


# -- names --------------------------------------------------------------------------------------


def match_split(split: str, present: Iterable[str], address: str) -> str:
    """The present name that means this split; val, valid and validation mean the same."""
    names = sorted(present)
    for meant in ({split.lower()}, SYNONYMS if split.lower() in SYNONYMS else frozenset()):
        for name in names:
            if name.lower() in meant:
                return name
    there = f"its splits are {', '.join(names)}" if names else "it is not divided into splits"
    raise NoSuchSplitError(f"{address} has no split {split!r}: {there}", names)


def select_shards(
    files: Sequence[Path], root: Path, split: str | None, address: str
) -> tuple[list[Path], str | None]:
    """The files of that split and the split's name, both read off the file and folder names.

    Without a split it is `train` where there is one, else the files of no split: those of a test or
    validation split are nobody's training images unasked. Raises NoSuchSplitError where files have
    other splits alone, more than one of them.
    """
    groups: dict[str | None, list[Path]] = {}
    for file in files:
        groups.setdefault(_split_of(file.relative_to(root)), []).append(file)
    if split is None:
        if "train" in groups:
            return groups["train"], "train"
        if len(groups) == 1:
            return list(files), next(iter(groups))
        if None in groups:
            return groups[None], None
        present = ", ".join(sorted(name for name in groups if name is not None))
        raise NoSuchSplitError(
            f"{address} has the splits {present} and none called train: name one"
        )
    chosen = match_split(split, [name for name in groups if name is not None], address)
    return groups[chosen], chosen


def _split_of(path: Path) -> str | None:
    """The split that the file name, or else the nearest folder, carries as a word of its own."""
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_NAMES:
                return word
    return None


# -- chance -------------------------------------------------------------------------------------


def split_off(
    source: ImageSource, share: float, seed: int, limit: int | None = None
) -> tuple[ImageSource, ImageSource]:
    """(training, held-out) parts of a source: a random `share`, at least one image, is held out.

    At most `limit` images are. Raises ValueError when none would be left to train on.
    """
    count = max(1, round(len(source) * share))
    if limit is not None:
        count = min(count, limit)
    if count >= len(source):
        raise ValueError(f"{len(source)} images cannot be split with val_share={share}")
    order = torch.randperm(len(source), generator=keyed_generator(seed, len(source))).tolist()
    return subset(source, sorted(order[count:])), subset(source, sorted(order[:count]))


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


def few_shot_indices(labels: Sequence[int | None], shots: int, seed: int) -> list[int]:
    """The indices, ascending, of `shots` images of every class, drawn at random by the seed.

    Images without a label (None or below 0) are never drawn. Raises ValueError for `shots` below
    1, when nothing is labelled, and for classes with fewer than `shots` images, naming them.
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
        shown = ", ".join(f"class {label} has {count}" for label, count in list(short.items())[:10])
        more = f" and {len(short) - 10} more" if len(short) > 10 else ""
        raise ValueError(f"{shots} images of every class were asked for, but {shown}{more}")
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
