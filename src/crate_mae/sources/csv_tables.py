"""Image files that a CSV table names, with labels and splits in its other columns."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from crate_mae.sources.base import EncodedSource, ImageSource, existing_path
from crate_mae.sources.folders import list_files
from crate_mae.sources.found import AS_USUAL, Found, Reading, passed_over
from crate_mae.sources.images import image_suffixes
from crate_mae.sources.labels import Labels, chosen_key, class_labels, label_column
from crate_mae.sources.split_names import meaning_of, split_name
from crate_mae.sources.splits import SPLIT_KEYS, joined_name, match_split, matching_splits

Row = dict[str, str]

MAX_CSV_BYTES = 1024**3
PATH_KEYS = (
    "file_name", "filename", "file", "filepath", "file_path", "path", "image_path", "img_path",
    "image", "images", "img", "image_name", "image_file", "image_id", "img_id", "name", "id",
)  # fmt: skip
"""What tables call their files; the first one present is taken."""


class CsvSource(EncodedSource):
    """One row for each image file."""

    def __init__(
        self, address: str, split: str | None, root: Path, names: Sequence[str], labels: Labels
    ) -> None:
        super().__init__(address, split, labels.numbers, labels.names)
        self._root, self._names = root, list(names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def encoded(self, index: int) -> Path:
        """The file of an image."""
        return self._root / self._names[index]

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        return self.name(index), self.label(index), self.encoded(index).stat().st_size


def open_csv(rest: str, split: str | None, reading: Reading = AS_USUAL) -> ImageSource:
    """The source of `csv:FILE`, a table that names image files in the folder it lies in.

    The first line names the columns. Files are named by their path below that folder, by their name
    alone or, as on Kaggle, by their name without suffix.
    """
    path, address = existing_path(rest, "csv"), f"csv:{rest}"
    columns, rows = _read_table(path, address)
    usual = {column.lower(): column for column in reversed(columns)}
    key = next((usual[name] for name in PATH_KEYS if name in usual), None)
    if reading.image_key is not None:
        key = chosen_key(reading.image_key, columns, address, "column")
    if key is None:
        raise ValueError(
            f"{address} has no column that names files, such as file_name; its columns:"
            f" {', '.join(columns)}; choose one with --image-key"
        )
    label, why = label_column([c for c in columns if c != key], [], reading, address)
    rows, part = _of_split(rows, usual, split, address)
    chosen = part.split
    files, _ = list_files(path.parent, image_suffixes(), address, follow_links=reading.follow_links)
    index = _by_name(files, chosen or path.stem)
    found: list[tuple[Row, str]] = []
    missing: list[str] = []
    for row in rows:
        name = row[key].strip()
        place = next((index[n] for n in (name, name.replace("\\", "/")) if n in index), None)
        if place is None:
            missing.append(row[key])
        else:
            found.append((row, place))
    if not found:
        raise ValueError(
            f"{address}: none of the files that its column {key} names"
            f"{f', such as {missing[0]},' if missing else ''} is in {path.parent}"
        )
    labels = Labels(why_none=why)
    if label is not None:
        labels = class_labels((_value(row[label]) for row, _ in found), None, f"column {label}")
    names = [place for _, place in found]
    source = CsvSource(address, chosen, path.parent, names, labels)
    why = labels.why_none
    source.found = Found(
        splits=part.splits,
        passed_over=(
            *passed_over("rows of no split", (row[key] for row in part.outside)),
            *passed_over("rows whose file is not there", missing),
            *passed_over("images that no row names", sorted(set(files) - set(names))),
        ),
        notes=part.notes,
        could_be_labelled=why is not None and not reading.unlabelled,
        no_labels=why,
    )
    return source


def _read_table(path: Path, address: str) -> tuple[list[str], list[Row]]:
    """(Column names, rows); ValueError for what is no table."""
    if not path.is_file() or path.stat().st_size > MAX_CSV_BYTES:
        raise ValueError(f"{address} is no file, or larger than {MAX_CSV_BYTES} bytes")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t|", key=first.count)
            table = csv.DictReader(file, delimiter=delimiter, restval="")
            rows = [{k: v for k, v in row.items() if k is not None} for row in table]
            columns = list(table.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{address} is no table of text in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{address} holds no rows below its line of column names")
    return columns, rows


class _Part(NamedTuple):
    """What a column of splits tells of the rows that are read."""

    split: str | None = None
    splits: tuple[str, ...] = ()
    outside: Sequence[Row] = ()
    """Rows of no split, where others have one."""
    notes: tuple[str, ...] = ()


def _of_split(
    rows: list[Row], usual: Mapping[str, str], split: str | None, address: str
) -> tuple[list[Row], _Part]:
    """(The rows of the split, what is known of it), where a column tells splits."""
    column = next((usual[name] for name in SPLIT_KEYS if name in usual), None)
    present = set() if column is None else {row[column].strip() for row in rows} - {""}
    if column is None or not present or any(split_name(name) is None for name in present):
        if split is not None:
            match_split(split, (), address)
        return rows, _Part()
    chosen = matching_splits(split, present, address)
    name, notes = joined_name(chosen)
    kept = [row for row in rows if row[column].strip() in chosen]
    outside = [row for row in rows if not row[column].strip()]
    return kept, _Part(name, tuple(sorted(present)), outside, notes)


def _by_name(files: Iterable[str], split: str) -> dict[str, str]:
    """Files by their path, then by their name and their stem where these belong to one alone.

    Of several, one in a folder of the split counts.
    """
    listed = list(files)
    index: dict[str, str] = {}
    several: set[str] = set()
    in_split = {
        file for file in listed
        if any(meaning_of(part) == meaning_of(split) for part in file.split("/")[:-1])
    }  # fmt: skip
    for file in [*sorted(in_split), *sorted(set(listed) - in_split)]:
        name = file.rpartition("/")[2]
        for short in {name, name.rpartition(".")[0]}:
            if short in index and (index[short] in in_split) == (file in in_split):
                several.add(short)
            index.setdefault(short, file)
    kept = {short: file for short, file in index.items() if short not in several}
    return {**kept, **{f"./{file}": file for file in listed}, **{file: file for file in listed}}


def _value(text: str) -> int | float | str | bool:
    """A cell as the number or truth value that it spells, or its text."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
