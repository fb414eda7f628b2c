"""WebDataset shards, read in a fixed order and without ever unpacking or unpickling anything."""

import codecs
import glob
import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from crate_mae.sources.base import MAX_LABEL, WHOLE, Share, Source
from crate_mae.sources.folders import list_files
from crate_mae.sources.found import AS_USUAL, Found, PassedOver, Reading, passed_over
from crate_mae.sources.images import Sample, UnreadableImage, decode_image
from crate_mae.sources.labels import plain_label, usual_label
from crate_mae.sources.shards import (
    Layout,
    ShardFacts,
    folders_of,
    is_label_text,
    survey_shard,
    unpacked,
)
from crate_mae.sources.splits import NoSuchSplitError, matching_splits, select_shards

SHUFFLE_BUFFER = 1000
MAX_SHARDS = 1_000_000
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample as it lies in its shard, undecoded."""

    name: str
    image: bytes
    label: int | str | None
    """The class number or name, or None for an image without one."""
    label_fault: str | None = None
    """Why a label that is there is not understood."""


class StreamSource(Source):
    """Images in tar shards: no random access, but a deterministic order for any seed and epoch."""

    def __init__(
        self,
        shards: str,
        *,
        split: str | None = None,
        address: str | None = None,
        reading: Reading = AS_USUAL,
        tell: bool = True,
    ) -> None:
        _import_webdataset()  # a missing library should show now, not in a worker
        self.address, self.class_names = address or f"wds:{shards}", None
        self.reading, self.tell = reading, tell
        self._root, files, passed = _find_shards(shards, self.address, reading)
        self._facts: dict[Path, ShardFacts] = {}
        self._inside = False
        try:
            chosen = select_shards(files, self._root, split, self.address)
        except NoSuchSplitError:
            chosen = select_shards(files, self._root, None, self.address)
            if split is None or chosen.splits:
                raise
            self._inside = True  # shards that name no split may have folders that do
        self.shards, self.split = chosen.files, chosen.split
        self._wanted = split or chosen.split
        outside = passed_over("shards outside the splits", map(self._shard_name, chosen.rest))
        self.found = Found(
            splits=chosen.splits, passed_over=(*passed, *outside), notes=chosen.notes
        )
        self._surveyed = False
        if self._inside:
            self._check_inner_split()

    def __len__(self) -> int:
        """The number of images, from the tar headers alone; computed once.

        What the shards hold beside them then stands in `found`, and is told in the log.
        """
        facts = [self._survey(shard) for shard in self.shards]
        if not self._surveyed:
            self._check_inner_split()
            self._surveyed = True
            self.found = _joined(self.found, facts)
            if self.tell:
                for line in self.found.lines():
                    logger.warning("%s: %s", self.address, line)
        return sum(fact.count for fact in facts)

    def fingerprint(self) -> str:
        """A hex digest of the shards' names and sizes."""
        entries = [(self._shard_name(shard), shard.stat().st_size) for shard in self.shards]
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()

    def samples(self, share: Share = WHOLE, *, skip: int = 0) -> Iterator[Sample | UnreadableImage]:
        """A share of one epoch, by default all of it; what cannot be read as the reason why.

        The order depends on the arguments alone. `skip` passes over that many entries of it
        without decoding them, so a run can go on where it stopped.
        """
        return map(decode_record, islice(self.records(share), skip, None))

    def records(self, share: Share = WHOLE) -> Iterator[Record]:
        """The records behind `samples`, in the same order, undecoded."""
        if len(self.shards) < share.readers:
            raise ValueError(
                f"{self.address} has {len(self.shards)} shards, too few for {share.world_size}"
                f" processes x {share.num_workers} workers: use fewer workers or write smaller"
                " shards"
            )
        shards = list(self.shards)
        if share.shuffle:
            random.Random(f"shards/{share.seed}/{share.epoch}").shuffle(shards)
        records = self._read(shards[share.place :: share.readers])
        if not share.shuffle:
            return records
        key = f"records/{share.seed}/{share.epoch}/{share.place}/{share.readers}"
        return _mixed(records, random.Random(key))

    def _read(self, shards: Sequence[Path]) -> Iterator[Record]:
        library = _import_webdataset()
        for shard in shards:
            layout = self._survey(shard).layout  # its sizes are believed only then
            # Unpacked here: what reads the members would stop at the end of the first of several
            # streams, as `bgzip`, `pbzip2` and `cat` write them.
            with unpacked(shard) as stream:
                opened = [{"url": str(shard), "stream": stream}]
                try:
                    members = library.tar_file_expander(opened, select_files=layout.is_wanted)
                    for group in library.group_by_keys(members, keys=layout.key_and_suffix):
                        record = _record(group, self._shard_name(shard), layout)
                        if record is not None:
                            yield record
                except Exception as error:  # whatever its reader meets first
                    raise ValueError(f"{shard} is damaged: {error}") from error

    def _survey(self, shard: Path) -> ShardFacts:
        if shard not in self._facts:
            self._facts[shard] = survey_shard(
                shard, self.reading, self._wanted, inside=self._inside
            )
        return self._facts[shard]

    def _check_inner_split(self) -> None:
        """Take the split's name from folders inside the shards, where names of shards have none.

        Raises NoSuchSplitError where all shards have folders of other splits alone.
        """
        present: set[str] = set()
        undivided = False
        for fact in map(self._survey, self.shards):
            if fact.split is not None:
                self.split = self.split or fact.split
                return
            present.update(fact.splits)
            undivided = undivided or not fact.splits
        if self._inside or not undivided:
            matching_splits(self._wanted, present, self.address)

    def _shard_name(self, shard: Path) -> str:
        return shard.relative_to(self._root).as_posix()


