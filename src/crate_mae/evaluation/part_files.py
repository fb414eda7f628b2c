"""A part of features as a parquet file: written whole or not at all, read within bounds.

Columns: `index` (number of the image in its source), `name`, `label` (-1 without one; only where
there are classes) and `values`. Nothing is packed, so that no file can grow when it is read, and a
checksum covers all of it.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crate_mae.common.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT = "crate-mae-part/1"
FACTS = b"crate_mae"
"""The key of a file's metadata that holds its facts as JSON."""
ROWS_AT_ONCE = 64
"""That are read: a name may be as long as its file allows."""
_PLAIN = {"PLAIN", "RLE", "BIT_PACKED"}


@dataclass(frozen=True, kw_only=True)
class PartRows:
    """Some rows of features, in the order of their images."""

    indices: Sequence[int]
    """The number of each image in its source."""
    names: Sequence[str]
    labels: Sequence[int]
    """-1 for an image without one."""
    values: Tensor
    """(n, ...) float32."""


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """What a part says of itself."""

    settings: str
    """The digest of the settings that it was made with."""
    number: int
    start: int
    """The first image that belongs to it."""
    stop: int
    """The first image that belongs to it no more."""
    rows: int = 0
    unreadable: tuple[tuple[str, str], ...] = ()
    """Name and reason of the images that have no row."""
    sha256: str = ""
    """Of everything else in the file."""
    format: str = FORMAT


def write_part(
    path: Path,
    batches: Iterable[PartRows],
    facts: PartFacts,
    unreadable: list[tuple[str, str]],
    *,
    row_shape: Sequence[int],
    labelled: bool,
) -> PartFacts:
    """The facts of the part that `path` now holds, beside those given: rows, unreadable, checksum.

    Batches are written as they come, so that one of them is in memory at a time; what cannot be
    read has gone into `unreadable` once they are through. An interrupted write leaves nothing.
    Raises NotWrittenError.
    """
    import pyarrow.parquet as pq

    width = prod(row_shape)
    schema = _schema(width, labelled)
    digest, count = _Digest(), 0
    with (
        replacing(path) as fresh,
        pq.ParquetWriter(fresh, schema, compression="none", use_dictionary=False) as file,
    ):
        for batch in batches:
            named = PartRows(
                indices=batch.indices,
                names=[utf8(name) for name in batch.names],
                labels=batch.labels if labelled else [-1] * len(batch.names),
                values=batch.values.reshape(len(batch.names), width).contiguous(),
            )
            digest.add(named)
            count += len(named.names)
            file.write_batch(_record_batch(named, schema))
        about = asdict(facts) | {
            "rows": count,
            "unreadable": [[utf8(name), utf8(reason)] for name, reason in unreadable],
        }
        about["sha256"] = digest.of(about)
        file.add_key_value_metadata({FACTS: json.dumps(about)})
    return _facts_of(about)


def read_part_facts(path: Path) -> PartFacts:
    """What a part says of itself, without its rows.

    Raises FileNotFoundError, and ValueError for what is no part of ours.
    """
    with _opened(path) as file:
        return _facts_of(_about(file))


def read_part(path: Path, *, row_shape: Sequence[int], labelled: bool) -> Iterator[PartRows]:
    """The rows of a part, some at a time.

    Raises ValueError before the first for columns other than asked for and for claims that go
    beyond the file, and after the last where its content is not what its checksum was made of.
    """
    with _opened(path) as file:
        about = _about(file)
        facts, width = _facts_of(about), prod(row_shape)
        _check_bounds(file, path.stat().st_size, facts.rows, width, labelled)
        digest = _Digest()
        for group in range(file.metadata.num_row_groups):
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[group]):
                rows = _rows_of(batch, width, labelled)
                digest.add(rows)
                yield PartRows(
                    indices=rows.indices,
                    names=rows.names,
                    labels=rows.labels,
                    values=rows.values.reshape(len(rows.names), *row_shape),
                )
        if digest.of(about) != facts.sha256:
            raise ValueError("its content is not what its checksum was made of")


