"""What lies in a tar shard, from its headers alone: samples, their keys, and what is not used.

A sample is the members beside each other that share a key. WebDataset cuts names at the first dot
(`0001.left.jpg` is `left.jpg` of `0001`), which loses images whose names hold dots of their own
(`2024.01.31.jpg`). Here a part between dots belongs to the key unless it begins with a letter and
names a field: one that comes with several keys, stands beside a plain member, or has a usual name.
"""

import bz2
import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from crate_mae.common.budgets import check_growth
from crate_mae.common.file_kinds import file_kind
from crate_mae.sources.base import IMAGE_KEYS, LABEL_KEYS
from crate_mae.sources.folders import (
    below_containers,
    class_place,
    split_files,
    split_level,
    split_like,
)
from crate_mae.sources.found import PassedOver, Reading, Tally
from crate_mae.sources.images import image_suffixes
from crate_mae.sources.splits import NoSuchSplitError, joined_name, matching_splits

MAX_MEMBER_BYTES = 512 * 1024**2
_FIELDS = {*IMAGE_KEYS, *LABEL_KEYS, "left", "right", "mask", "seg"}
_NO_LABELS = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "npz")
MOST_ZEROS = 1 << 28
_BLOCK = 512
_PACKED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


@dataclass(frozen=True)
class Layout:
    """How the members of one shard belong together, and which of them are read."""

    fields: frozenset[str] = frozenset()
    """Parts of names that name a field, such as `left` or `label`."""
    reading: Reading = field(default_factory=Reading)
    split_depth: int = 0
    split_folders: frozenset[str] | None = None
    """The folders inside the shard that are read, at that depth; None for all."""
    class_depth: int | None = None
    """Where the folder stands that is the class; None where folders are no classes."""

    def key_and_suffix(self, member: str) -> tuple[str, str]:
        """A member's sample key and lower-case suffix; empty for a name without a key."""
        before, tail, suffix = _parts(member)
        if not before.rpartition("/")[2]:
            return "", ""
        if tail and tail not in self.fields:
            return f"{before}.{tail}", suffix.lower()
        return before, ".".join(filter(None, (tail, suffix))).lower()

    def is_wanted(self, member: str) -> bool:
        """Whether the member is an image or a label; nothing else is read, above all no pickle."""
        if re.match(r"__[^/]*__($|/)", member):
            return False
        folders = folders_of(member)
        if self.split_folders is not None and (
            len(folders) <= self.split_depth or folders[self.split_depth] not in self.split_folders
        ):
            return False
        suffix = self.key_and_suffix(member)[1]
        return self.is_label(suffix) or suffix_rank(suffix) is not None

    def is_label(self, suffix: str) -> bool:
        """Whether members of that suffix may hold labels."""
        last = suffix.rpartition(".")[2]
        if self.reading.unlabelled or last in ("", *_NO_LABELS):
            return False
        asked = self.reading.label_key
        if asked is not None and suffix == asked.lower():
            return True
        return last == "json" or is_label_text(suffix)

    def image_suffix(self, suffixes: Iterable[str]) -> str | None:
        """The suffix of the member that is the sample's image; a plain one wins, then the first."""
        present = list(suffixes)
        asked = self.reading.image_key
        if asked is not None:
            last = asked.lower()
            return next(
                (s for s in present if suffix_rank(s) is not None
                 and (s == last or s.rpartition(".")[0] == last)),
                None,
            )  # fmt: skip
        for wanted in (0, 1):
            for suffix in present:
                if suffix_rank(suffix) == wanted:
                    return suffix
        return None


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """One shard as its headers show it."""

    count: int
    """Samples with an image."""
    layout: Layout
    split: str | None
    """The split among its folders that is read; None where they are no splits, or all others."""
    splits: tuple[str, ...]
    """Folders inside the shard that are splits."""
    passed_over: tuple[PassedOver, ...]
    notes: tuple[str, ...]