def decode_record(record: Record) -> Sample | UnreadableImage:
    """The decoded sample, or the reason why there is none; a class name is no number."""
    try:
        label = record.label if isinstance(record.label, int) else None
        return Sample(image=decode_image(record.image, record.name), label=label, name=record.name)
    except UnreadableImage as error:
        return error


def _joined(found: Found, facts: Sequence[ShardFacts]) -> Found:
    """What was found, with what every shard holds beside its images."""
    merged: dict[str, PassedOver] = {entry.what: entry for entry in found.passed_over}
    for entry in (entry for fact in facts for entry in fact.passed_over):
        before = merged.get(entry.what)
        if before is None:
            merged[entry.what] = entry
        else:
            names = (*before.names, *entry.names)[:5]
            merged[entry.what] = replace(before, count=before.count + entry.count, names=names)
    inside = {name for fact in facts for name in fact.splits}
    return replace(
        found,
        splits=found.splits or tuple(sorted(inside)),
        passed_over=tuple(merged.values()),
        notes=(*found.notes, *(note for fact in facts for note in fact.notes)),
    )


def _import_webdataset() -> ModuleType:
    try:
        from webdataset import tariterators
    except ImportError as error:
        raise ImportError(
            'wds: sources need the webdataset library: pip install "crate-mae[wds]"'
        ) from error
    module: ModuleType = tariterators
    return module


def _find_shards(
    pattern: str, address: str, reading: Reading
) -> tuple[Path, list[Path], tuple[PassedOver, ...]]:
    """(Where they lie, the local shards that a path, folder, glob or brace range names, the rest).

    What else is there is known of a folder alone, which is searched at any depth.
    """
    from braceexpand import braceexpand  # comes with webdataset

    _refuse_addresses(pattern)
    folder = Path(pattern).expanduser()
    if folder.is_dir():
        names, passed = list_files(
            folder, frozenset(SHARD_SUFFIXES), address, follow_links=reading.follow_links
        )
        return folder, [folder / name for name in names], passed
    # A range is written out in full when it is expanded, so its length is checked before.
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)
    too_long = any(abs(int(last) - int(first)) >= MAX_SHARDS for first, last in ranges)
    paths = [] if too_long else list(islice(braceexpand(pattern), MAX_SHARDS + 1))
    if too_long or len(paths) > MAX_SHARDS:
        raise ValueError(f"{pattern} names more than {MAX_SHARDS} shards")
    files: set[Path] = set()
    for path in paths:
        _refuse_addresses(path)
        files.update(_matches(str(Path(path).expanduser())))
    return Path(os.path.commonpath([file.parent for file in files])), sorted(files), ()


