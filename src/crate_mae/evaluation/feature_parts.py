"""Features of any number of images: a folder of parts, what it is to hold, what is there of it.

`_manifest.json` says how all parts are made; images are divided into shards of equal size and each
shard into parts, in order. A part is a file of its own, so that any number of processes fill one
folder, and a stopped one goes on with the parts that are missing.
"""

import contextlib
import csv
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from crate_mae.common.budgets import check_memory
from crate_mae.common.escaping import printable
from crate_mae.common.files import (
    check_folder_of,
    flush_file,
    read_json_object,
    user_path,
    write_atomically,
    writing,
)
from crate_mae.common.litter import beside, is_litter
from crate_mae.evaluation.features import Features
from crate_mae.evaluation.part_files import PartFacts, PartRows, read_part, read_part_facts
from crate_mae.evaluation.part_settings import FORMAT, Part, PartSettings, parts_of

MANIFEST = "_manifest.json"
"""Names that begin so are passed over by what reads a folder of parquet files."""
MAX_MANIFEST_BYTES = 64 << 20
"""A million names of classes may stand in it."""

logger = logging.getLogger(__name__)


class FeatureParts:
    """A folder of parts. `open` reads one that is there, `begin` makes it or goes on with it."""

    def __init__(self, folder: Path, settings: PartSettings) -> None:
        self.folder, self.settings = folder, settings
        self.parts = parts_of(settings.images, settings.shards, settings.part_size)

    @classmethod
    def open(cls, folder: str | Path) -> "FeatureParts":
        """The parts of a folder that is there.

        Raises FileNotFoundError without a manifest, and ValueError for one that is not ours.
        """
        folder = user_path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no parts of features: there is no {MANIFEST}")
        try:
            values = read_json_object(path, max_bytes=MAX_MANIFEST_BYTES)
            return cls(folder, PartSettings.from_dict(values))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is no manifest of ours: {error}") from error

    @classmethod
    def begin(cls, folder: str | Path, settings: PartSettings) -> "FeatureParts":
        """The folder, new or with parts of the same settings.

        Raises ValueError naming the settings that differ, FileExistsError for a folder that holds
        something else, and what `check_parts_target` raises.
        """
        folder = check_parts_target(folder)
        made = cls(folder, settings)
        if not (folder / MANIFEST).is_file():
            _create(folder / MANIFEST, json.dumps(settings.to_dict(), indent=1) + "\n")
        there = cls.open(folder)  # another process may have been the first
        if differ := settings.differences(there.settings):
            changed = settings.fingerprint != there.settings.fingerprint
            mended = (
                "; names or sizes of the images are not what they were, as after mending one:"
                " another folder then gets the features of all of them"
            )
            raise ValueError(
                f"{folder} holds parts made with other settings: {', '.join(differ)}; use the same"
                f" ones, or name another folder{mended if changed else ''}"
            )
        return made

    def path(self, part: Part) -> Path:
        """The file of a part, whether it is there or not."""
        return self.folder / part.name

    def missing(self, shard: int | None = None) -> list[Part]:
        """The parts, of one shard or of all, that are not there; a damaged one counts as such.

        Raises ValueError for a part that is there with other settings.
        """
        return [part for part in self.of(shard) if not self.is_there(part)]

    def of(self, shard: int | None) -> list[Part]:
        """The parts of a shard, or all of them."""
        return [part for part in self.parts if shard in (None, part.shard)]

    def is_there(self, part: Part) -> bool:
        """Whether the file of a part is there; a damaged one, which is told, is not.

        Raises ValueError for one of other settings.
        """
        try:
            self.facts(part)
        except FileNotFoundError:
            return False
        except DamagedPartError as error:
            logger.warning("%s", error)
            return False
        return True

    def facts(self, part: Part) -> PartFacts:
        """What a part says of itself, compared with what it should be.

        Raises FileNotFoundError, DamagedPartError, and ValueError for one of other settings.
        """
        path = self.path(part)
        try:
            facts = read_part_facts(path)
        except ValueError as error:
            raise DamagedPartError(str(error)) from error
        wanted = (self.settings.digest, part.number, part.start, part.stop)
        if (facts.settings, facts.number, facts.start, facts.stop) != wanted:
            raise ValueError(
                f"{path} was made with other settings than {MANIFEST} says: name another folder,"
                " or move that file away"
            )
        return facts

    def rows(self, part: Part) -> Iterator[PartRows]:
        """The rows of a part, some at a time, in order.

        Raises as `facts`, and ValueError for rows that are not of its images or out of order.
        """
        facts, before = self.facts(part), part.start - 1
        labelled, classes = self.labelled, len(self.settings.class_names or ())
        for rows in read_part(
            self.path(part), row_shape=self.settings.row_shape, labelled=labelled
        ):
            ordered = all(
                a < b for a, b in zip([before, *rows.indices], rows.indices, strict=False)
            )
            if not ordered or rows.indices[-1] >= facts.stop:
                raise ValueError(
                    f"{self.path(part)} has rows that are not its own, or out of order"
                )
            if not all(-1 <= label < max(classes, 1) for label in rows.labels):
                raise ValueError(f"{self.path(part)} has labels without a class")
            before = rows.indices[-1]
            yield rows

    @property
    def labelled(self) -> bool:
        """Whether the images have classes."""
        return self.settings.class_names is not None

    def check_complete(self) -> None:
        """Raise ValueError naming the shards and parts that are missing."""
        missing = self.missing()
        if not missing:
            return
        shards = sorted({part.shard for part in missing})
        names = _listed([part.name for part in missing])
        of_shards = ""
        if self.settings.shards > 1:
            which = _listed([f"{shard}/{self.settings.shards}" for shard in shards])
            of_shards = f" of shards {which}"
        raise ValueError(
            f"{self.folder} is not complete: {len(missing)} of {len(self.parts)} parts are"
            f" missing{of_shards} ({names}); run extract again with the same words, which makes"
            " them alone"
        )

    def about(self) -> dict[str, Any]:
        """How the features of a complete folder were made; as `load_facts` says it.

        Raises as `check_complete`.
        """
        self.check_complete()
        made, facts = self.settings, [self.facts(part) for part in self.parts]
        return {
            "format": FORMAT,
            "pool": made.pool,
            "layer": made.layer,
            "shape": [sum(one.rows for one in facts), *made.row_shape],
            "class_names": None if made.class_names is None else list(made.class_names),
            "preprocess": dict(made.preprocess),
            "weights_sha256": made.weights_sha256,
            "unreadable": [list(entry) for one in facts for entry in one.unreadable],
        }

    def unreadable(self, shard: int | None = None) -> list[tuple[str, str]]:
        """Name and reason of every image without a row in the parts that are there."""
        return [
            entry
            for part in self.of(shard)
            if self.path(part).is_file()
            for entry in self.facts(part).unreadable
        ]

    def write_unreadable(self, shard: int | None = None) -> list[Path]:
        """The files that now name the unreadable images of a shard, or of each; none without any.

        They lie beside the parts, which hold the same. One of images that have been mended since is
        removed.
        """
        shards = self.settings.shards
        written = []
        for number in range(shards) if shard is None else [shard]:
            entries = self.unreadable(number)
            place = "" if shards == 1 else f"-{number}-of-{shards}"
            path = self.folder / f"_unreadable{place}.csv"
            if not entries:
                path.unlink(missing_ok=True)
                continue
            text = io.StringIO()
            shown = [(printable(name), printable(reason)) for name, reason in entries]
            csv.writer(text).writerows([("name", "reason"), *shown])
            written.append(path)
            write_atomically(path, text.getvalue())
        return written


