"""What stands in a folder of parts: how its features are made, and which images a part has."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any, NamedTuple

from crate_mae.models.config import Preprocess

FORMAT = "crate-mae-parts/1"
PART_SIZE = 10_240
"""Images of a part, unless another number is asked for."""
MAX_PARTS = 100_000
_MAX_ROW = 1 << 31
_WORDS = {
    "weights_sha256": "weights",
    "fingerprint": "images",
    "images": "number of images",
    "layer": "--after",
    "pool": "--pool",
    "engine": "--engine",
    "part_size": "--part-size",
    "shards": "number of shards",
}
"""What settings are called where they differ."""


class Part(NamedTuple):
    """A part, and the images that belong to it: from `start` up to `stop`."""

    number: int
    shard: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"part-{self.number:05d}.parquet"


def parts_of(images: int, shards: int, part_size: int) -> list[Part]:
    """The parts of so many images in so many shards, in order; each image is in exactly one.

    Shards are stretches of images that differ in size by one at most. Raises ValueError for numbers
    below 1, more shards than images, and more than `MAX_PARTS` parts.
    """
    for name, number in (("images", images), ("shards", shards), ("part_size", part_size)):
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} must be a whole number from 1, not {number!r}")
    if shards > images:
        raise ValueError(f"{shards} shards are more than the {images} images: ask for fewer")
    if -(-images // part_size) + shards > MAX_PARTS:
        raise ValueError(
            f"{images} images in {shards} shards may be more than {MAX_PARTS} parts of"
            f" {part_size}: choose a larger --part-size"
        )
    parts: list[Part] = []
    for shard in range(shards):
        start, stop = images * shard // shards, images * (shard + 1) // shards
        parts += [
            Part(number, shard, first, min(first + part_size, stop))
            for number, first in enumerate(range(start, stop, part_size), start=len(parts))
        ]
    return parts


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """All that fixes what stands in the parts of a folder."""

    weights_sha256: str | None
    engine: str
    """What computed them."""
    pool: str
    layer: int | None
    preprocess: Mapping[str, Any]
    row_shape: tuple[int, ...]
    """Of the features of one image."""
    class_names: tuple[str, ...] | None
    address: str
    """Where the images were; they are known by their fingerprint, wherever they lie."""
    split: str | None
    fingerprint: str
    """The digest of the images."""
    images: int
    shards: int
    part_size: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PartSettings":
        """The settings of a manifest; ValueError for what is none."""
        if values.get("format") != FORMAT:
            raise ValueError(f"format {values.get('format')!r} is not {FORMAT!r}")
        known = [field.name for field in fields(cls)]
        if missing := [name for name in known if name not in values]:
            raise ValueError(f"it does not say its {', '.join(missing)}")
        given = {name: values[name] for name in known}
        for name, sound in _SOUND.items():
            if not sound(given[name]):
                raise ValueError(f"its {name} cannot be {str(given[name])[:60]!r}")
        Preprocess.from_dict(given["preprocess"])
        names = given["class_names"]
        given["class_names"] = None if names is None else tuple(names)
        return cls(**{**given, "row_shape": tuple(given["row_shape"])})

    @property
    def digest(self) -> str:
        """A digest that parts carry; where the images lie does not count."""
        counted = {key: value for key, value in self.to_dict().items() if key != "address"}
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()

    def differences(self, other: "PartSettings") -> list[str]:
        """In words, the settings that differ from others, each with both values."""
        here, there = (_flat(json.loads(json.dumps(one.to_dict()))) for one in (self, other))
        return [
            f"{_WORDS.get(name, name)} ({_short(there.get(name))} there, {_short(value)} here)"
            for name, value in here.items()
            if name != "address" and value != there.get(name)
        ]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    prepared = values.pop("preprocess")
    return values | {f"preprocessing, {name}": value for name, value in prepared.items()}


def _is_shape(value: Any) -> bool:
    whole = isinstance(value, list | tuple) and all(type(n) is int and n > 0 for n in value)
    return whole and 0 < len(value) < 4 and prod(value) <= _MAX_ROW


def _are_names(value: Any) -> bool:
    return value is None or (
        isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


_SOUND: dict[str, Callable[[Any], bool]] = {
    "weights_sha256": _is_text_or_none,
    "engine": _is_text,
    "pool": _is_text,
    "layer": lambda value: value is None or (type(value) is int and value >= 0),
    "preprocess": lambda value: isinstance(value, dict),
    "row_shape": _is_shape,
    "class_names": _are_names,
    "address": _is_text,
    "split": _is_text_or_none,
    "fingerprint": _is_text,
}
"""Whether a value of a manifest can be what it should; `parts_of` judges the numbers."""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
