"""Images in a column of parquet files."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crate_mae.common.budgets import check_growth, check_memory
from crate_mae.common.file_kinds import file_kind
from crate_mae.sources.base import IMAGE_KEYS, EncodedSource, existing_path
from crate_mae.sources.folders import list_files
from crate_mae.sources.found import AS_USUAL, Found, PassedOver, Reading, passed_over
from crate_mae.sources.images import UnreadableImage
from crate_mae.sources.labels import (
    Labels,
    chosen_key,
    class_labels,
    label_column,
    other_labels,
    usual_label,
    whole_labels,
)
from crate_mae.sources.parquet_pages import dictionary_bytes
from crate_mae.sources.splits import (
    MOST_SPLITS,
    ChosenFiles,
    ChosenRows,
    NoSuchSplitError,
    are_splits,
    match_split,
    rows_of_splits,
    select_shards,
    split_column,
    split_rows,
)

MAX_PARQUET_BYTES = 8 * 1024**3
_LOOKED_AT = 1000
"""Files whose notes tell whether a column holds splits."""
BATCH_BYTES = 64 << 20
"""Of the rows that are unpacked at once."""


class ParquetSource(EncodedSource):
    """Images in a column of parquet shards, held in memory undecoded."""

    def __init__(
        self,
        address: str,
        split: str | None,
        shards: Sequence[tuple[str, int]],
        encoded: pa.ChunkedArray,
        labels: Labels,
        kept: np.ndarray | None = None,
        *,
        of_records: bool = True,
    ) -> None:
        super().__init__(address, split, labels.numbers, labels.names)
        self._column, self._of_records = encoded, of_records
        self._rows = None if kept is None else np.flatnonzero(kept)
        self._shard_names = [name for name, _ in shards]
        self._ends = list(accumulate(rows for _, rows in shards))
        self._sizes: list[int | None] | None = None

    def __len__(self) -> int:
        return len(self._column)

    def name(self, index: int) -> str:
        place = index if self._rows is None else int(self._rows[index])
        shard = bisect_right(self._ends, place)
        row = place - (self._ends[shard - 1] if shard else 0)
        return f"{self._shard_names[shard]}/{row:06d}"

    def encoded(self, index: int) -> bytes:
        """The bytes of an image; raises UnreadableImage where the file holds its path alone."""
        data = self._column[index].as_py()
        if data is None:
            raise UnreadableImage(
                self.name(index),
                "the file holds at most a path here, not the image itself:"
                " write it again with the images embedded, or open their folder"
                if self._of_records
                else "there is no image in this row",
            )
        return bytes(data)

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        if self._sizes is None:
            self._sizes = pc.binary_length(self._column).to_pylist()
        return self.name(index), self.label(index), self._sizes[index]


def open_parquet(rest: str, split: str | None, reading: Reading = AS_USUAL) -> ParquetSource:
    """The source of `parquet:PATH`, a file or a folder of files.

    Their names tell the splits, or else a column such as `split`.
    """
    path, address = existing_path(rest, "parquet"), f"parquet:{rest}"
    root = path if path.is_dir() else path.parent
    files: list[Path] = [path]
    passed: tuple[PassedOver, ...] = ()
    if path.is_dir():
        listed, passed = list_files(
            path, frozenset({".parquet"}), address, follow_links=reading.follow_links
        )
        files = [path / name for name in listed]
    try:
        chosen = select_shards(files, root, split, address)
    except NoSuchSplitError:
        chosen = select_shards(files, root, None, address)
        if chosen.splits:
            raise  # else a column may tell
    names = [file.relative_to(root).as_posix() for file in chosen.files]
    rest_names = [file.relative_to(root).as_posix() for file in chosen.rest]
    try:
        rows = _split_rows(chosen, names, split, address)
        columns = [field.name for field in _schema(chosen.files)]
        source, why, told = _read_parquet(address, rows, chosen.files, names, reading)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{address} cannot be read as parquet{_but(chosen.files, error)}"
        ) from error
    source.found = Found(
        splits=rows.splits,
        passed_over=(
            *passed,
            *passed_over("files outside the splits", rest_names),
            *passed_over("rows of no split", map(str, rows.outside)),
        ),
        notes=(*chosen.notes, *rows.notes, *rows_of_splits(columns, rows.split), *told),
        could_be_labelled=why is not None and not reading.unlabelled,
        no_labels=why,
    )
    return source


def _but(files: Sequence[Path], error: Exception) -> str:
    """What the first file is that is no parquet, or what reading said."""
    for file in files:
        kind = file_kind(file)
        if kind is not None and not kind.startswith("parquet"):
            return f": {file.name} is {kind}"
        if file.stat().st_size == 0:
            return f": {file.name} is empty"
        if kind is not None and not _ends_as_parquet(file):
            return f": {file.name} does not end as parquet does: cut off? Fetch it again"
    return f": {error}"


def _ends_as_parquet(file: Path) -> bool:
    with file.open("rb") as opened:
        opened.seek(-4, 2)
        return opened.read() == b"PAR1"


def _split_rows(
    chosen: ChosenFiles, names: Sequence[str], split: str | None, address: str
) -> ChosenRows:
    """The rows of the split: all of the chosen files where their names tell it, else by column."""
    schema = _schema(chosen.files)
    column = split_column(
        (field.name for field in schema if not _holds_images(field.type)),
        lambda name: _seem_splits(name, schema, chosen.files),
    )
    if chosen.splits or column is None:
        if split is not None and not chosen.splits:
            match_split(split, (), address)
        told = f"the column {column} may tell splits: the names of the files do, and it is not read"
        notes = () if column is None else (told,)
        return ChosenRows(split=chosen.split, splits=chosen.splits, notes=notes)
    words = _hugging_face_features(schema).get(column, {}).get("names")
    values: list[object] = []
    for _, batch in _batches(
        dict(zip(names, chosen.files, strict=True)), [column], schema, address
    ):
        values += batch.column(column).to_pylist()
    if isinstance(words, list):  # numbers that the file has names for
        values = [words[v] if isinstance(v, int) and 0 <= v < len(words) else v for v in values]
    return split_rows(column, values, split, address)


def _schema(files: Sequence[Path]) -> pa.Schema:
    """The columns of the first file that has rows: those of none may be of no type."""
    for file in files:
        with pq.ParquetFile(file) as table:
            if table.metadata.num_rows:
                return table.schema_arrow
    return pq.read_schema(files[0])


def _seem_splits(column: str, schema: pa.Schema, files: Sequence[Path]) -> bool:
    """Whether the lowest and highest values that files note of a column of text are splits."""
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return False
    bounds: set[str] = set()
    for file in files[:_LOOKED_AT]:
        with pq.ParquetFile(file) as table:
            about = table.metadata
            for group in range(about.num_row_groups):
                for index in range(about.num_columns):
                    chunk = about.row_group(group).column(index)
                    noted = chunk.statistics if chunk.path_in_schema == column else None
                    if noted is not None and noted.has_min_max:
                        bounds |= {str(noted.min), str(noted.max)}
        if len(bounds) > MOST_SPLITS:
            break
    return are_splits(column, sorted(bounds))


def _read_parquet(
    address: str,
    part: ChosenRows,
    files: Sequence[Path],
    names: Sequence[str],
    reading: Reading,
) -> tuple[ParquetSource, str | None, tuple[str, ...]]:
    """(The source of these rows, why it has no labels where it has none, notes on them)."""
    schema = _schema(files)
    image, label, class_names, why = _find_columns(schema, reading, address)
    columns = [image] if label is None else [image, _top(label, schema)]
    images: list[pa.Array] = []
    labels: list[pa.Array] = []
    rows = dict.fromkeys(names, 0)
    for name, batch in _batches(dict(zip(names, files, strict=True)), columns, schema, address):
        seen = sum(rows.values())
        rows[name] += batch.num_rows
        if part.kept is not None:
            batch = batch.filter(pa.array(part.kept[seen : seen + batch.num_rows]))
        images.append(_encoded_images(batch.column(image)))
        if label is not None:
            labels.append(_nested(batch, label, address))
    if not any(rows.values()):
        raise ValueError(f"{address} holds no rows")
    found = Labels(why_none=why)
    if label is not None:
        found = column_labels(labels, class_names, f"the column {label}")
    if len({array.type for array in images}) > 1:
        images = [array.cast(pa.large_binary()) for array in images]
    encoded = pa.chunked_array(images)
    shards = list(rows.items())
    records = pa.types.is_struct(schema.field(image).type)
    source = ParquetSource(
        address, part.split, shards, encoded, found, part.kept, of_records=records
    )
    return source, found.why_none, other_labels(schema.names, label, reading)


def _top(path: str, schema: pa.Schema) -> str:
    """The column of that name, else the column of records that `column.part` is a part of."""
    return path if path in schema.names else path.partition(".")[0]


def _nested(batch: pa.RecordBatch, path: str, address: str) -> pa.Array:
    """The column of that name, or the part of a column of records that `column.part` names."""
    name = _top(path, batch.schema)
    part, column = path.removeprefix(name).removeprefix("."), batch.column(name)
    if not part:
        return column
    try:
        return pc.struct_field(column, part.split("."))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"{address} has no {part!r} in its column {name}: {error}") from error


def column_labels(
    chunks: Sequence[pa.Array], class_names: Sequence[str] | None, where: str
) -> Labels:
    """The labels of a column in chunks, whose types may differ as those of shards do."""
    if all(pa.types.is_integer(chunk.type) for chunk in chunks):
        try:
            numbers = np.concatenate([integer_column(chunk) for chunk in chunks])
        except pa.ArrowInvalid:
            return Labels(why_none=f"{where} holds numbers beyond 64 bits, which are no classes")
        return whole_labels(numbers, class_names, where)
    values = (value for chunk in chunks for value in chunk.to_pylist())
    return class_labels(values, class_names, where)


def _batches(
    files: Mapping[str, Path], columns: Sequence[str], schema: pa.Schema, address: str
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of each named file, in pieces, as long as they fit into memory."""
    budget = MAX_PARQUET_BYTES
    for name, file in files.items():
        unpacked, packed = 0, file.stat().st_size
        with file.open("rb") as raw, pq.ParquetFile(file, page_checksum_verification=True) as table:
            for column in columns:
                _check_column(table.schema_arrow, schema, column, f"{address}, {name}")
            for group in range(table.num_row_groups):
                rows = _rows_at_once(table, group, columns, raw)
                for batch in table.iter_batches(
                    batch_size=rows, row_groups=[group], columns=columns
                ):
                    batch = _plain(batch)
                    budget -= batch.nbytes
                    unpacked += batch.nbytes
                    check_growth(packed, unpacked, f"{address}, {name}: its values")
                    if budget < 0:
                        raise ValueError(_too_large(address))
                    yield name, batch


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with bytes of any kind (of fixed size, views, dictionaries) as plain ones."""
    for index, field in enumerate(batch.schema):
        if _is_bytes(field.type) and not pa.types.is_binary(field.type):
            plain = batch.column(index).cast(pa.large_binary())
            batch = batch.set_column(index, field.name, plain)
    return batch


def _rows_at_once(table: pq.ParquetFile, group: int, columns: Sequence[str], raw: IO[bytes]) -> int:
    """Rows of a row group whose values stay within BATCH_BYTES, whatever they are.

    A value in a dictionary is stored once and may stand in every row: the number of rows alone then
    tells how much memory a batch takes. The first row shows what a value is like.
    """
    about, most = table.metadata.row_group(group), 1
    for index in range(about.num_columns):
        chunk = about.column(index)
        path = chunk.path_in_schema
        if any(path == column or path.startswith(f"{column}.") for column in columns):
            check_memory(chunk.total_uncompressed_size, f"the values of {path}")
            if any("DICTIONARY" in encoding for encoding in chunk.encodings):
                most = max(most, min(chunk.total_uncompressed_size, dictionary_bytes(chunk, raw)))
    first = next(iter(table.iter_batches(batch_size=1, row_groups=[group], columns=columns)), None)
    most = max(most, 1 if first is None else first.nbytes)
    return max(1, min(256, BATCH_BYTES // most))


def _check_column(present: pa.Schema, expected: pa.Schema, column: str, where: str) -> None:
    if column not in present.names:
        raise ValueError(
            f"{where} has no column {column!r}, which the first file has: choose others with"
            " --image-key and --label-key (none for no labels)"
        )
    here, there = present.field(column).type, expected.field(column).type
    if _holds_images(there) and pa.types.is_struct(here) != pa.types.is_struct(there):
        raise ValueError(f"{where} has another type in column {column!r} than the first file")


def _too_large(address: str) -> str:
    path = address.partition(":")[2]
    return (
        f"{address} is larger than {MAX_PARQUET_BYTES} bytes, too much to hold in memory:"
        f" open it with hf:{path}, which reads it from disk"
    )


def _encoded_images(column: pa.Array) -> pa.Array:
    field = _bytes_field(column.type)
    return column if field is None else pc.struct_field(column, field)


def integer_column(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The column as signed integers, -1 where it is empty."""
    numbers: np.ndarray = pc.fill_null(pc.cast(column, pa.int64()), -1).to_numpy()
    return numbers