def utf8(name: str) -> str:
    """The name as parquet takes it: names of files need not be UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


class _Digest:
    """A checksum of rows, however they are divided into batches, and of what is said of them."""

    def __init__(self) -> None:
        self._values, self._entries = hashlib.sha256(), hashlib.sha256()

    def add(self, rows: PartRows) -> None:
        self._values.update(rows.values.numpy().data)
        for entry in zip(rows.indices, rows.names, rows.labels, strict=True):
            self._entries.update(json.dumps(entry).encode())

    def of(self, about: dict[str, Any]) -> str:
        """The checksum of all rows and of the facts, whose own checksum does not count."""
        rest = {key: value for key, value in about.items() if key != "sha256"}
        words = [self._values.hexdigest(), self._entries.hexdigest(), rest]
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def _schema(width: int, labelled: bool) -> "pa.Schema":
    import pyarrow as pa

    values = pa.list_(pa.field("element", pa.float32(), nullable=False), width)
    fields = [("index", pa.int64()), ("name", pa.string()), ("label", pa.int64())]
    fields = [(name, kind) for name, kind in fields if labelled or name != "label"]
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in [*fields, ("values", values)]]
    )


def _record_batch(rows: PartRows, schema: "pa.Schema") -> "pa.RecordBatch":
    import pyarrow as pa

    values = pa.FixedSizeListArray.from_arrays(
        pa.array(rows.values.numpy().reshape(-1)), type=schema.field("values").type
    )
    columns: dict[str, Any] = {"index": rows.indices, "name": rows.names, "label": rows.labels}
    arrays = [
        values if field.name == "values" else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.record_batch(arrays, schema=schema)


def _rows_of(batch: "pa.RecordBatch", width: int, labelled: bool) -> PartRows:
    if any(column.null_count for column in batch.columns):
        raise ValueError("it has empty cells")
    values = batch.column("values").flatten().to_numpy(zero_copy_only=False)
    return PartRows(
        indices=batch.column("index").to_pylist(),
        names=batch.column("name").to_pylist(),
        labels=batch.column("label").to_pylist() if labelled else [-1] * batch.num_rows,
        values=torch.from_numpy(np.array(values, np.float32).reshape(batch.num_rows, width)),
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator["pq.ParquetFile"]:
    """The open file; whatever reading it raises becomes a ValueError that names it."""
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except Exception as error:  # of a library that reads damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is no whole part of features ({reason}): move it away and extract again"
        ) from error


def _about(file: "pq.ParquetFile") -> dict[str, Any]:
    text = (file.metadata.metadata or {}).get(FACTS)
    if text is None:
        raise ValueError("it does not say what it holds")
    about = json.loads(text)
    if not isinstance(about, dict):
        raise ValueError("what it says of itself are no named values")
    return about


def _facts_of(about: dict[str, Any]) -> PartFacts:
    """The facts of a part as they were read; ValueError where they are no such facts."""
    if about.get("format") != FORMAT:
        raise ValueError(f"format {about.get('format')!r} is not {FORMAT!r}")
    facts = PartFacts(**about)
    numbers = (facts.number, facts.start, facts.stop, facts.rows)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"numbers {numbers} are no whole numbers from 0")
    if not isinstance(facts.settings, str) or not isinstance(facts.sha256, str):
        raise ValueError("its digests are no text")
    broken = tuple((name, reason) for name, reason in facts.unreadable)
    if not all(isinstance(word, str) for entry in broken for word in entry):
        raise ValueError("names of its unreadable images are no text")
    if facts.rows + len(broken) != facts.stop - facts.start:
        raise ValueError(
            f"{facts.rows} rows and {len(broken)} unreadable images are not the"
            f" {facts.stop - facts.start} that it should have"
        )
    return PartFacts(**{**about, "unreadable": broken})


def _check_bounds(file: "pq.ParquetFile", size: int, rows: int, width: int, labelled: bool) -> None:
    """Raise ValueError for other columns, for packed ones, and for claims beyond `size` bytes."""
    wanted, found = _schema(width, labelled), file.schema_arrow.remove_metadata()
    if not found.equals(wanted):
        shown = ", ".join(f"{field.name} ({field.type})" for field in found)
        raise ValueError(f"its columns are not those of its settings, but {shown}")
    about, claimed, counted = file.metadata, 0, 0
    for group in map(about.row_group, range(about.num_row_groups)):
        counted += group.num_rows
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.compression != "UNCOMPRESSED" or not _PLAIN.issuperset(chunk.encodings):
                raise ValueError(f"its column {chunk.path_in_schema} is packed, as no part is")
            claimed += chunk.total_uncompressed_size
            floats = chunk.path_in_schema.startswith("values.")
            if floats and chunk.total_uncompressed_size < 4 * width * group.num_rows:
                raise ValueError("it has fewer bytes than its rows take")
    if claimed > size or counted != rows or about.num_rows != rows:
        raise ValueError(f"it claims {counted} rows of {claimed} bytes, of {size} in the file")
