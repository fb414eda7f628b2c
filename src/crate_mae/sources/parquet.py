"""Images in a column of parquet files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crate_mae.sources.base import (
    IMAGE_KEYS,
    LABEL_KEYS,
    EncodedSource,
    existing_path,
)
from crate_mae.sources.folders import files_below
from crate_mae.sources.images import UnreadableImage
from crate_mae.sources.splits import select_shards

MAX_PARQUET_BYTES = 8 * 1024**3


class ParquetSource(EncodedSource):
    """Images in a column of parquet shards, held in memory undecoded."""

    def __init__(
        self,
        address: str,
        split: str | None,
        shards: Sequence[tuple[str, int]],
        encoded: pa.ChunkedArray,
        labels: np.ndarray | None,
        class_names: Sequence[str] | None,
    ) -> None:
        super().__init__(address, split, labels, class_names)
        self._column = encoded
        self._shard_names = [name for name, _ in shards]
        self._ends = np.cumsum([rows for _, rows in shards])
        self._sizes: list[int | None] | None = None

    def __len__(self) -> int:
        return len(self._column)

    def name(self, index: int) -> str:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        return f"{self._shard_names[shard]}/{row:06d}"

    def encoded(self, index: int) -> bytes:
        """The bytes of an image; raises UnreadableImage where the file holds its path alone."""
        data = self._column[index].as_py()
        if data is None:
            raise UnreadableImage(
                self.name(index),
                "the file holds at most a path here, not the image itself:"
                " write it again with the images embedded, or open their folder",
            )
        return bytes(data)

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        if self._sizes is None:
            self._sizes = pc.binary_length(self._column).to_pylist()
        return self.name(index), self.label(index), self._sizes[index]


def open_parquet(rest: str, split: str | None, column: str | None = None) -> ParquetSource:
    """The source of `parquet:PATH`, a file or a folder of files; their names tell the splits.

    With a `column`, its images in place of the usual ones, such as masks; names stay the same.
    """
    path, address = existing_path(rest, "parquet"), f"parquet:{rest}"
    root = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(_parquet_files(path, address))
    files, chosen = select_shards(files, root, split, address)
    names = [file.relative_to(root).as_posix() for file in files]
    try:
        return _read_parquet(address, chosen, files, names, column)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{address} cannot be read as parquet: {error}") from error


def _parquet_files(folder: Path, address: str) -> list[Path]:
    return [folder / name for name in files_below(folder, frozenset({".parquet"}), address)]


def _read_parquet(
    address: str,
    split: str | None,
    files: Sequence[Path],
    names: Sequence[str],
    column: str | None = None,
) -> ParquetSource:
    schema = pq.read_schema(files[0])
    if column is None:
        image, label, class_names = _find_columns(schema, address)
    else:
        image, label, class_names = column, None, None
        holding = [field.name for field in schema if _holds_images(field.type)]
        if column not in holding:
            raise ValueError(
                f"{address} has no column {column!r} of images; those that hold images:"
                f" {', '.join(holding) or 'none'}"
            )
    columns = [image] if label is None else [image, label]
    images: list[pa.Array] = []
    labels: list[np.ndarray] = []
    rows = dict.fromkeys(names, 0)
    for name, batch in _batches(dict(zip(names, files, strict=True)), columns, schema, address):
        rows[name] += batch.num_rows
        images.append(_encoded_images(batch.column(image)))
        if label is not None:
            labels.append(integer_column(batch.column(label)))
    if not any(rows.values()):
        raise ValueError(f"{address} holds no rows")
    numbers = np.concatenate(labels) if labels else None
    encoded = pa.chunked_array(images)
    return ParquetSource(address, split, list(rows.items()), encoded, numbers, class_names)


def _batches(
    files: Mapping[str, Path], columns: Sequence[str], schema: pa.Schema, address: str
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of each named file, in pieces, as long as they fit into memory."""
    budget = MAX_PARQUET_BYTES
    for name, file in files.items():
        with pq.ParquetFile(file) as table:
            for column in columns:
                _check_column(table.schema_arrow, schema, column, f"{address}, {name}")
            # In small pieces: what a file unpacks to is known only when it is unpacked.
            for batch in table.iter_batches(batch_size=256, columns=columns):
                budget -= batch.nbytes
                if budget < 0:
                    raise ValueError(_too_large(address))
                yield name, batch


def _check_column(present: pa.Schema, expected: pa.Schema, column: str, where: str) -> None:
    if column not in present.names:
        raise ValueError(f"{where} has no column {column!r}, which the first file has")
    if present.field(column).type != expected.field(column).type:
        raise ValueError(f"{where} has another type in column {column!r} than the first file")


def _too_large(address: str) -> str:
    path = address.partition(":")[2]
    return (
        f"{address} is larger than {MAX_PARQUET_BYTES} bytes, too much to hold in memory:"
        f" open it with hf:{path}, which reads it from disk"
    )


def _encoded_images(column: pa.Array) -> pa.Array:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def integer_column(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The column as signed integers, -1 where it is empty."""
    numbers: np.ndarray = pc.fill_null(pc.cast(column, pa.int64()), -1).to_numpy()
    return numbers


def _find_columns(
    schema: pa.Schema, address: str
) -> tuple[str, str | None, tuple[str, ...] | None]:
    """The image column, the label column if there is one, and the class names if they are known."""
    features = _hugging_face_features(schema)
    kinds = {name: feature.get("_type") for name, feature in features.items()}
    images = [field.name for field in schema if _holds_images(field.type)]
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    image = pick_column(images, [name for name in images if kinds.get(name) == "Image"], IMAGE_KEYS)
    if image is None:
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        problem = "several image columns" if images else "no column of encoded images"
        raise ValueError(f"{address} has {problem}; its columns: {listed}")
    marked = [name for name in integers if kinds.get(name) == "ClassLabel"]
    label = pick_label_column(integers, marked, address)
    known = features.get(label or "", {}).get("names")
    named = label in marked and isinstance(known, list)
    return image, label, tuple(map(str, known)) if named and known else None


def _hugging_face_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The features that the `datasets` library noted in the schema, if it wrote the file."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
        return {str(k): v for k, v in features.items() if isinstance(v, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def pick_column(candidates: list[str], marked: list[str], preferred: Sequence[str]) -> str | None:
    """The one to use: a marked one before others, a single one or else a preferred name."""
    for group in (marked, candidates):
        if len(group) == 1:
            return group[0]
        for name in preferred:
            if name in group:
                return name
    return None


def pick_label_column(integers: list[str], marked: list[str], address: str) -> str | None:
    """The integer column that holds the labels, or None; ValueError when several may be meant."""
    likely = [name for name in integers if not _counts_something(name)]
    label = pick_column(likely, marked, LABEL_KEYS)
    if label is None and likely:
        raise ValueError(
            f"{address} has several integer columns and nothing says which is the label:"
            f" {', '.join(likely)}; rename one to label"
        )
    return label


def _counts_something(name: str) -> bool:
    """Whether an integer column of that name is a row number or a size rather than a class."""
    known = {"id", "idx", "index", "row", "width", "height"}
    return name in known or name.endswith("_id") or name.startswith("__index_level_")