def _matches(path: str) -> list[Path]:
    if Path(path).is_file():
        return [Path(path)]
    # Path.glob would refuse absolute patterns.
    found = [Path(match) for match in glob.glob(path)]  # noqa: PTH207
    if not found:
        raise FileNotFoundError(f"there is no shard {path}")
    return found


def _refuse_addresses(path: str) -> None:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.\-]+):", path.lstrip())
    if scheme:
        does = "runs a command" if scheme[1].lower() == "pipe" else "is not a local file"
        raise ValueError(
            f"wds:{path} is refused because {scheme[1]}: {does}; only local tar files are read"
            " (write ./ before a file name with a colon)"
        )


def _record(group: dict[str, Any], shard_name: str, layout: Layout) -> Record | None:
    members = {key: value for key, value in group.items() if not key.startswith("__")}
    suffix = layout.image_suffix(members)
    if suffix is None:
        return None
    key = group["__key__"]
    label, fault = None, None
    try:
        label = _label(members, key, layout)
    except ValueError as error:
        fault = str(error)
    return Record(name=f"{shard_name}/{key}", image=members[suffix], label=label, label_fault=fault)


def _label(members: dict[str, bytes], key: str, layout: Layout) -> int | str | None:
    """The class of a sample, from a member or its folder; ValueError for what is no class.

    The member asked for, else `cls`, another one called a label, the usual names in `json`.
    """
    asked = layout.reading.label_key
    if layout.reading.unlabelled:
        return None
    if layout.class_depth is not None and asked is None:
        return folders_of(key)[layout.class_depth]
    value: object = None
    texts = list(filter(is_label_text, members))
    records = [suffix for suffix in members if suffix.rpartition(".")[2] == "json"]
    if asked is not None and asked.lower() in members:
        value = members[asked.lower()]
    elif asked is not None:
        value = _described(members, records, asked.removeprefix("json."))
    elif texts:
        value = members["cls" if "cls" in texts else texts[0]]
    else:
        value = _described(members, records, None)
    if isinstance(value, bytes):
        text = value.removeprefix(codecs.BOM_UTF8).strip()
        if len(text) > 200 or b"\n" in text:
            raise ValueError(f"its label {text[:20]!r}... is no class")
        value = int(text) if re.fullmatch(rb"-?(0|[1-9]\d{0,17})", text) else text
    label = plain_label(value)
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, int) and label > MAX_LABEL:
        raise ValueError(f"its label {label} is above {MAX_LABEL}")
    return None if isinstance(label, int) and label < 0 else label


def _described(members: dict[str, bytes], records: Sequence[str], asked: str | None) -> object:
    """The label in a JSON member: of that key (`meta.kind` is `kind` of `meta`), or a usual one."""
    for suffix in records:
        try:
            content = json.loads(members[suffix])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its .{suffix} member is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            if suffix != "json":
                return content
            raise ValueError("its .json member holds no record")
        key = usual_label(map(str, content)) if asked is None else asked
        found: object = content
        for part in [key] if key in content else str(key).split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None:
            return found
        if key is None or asked is not None:
            what = "no key called a label" if asked is None else f"no key {asked}"
            raise ValueError(f"{what} in .{suffix}; choose one with --label-key")
    return None


def _mixed(records: Iterator[Record], generator: random.Random) -> Iterator[Record]:
    """The records in an order shuffled through a buffer of limited size."""
    buffer = list(islice(records, SHUFFLE_BUFFER))
    for record in records:
        place = generator.randrange(len(buffer))
        yield buffer[place]
        buffer[place] = record
    generator.shuffle(buffer)
    yield from buffer