def _find_columns(
    schema: pa.Schema, reading: Reading, address: str
) -> tuple[str, str | None, tuple[str, ...] | None, str | None]:
    """The image column, the label column if any, its class names if known, why there is none."""
    features = _hugging_face_features(schema)
    kinds = {name: feature.get("_type") for name, feature in features.items()}
    images = [field.name for field in schema if _holds_images(field.type)]
    image = image_column(images, [n for n in images if kinds.get(n) == "Image"], reading, address)
    if image is None:
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        if images:
            raise ValueError(
                f"{address} has several image columns: {', '.join(images)}; choose one with"
                " --image-key"
            )
        raise ValueError(
            f"{address} has no column of encoded images; its columns: {listed}{_remedy(schema)}"
        )
    others = [field.name for field in schema if field.name != image]
    if reading.label_key is not None and reading.label_key.partition(".")[0] in others:
        others.append(reading.label_key)
    marked = [name for name in others if kinds.get(name) == "ClassLabel"]
    label, why = label_column(others, marked, reading, address)
    known = features.get(label or "", {}).get("names")
    named = label in marked and isinstance(known, list)
    return image, label, tuple(map(str, known)) if named and known else None, why


def _remedy(schema: pa.Schema) -> str:
    """What to do about a column that is called one of images and holds something else."""
    usual = [field for field in schema if field.name.lower() in (*IMAGE_KEYS, "bytes", "path")]
    if not usual:
        return ""
    name, kind = usual[0].name, usual[0].type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_struct(kind):
        return f"; {name} holds paths at most: write the bytes of the image files into it"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"; {name} holds lists: write one encoded image a row, or arrays into .npy"
    return ""


def _hugging_face_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The features that the `datasets` library noted in the schema, if it wrote the file."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
        return {str(k): v for k, v in features.items() if isinstance(v, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_images(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or _bytes_field(kind) is not None


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    of_kind = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(of(kind) for of in of_kind)


def _bytes_field(kind: pa.DataType) -> str | None:
    """The part of records that holds bytes: one called so, else the only one; None without."""
    if not pa.types.is_struct(kind):
        return None
    found = [field.name for field in kind if _is_bytes(field.type)]
    return "bytes" if "bytes" in found else found[0] if len(found) == 1 else None


def image_column(
    candidates: Sequence[str], marked: Sequence[str], reading: Reading, address: str
) -> str | None:
    """The one asked for, else a marked one, a single one, or one of a usual name; None if unclear.

    A column that is called a label is taken for images only where nothing else can be.
    """
    if reading.image_key is not None:
        return chosen_key(reading.image_key, candidates, address, "column of images")
    likely = [name for name in candidates if usual_label([name]) is None]
    for group in (marked, likely, candidates):
        if len(group) == 1:
            return group[0]
        lower = {name.lower(): name for name in reversed(group)}
        for name in IMAGE_KEYS:
            if name in lower:
                return lower[name]
    return None
