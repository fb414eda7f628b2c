"""WebDataset shards, read in a fixed order and without ever unpacking or unpickling anything."""

import glob
import hashlib
import json
import os
import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from crate_mae.sources.base import MAX_LABEL, WHOLE, Share, Source
from crate_mae.sources.images import Sample, UnreadableImage, decode_image, image_suffixes
from crate_mae.sources.splits import select_shards

SHUFFLE_BUFFER = 1000
MAX_SHARDS = 1_000_000
MAX_MEMBER_BYTES = 512 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample as it lies in its shard, undecoded."""

    name: str
    image: bytes
    label_text: bytes | None
    """The `.cls` member."""
    description: bytes | None
    """The `.json` member."""


class StreamSource(Source):
    """Images in tar shards: no random access, but a deterministic order for any seed and epoch."""

    def __init__(
        self, shards: str, *, split: str | None = None, address: str | None = None
    ) -> None:
        _import_webdataset()  # a missing library should show now, not in a worker
        self.address, self.class_names = address or f"wds:{shards}", None
        files = _find_shards(shards)
        root = Path(os.path.commonpath([file.parent for file in files]))
        self.shards, self.split = select_shards(files, root, split, self.address)
        self._root = root
        self._counts: dict[Path, int] = {}

    def __len__(self) -> int:
        """The number of images, from the tar headers alone; computed once."""
        return sum(self._count_shard(shard) for shard in self.shards)

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
            self._count_shard(shard)  # proves the headers sound before their sizes are believed
            with shard.open("rb") as stream:
                opened = [{"url": str(shard), "stream": stream}]
                try:
                    members = library.tar_file_expander(opened, select_files=_is_wanted)
                    for group in library.group_by_keys(members):
                        record = _record(group, self._shard_name(shard))
                        if record is not None:
                            yield record
                except Exception as error:  # whatever its reader meets first
                    raise ValueError(f"{shard} is damaged: {error}") from error

    def _count_shard(self, shard: Path) -> int:
        if shard not in self._counts:
            self._counts[shard] = _count_images(shard)
        return self._counts[shard]

    def _shard_name(self, shard: Path) -> str:
        return shard.relative_to(self._root).as_posix()


def decode_record(record: Record) -> Sample | UnreadableImage:
    """The decoded sample, or the reason why there is none."""
    try:
        label = _label(record)
        return Sample(image=decode_image(record.image, record.name), label=label, name=record.name)
    except UnreadableImage as error:
        return error


def _import_webdataset() -> ModuleType:
    try:
        from webdataset import tariterators
    except ImportError as error:
        raise ImportError(
            'wds: sources need the webdataset library: pip install "crate-mae[wds]"'
        ) from error
    module: ModuleType = tariterators
    return module


def _find_shards(pattern: str) -> list[Path]:
    """The local shard files that a path, folder, glob or brace range names."""
    from braceexpand import braceexpand  # comes with webdataset

    _refuse_addresses(pattern)
    if Path(pattern).expanduser().is_dir():
        found = sorted(Path(pattern).expanduser().glob("*.tar"))
        if not found:
            raise FileNotFoundError(f"the folder {pattern} holds no .tar files")
        return found
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
    return sorted(files)


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


def _suffix_rank(suffix: str) -> int | None:
    """0 for an image suffix such as `jpg`, 1 for a compound one such as `left.jpg`, else None."""
    if f".{suffix}" in image_suffixes():
        return 0
    return 1 if "." + suffix.rpartition(".")[2] in image_suffixes() else None


def _image_suffix(suffixes: Iterable[str]) -> str | None:
    """The suffix of the member that is the sample's image; a plain one wins, then the first."""
    ranks = [(suffix, _suffix_rank(suffix)) for suffix in suffixes]
    for wanted in (0, 1):
        for suffix, rank in ranks:
            if rank == wanted:
                return suffix
    return None


def _is_wanted(member: str) -> bool:
    """Whether the member is an image or a label; nothing else is ever read, above all no pickle."""
    suffix = _key_and_suffix(member)[1]
    return suffix in {"cls", "json"} or _suffix_rank(suffix) is not None


def _key_and_suffix(member: str) -> tuple[str, str]:
    """A member's sample key and lower-case suffix: split at the first dot of the last part."""
    folder, slash, file = member.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem else ("", "")


def _count_images(shard: Path) -> int:
    """The number of samples with an image; raises ValueError unless every header is acceptable."""
    count, key = 0, ""
    suffixes: list[str] = []
    for member in _headers(shard):
        if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name):
            continue
        if not _is_wanted(member.name):
            continue
        if member.size > MAX_MEMBER_BYTES or member.issparse():
            raise ValueError(f"{shard} holds {member.name} of {member.size} bytes: refused")
        member_key, suffix = _key_and_suffix(member.name)
        if member_key != key:
            count += _image_suffix(suffixes) is not None
            key, suffixes = member_key, []
        if suffix in suffixes:
            raise ValueError(f"{shard} holds {member.name} twice in a row")
        suffixes.append(suffix)
    return count + (_image_suffix(suffixes) is not None)


def _headers(shard: Path) -> Iterator[tarfile.TarInfo]:
    # Only plain tar: a compressed one could unpack to any size, and its headers need all of it.
    try:
        with tarfile.open(shard, mode="r:") as archive:
            yield from archive
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{shard} is not a complete, uncompressed tar file: {error}") from error


def _record(group: dict[str, Any], shard_name: str) -> Record | None:
    suffix = _image_suffix(key for key in group if not key.startswith("__"))
    if suffix is None:
        return None
    return Record(
        name=f"{shard_name}/{group['__key__']}",
        image=group[suffix],
        label_text=group.get("cls"),
        description=group.get("json"),
    )


def _label(record: Record) -> int | None:
    """The class number in the `.cls` or `.json` member; none, or a negative one, is no label."""
    label: object = None
    if record.label_text is not None:
        if not re.fullmatch(rb"\s*-?\d{1,9}\s*", record.label_text):
            text = repr(record.label_text[:20])[1:]
            raise UnreadableImage(record.name, f"its label {text} is not a whole number")
        label = int(record.label_text)
    elif record.description is not None:
        label = _described_label(record.description, record.name)
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        return None
    if label > MAX_LABEL:
        raise UnreadableImage(record.name, f"its label {label} is above {MAX_LABEL}")
    return label


def _described_label(text: bytes, name: str) -> object:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableImage(name, f"its .json member is not valid JSON: {error}") from error
    return content.get("label") if isinstance(content, dict) else None


def _mixed(records: Iterator[Record], generator: random.Random) -> Iterator[Record]:
    """The records in an order shuffled through a buffer of limited size."""
    buffer = list(islice(records, SHUFFLE_BUFFER))
    for record in records:
        place = generator.randrange(len(buffer))
        yield buffer[place]
        buffer[place] = record
    generator.shuffle(buffer)
    yield from buffer