class DamagedPartError(ValueError):
    """Raised for a part whose file is damaged, or none."""


def check_parts_target(folder: str | Path) -> Path:
    """The folder, once parts can be written into it: call it before any work.

    Raises FileExistsError for a file, and for a folder that holds something and no manifest.
    """
    path = user_path(folder)
    if path.is_file():
        raise FileExistsError(f"{path} is a file; name a folder for the parts")
    if path.is_dir() and not (path / MANIFEST).exists():
        others = [entry.name for entry in path.iterdir() if not is_litter(entry.name)]
        if others and not (path / MANIFEST).exists():  # it may have come meanwhile
            raise FileExistsError(f"{path} holds something else than parts; name another folder")
    check_folder_of(path / MANIFEST)
    return path


def load_parts(folder: str | Path) -> Features:
    """All features of a complete folder, in memory.

    Raises as `FeatureParts.open` and `FeatureParts.about`, and ValueError for parts that are
    damaged, take too much memory, or hold no readable image.
    """
    found = FeatureParts.open(folder)
    about = found.about()
    if not about["shape"][0]:
        raise ValueError(
            f"{found.folder}: none of its {found.settings.images} images could be read"
        )
    check_memory(4 * prod(about["shape"]), f"the features of {found.folder}")
    values = torch.empty(about["shape"])
    names: list[str] = []
    labels: list[int] = []
    for rows in all_rows(found):
        values[len(names) : len(names) + len(rows.names)] = rows.values
        names += rows.names
        labels += rows.labels
    return Features(
        values=values,
        labels=torch.tensor(labels) if any(label >= 0 for label in labels) else None,
        names=names,
        class_names=found.settings.class_names,
        pool=found.settings.pool,
        unreadable=[(name, reason) for name, reason in about["unreadable"]],
        layer=found.settings.layer,
    )


def all_rows(parts: FeatureParts) -> Iterator[PartRows]:
    """The rows of all parts in order, some at a time: what needs no more of them than that."""
    for part in parts.parts:
        yield from parts.rows(part)


def is_parts_folder(path: str | Path) -> bool:
    """Whether a path is a folder that says it holds parts of features."""
    return (user_path(path) / MANIFEST).is_file()


def _create(path: Path, text: str) -> None:
    """Write a new file whole; of several processes at once, the first one's stays."""
    fresh = beside(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(text, encoding="utf-8")
            flush_file(fresh)
            try:
                os.link(fresh, path)
            except FileExistsError:
                return
            except OSError:  # a file system without hard links
                fresh.replace(path)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