def suffix_rank(suffix: str) -> int | None:
    """0 for an image suffix such as `jpg`, 1 for a compound one such as `left.jpg`, else None."""
    if f".{suffix}" in image_suffixes():
        return 0
    return 1 if "." + suffix.rpartition(".")[2] in image_suffixes() else None


def folders_of(member: str) -> list[str]:
    """The folders of a member, without those that say nothing: `./cat/1.jpg` lies in `cat`."""
    return [folder for folder in member.split("/")[:-1] if folder not in ("", ".", "..")]


def is_label_text(suffix: str) -> bool:
    """Whether a member of that suffix is called a label: `cls`, `label`, `label.txt`, `x.cls`."""
    first, _, last = suffix.partition(".")
    return suffix.rpartition(".")[2] == "cls" or (first in LABEL_KEYS and last in ("", "txt"))


def survey_shard(
    shard: Path, reading: Reading, split: str | None, *, inside: bool = False
) -> ShardFacts:
    """What a shard holds; raises ValueError unless every header is acceptable.

    `split` chooses among folders inside the shard, where these are splits: by default those for
    training. A shard whose folders are other splits alone gives no images, nor does one without
    such folders where the split can only be `inside`.
    """
    notes: list[str] = []
    met = [member for member in _headers(shard, notes) if not member.isdir()]
    members = [member for member in met if member.isreg()]
    names = [member.name for member in members]
    layout = Layout(_fields(names), reading)
    images = [name for name in names if suffix_rank(layout.key_and_suffix(name)[1]) == 0]
    folders = sorted({tuple(folders_of(name)) for name in images or names})
    depth, splits = split_level(folders)
    try:
        chosen = matching_splits(split, splits, shard.name) if splits else []
    except NoSuchSplitError:
        chosen = []
    read, told = joined_name(chosen) if chosen else (None, tuple(split_like(folders)))
    if not splits:
        told += tuple(split_files(images))
    if splits or inside:
        layout = replace(layout, split_depth=depth, split_folders=frozenset(chosen))
    suffixes = (layout.key_and_suffix(name)[1] for name in names)
    if not reading.unlabelled and not any(map(layout.is_label, suffixes)):
        place, stray = _class_depth(folders, splits, chosen, depth)
        layout = replace(layout, class_depth=place)
        if stray:
            name = next(n for n in images or names if tuple(folders_of(n)) == stray[0])
            told += (f"no labels: {name} lies beside the folders of classes, not in one",)
    tally = Tally()
    for member in met:
        if not member.isreg():
            tally.add("links and devices inside shards", member.name)
    count, key = 0, ""
    keys, again = set[str](), Tally()
    group: list[tuple[str, str]] = []
    for member in members:
        if not layout.is_wanted(member.name):
            _pass_over(member.name, layout, tally)
            continue
        if member.size > MAX_MEMBER_BYTES or member.issparse():
            raise ValueError(f"{shard} holds {member.name} of {member.size} bytes: refused")
        member_key, suffix = layout.key_and_suffix(member.name)
        if member_key != key:
            count += _settle(group, layout, tally)
            if suffix_rank(suffix) is not None and member_key in keys:
                again.add("samples come again under a name that was there before", member_key)
            key, group = member_key, []
        if suffix_rank(suffix) is not None:
            keys.add(member_key)
        if suffix in (present for present, _ in group):
            raise ValueError(f"{shard} holds {member.name} twice in a row")
        group.append((suffix, member.name))
    count += _settle(group, layout, tally)
    return ShardFacts(
        count=count,
        layout=layout,
        split=read,
        splits=tuple(sorted(splits)),
        passed_over=tally.entries(),
        notes=tuple(
            f"{shard.name}: {note}" for note in (*told, *notes, *map(str, again.entries()))
        ),
    )


def _pass_over(name: str, layout: Layout, tally: Tally) -> None:
    if re.match(r"__[^/]*__($|/)", name):
        return
    suffix = layout.key_and_suffix(name)[1]
    if layout.split_folders is not None and suffix_rank(suffix) is not None:
        tally.add("images of other splits inside shards", name)
    elif suffix:
        tally.add(f"members of another kind (.{suffix.rpartition('.')[2]})", name)
    else:
        tally.add("members without a key or a suffix", name)


