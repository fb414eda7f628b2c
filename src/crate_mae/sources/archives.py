"""Arrays of an `.npz` file by their names: which holds the images, which their labels."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from crate_mae.common.npz_members import read_header
from crate_mae.sources.base import IMAGE_KEYS, LABEL_KEYS
from crate_mae.sources.found import Reading
from crate_mae.sources.labels import chosen_key
from crate_mae.sources.split_names import TRAIN, meaning_of, split_name, words_beside_split
from crate_mae.sources.splits import (
    NoSuchSplitError,
    match_split,
    matching_splits,
    none_for_training,
)

_DATA_KEYS = (*IMAGE_KEYS, "data", "inputs", "features", "arr")


class ArchivePart(NamedTuple):
    """Which arrays of an archive are read."""

    image: str
    label: str | None
    split: str | None
    splits: tuple[str, ...]
    why_unlabelled: str | None
    others: tuple[str, ...]
    """Arrays that look like images and are of no split, beside the one that is read."""


def member_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every array in an archive, from its header alone; nothing is unpickled."""
    shapes: dict[str, tuple[int, ...]] = {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
            if not name.endswith(".npy") or hidden:
                continue
            with archive.open(name) as file:
                shapes[name.removesuffix(".npy")] = read_header(file)[0]
    if not shapes:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(f"the archive holds no .npy arrays, but {shown or 'nothing'}")
    return shapes


def choose_arrays(
    shapes: Mapping[str, tuple[int, ...]], split: str | None, reading: Reading, address: str
) -> ArchivePart:
    """The arrays of images and labels of a split, chosen by key, by name or by being the only one.

    Names may tell splits, as `x_train` and `train_images` do. Raises ValueError where nothing tells
    which array holds the images.
    """
    likely = {name: shape for name, shape in shapes.items() if len(shape) in (3, 4)}
    if reading.image_key is not None:
        image = chosen_key(reading.image_key, shapes, address, "array")
        said = split_name(image)
        chosen, splits = (None if said is None else said.word), _said(likely)
        if split is not None and (said is None or said.meaning != meaning_of(split)):
            match_split(split, () if said is None else (said.word,), address)
    else:
        image, chosen, splits = _images(likely or shapes, split, address)
    label, why = _labels(shapes, image, reading, address)
    others = (name for name in likely if name not in (image, label) and split_name(name) is None)
    return ArchivePart(image, label, chosen, splits, why, tuple(others))


def split_arrays(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The splits that names of arrays tell, of those that may hold images."""
    return _said({name: shape for name, shape in shapes.items() if len(shape) in (3, 4)})


def _said(names: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    return tuple(sorted({said.word for name in names if (said := split_name(name)) is not None}))


def _images(
    likely: Mapping[str, tuple[int, ...]], split: str | None, address: str
) -> tuple[str, str | None, tuple[str, ...]]:
    splits = _said(likely)
    candidates, chosen = list(likely), None
    if splits and (split is not None or any(meaning_of(word) == TRAIN for word in splits)):
        chosen = matching_splits(split, splits, address)[0]
        candidates = [n for n in likely if (said := split_name(n)) and said.word == chosen]
    elif splits:
        candidates = [name for name in likely if split_name(name) is None]
        if not candidates:
            raise NoSuchSplitError(none_for_training(splits, address))
    elif split is not None:
        match_split(split, (), address)
    for key in _DATA_KEYS:
        for name in candidates:
            if _base(name) == key:
                return name, chosen, splits
    if len(candidates) == 1:
        return candidates[0], chosen, splits
    there = ", ".join(likely) or "nothing"
    raise ValueError(
        f"the archive needs an array named images; it holds {there}; choose one with --image-key"
    )


def _labels(
    shapes: Mapping[str, tuple[int, ...]], image: str, reading: Reading, address: str
) -> tuple[str | None, str | None]:
    if reading.unlabelled:
        return None, "labels are not wanted (label key none)"
    if reading.label_key is not None:
        return chosen_key(reading.label_key, shapes, address, "array"), None
    said = split_name(image)
    word = None if said is None else said.word
    alike = [
        name
        for name in shapes
        if name != image and ((other := split_name(name)) and other.word) == word
    ]
    fitting = [name for name in alike if shapes[name][:1] == shapes[image][:1]]
    for group in (fitting, alike):
        for key in LABEL_KEYS:
            for name in group:
                if _base(name) == key:
                    return name, None
    others = ", ".join(name for name in shapes if name != image)
    return None, "no array is called labels" + (
        f" (beside {image} it holds {others}); choose one with --label-key" if others else ""
    )


def _base(name: str) -> str:
    """The name without the words that tell a split and without numbers: `x` of `x_train`.

    Of a name with folders, what the last part says counts.
    """
    return "_".join(words_beside_split(name.rpartition("/")[2]) or words_beside_split(name))