def _settle(group: Sequence[tuple[str, str]], layout: Layout, tally: Tally) -> bool:
    """Whether a finished group of (suffix, member) has an image; what it leaves is counted."""
    image = layout.image_suffix(suffix for suffix, _ in group)
    for suffix, name in group:
        if suffix != image and suffix_rank(suffix) is not None:
            tally.add("further images of one sample", name)
        elif image is None and layout.is_label(suffix):
            tally.add("labels away from their images (sort members by name)", name)
    return image is not None


def _fields(names: Sequence[str]) -> frozenset[str]:
    """Parts of names that name a field, as `Layout` has them."""
    plain = {before for before, tail, _ in map(_parts, names) if not tail}
    keys: dict[str, set[str]] = {}
    for before, tail, _ in map(_parts, names):
        if tail:
            keys.setdefault(tail, set()).add(before)
    return frozenset(
        tail
        for tail, befores in keys.items()
        if len(befores) > 1 or tail.lower() in _FIELDS or befores & plain
    )


def _class_depth(
    folders: Sequence[Sequence[str]], splits: Container[str], chosen: Container[str], depth: int
) -> tuple[int | None, list[Sequence[str]]]:
    """(Where the folders stand that are classes, what lies beside them where others do not).

    None unless every image lies below a class.
    """
    if splits:
        place, folders = class_place(folders, splits, chosen, depth)
    else:
        place = below_containers(folders, 0)
    stray = [parts for parts in folders if len(parts) <= place]
    whole = bool(folders) and not stray
    return (place if whole else None), ([] if len(stray) == len(folders) else stray)


def _parts(member: str) -> tuple[str, str, str]:
    """(Name up to a trailing field, the field or "", last suffix) of a member."""
    folder, slash, file = member.rpartition("/")
    parts = file.split(".")
    if len(parts) == 1:
        return member, "", ""
    inner, suffix = parts[1:-1], parts[-1]
    place = len(inner)
    while place and re.match(r"[A-Za-z_]", inner[place - 1]):
        place -= 1
    return folder + slash + ".".join(parts[: 1 + place]), ".".join(inner[place:]), suffix


# -- headers ------------------------------------------------------------------------------------


def _headers(shard: Path, notes: list[str]) -> Iterator[tarfile.TarInfo]:
    """The members; what tells of a cut or joined file goes into `notes`.

    A compressed shard is read through to its end, as long as it grows as images do.
    """
    size, total = shard.stat().st_size, 0
    try:
        with unpacked(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                total += member.size
                check_growth(size, total, f"{shard}: its members")
                yield member
            notes += _end_faults(file, archive.offset)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        kind = None if _packing(shard) else file_kind(shard)
        why = f", but {kind}" if kind else f": {error}"
        raise ValueError(f"{shard} is not a complete tar file{why}") from error


def unpacked(shard: Path) -> IO[bytes]:
    """The shard as a plain tar file, unpacked while it is read."""
    opened = _packing(shard)
    unpacked: IO[bytes] = shard.open("rb") if opened is None else opened(shard)
    return unpacked


def _packing(shard: Path) -> Callable[..., Any] | None:
    """What opens a compressed shard; None for a plain one."""
    with shard.open("rb") as file:
        head = file.read(6)
    return next((opened for magic, opened in _PACKED.items() if head.startswith(magic)), None)


def _end_faults(file: IO[bytes], offset: int) -> Iterator[str]:
    """What is wrong behind the last member, which tar programs do not tell."""
    file.seek(offset)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK or any(mark):
        what = "it has no end mark" if not mark else f"the header at byte {offset} is damaged"
        yield f"{what}: cut off? What follows its last whole member is lost"
        return
    behind = 0
    for block in iter(partial(file.read, 1 << 20), b""):
        behind += len(block) if behind or any(block) else 0
        if not behind and file.tell() - offset > MOST_ZEROS:  # a packed file may never end
            break
    if behind:
        yield f"{behind} bytes behind its end mark are not read: were tars joined by cat?"
