"""Image files that a CSV table names, with labels and splits in its other columns."""

import codecs
import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from crate_mae.common.file_kinds import file_kind
from crate_mae.sources.base import EncodedSource, ImageSource, existing_path
from crate_mae.sources.folders import list_files, split_level
from crate_mae.sources.found import AS_USUAL, Found, Reading, Tally, passed_over
from crate_mae.sources.images import image_suffixes
from crate_mae.sources.labels import Labels, chosen_key, class_labels, label_column, other_labels
from crate_mae.sources.split_names import meaning_of
from crate_mae.sources.splits import (
    ChosenRows,
    are_splits,
    joined_name,
    match_split,
    matching_splits,
    rows_of_splits,
    split_column,
    split_rows,
)

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
    columns, rows, told = _read_table(path, address)
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
    files, passed = list_files(
        path.parent, image_suffixes(), address, follow_links=reading.follow_links
    )
    others = [name for name in columns if name not in (key, label)]
    column = split_column(others, lambda name: are_splits(name, [row[name] for row in rows]))
    of_split = ChosenRows()
    if column is not None:
        of_split = split_rows(column, [row[column] for row in rows], split, address)
    index, several = _by_name(files, of_split.split or split or path.stem)
    places = [_place(row[key], path.parent, index) for row in rows]
    if column is None:
        of_split = _split_of_paths(places, split, path, address)
    chosen = of_split.split
    met, named, found = Tally(), set[str](), dict[str, Row]()
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        named.update(() if place is None else (place,))
        if of_split.kept is not None and not of_split.kept[number]:
            if number in of_split.outside:
                met.add("rows of no split", row[key])
        elif place is None:
            met.add(_why_missing(row[key], path.parent, several), row[key])
        elif place in found:
            other = label is not None and row[label] != found[place][label]
            met.add(f"further rows of one image{', with another label' * other}", row[key])
        else:
            found[place] = row
    if not found:
        why = f": {met.entries()[0]}" if met.entries() else ""
        raise ValueError(
            f"{address}: none of the files that its column {key} names is in {path.parent}{why}"
        )
    labels = Labels(why_none=why)
    if label is not None:
        values = (_value(row[label]) for row in found.values())
        labels = class_labels(values, None, f"column {label}")
    source = CsvSource(address, chosen, path.parent, list(found), labels)
    why = labels.why_none
    beside = (entry for entry in passed if path.name not in entry.names or entry.count > 1)
    source.found = Found(
        splits=of_split.splits,
        passed_over=(
            *met.entries(),
            *passed_over("images that no row names", sorted(set(files) - named)),
            *beside,
        ),
        notes=(
            *of_split.notes,
            *rows_of_splits(others, of_split.split),
            *told,
            *other_labels(columns, label, reading),
        ),
        could_be_labelled=why is not None and not reading.unlabelled,
        no_labels=why,
    )
    return source


def _place(name: str, root: Path, index: Mapping[str, str]) -> str | None:
    """The listed file that a cell names: a path below root, an absolute one, a name or a stem."""
    name = name.strip()
    for form in (name, name.replace("\\", "/"), _composed(name)):
        if form in index:
            return index[form]
        if Path(form).is_absolute() and Path(form).is_relative_to(root.absolute()):
            return index.get(Path(form).relative_to(root.absolute()).as_posix())
    return None


def _why_missing(name: str, root: Path, several: Container[str]) -> str:
    """What to say of rows that name no file of ours."""
    name = name.strip()
    if name in several:
        return "rows whose file name stands for several files (give the path)"
    inside = name and not Path(name).is_absolute() and ".." not in Path(name).parts
    try:
        if inside and (root / name).is_file():
            return f"rows whose file is of another kind ({Path(name).suffix or 'no suffix'})"
    except (OSError, ValueError):  # a cell may hold anything
        pass
    return "rows whose file is not there"


def _split_of_paths(
    places: Sequence[str | None], split: str | None, table: Path, address: str
) -> ChosenRows:
    """The rows whose files lie in folders of that split, where folders are splits.

    Where a single split is there, it is read; so is the one that the table is called by.
    """
    folders = [[] if place is None else place.split("/")[:-1] for place in places]
    depth, splits = split_level([folder for folder in folders if folder])
    if not splits:
        if split is not None:
            match_split(split, (), address)
        return ChosenRows()
    wanted = split
    if split is None and len(set(splits.values())) == 1:
        wanted = next(iter(splits))
    elif split is None and meaning_of(table.stem) in splits.values():
        wanted = table.stem
    chosen = matching_splits(wanted, splits, address)
    called, notes = joined_name(chosen)
    at = [folder[depth] if len(folder) > depth else None for folder in folders]
    return ChosenRows(
        np.array([name in chosen for name in at]),
        called,
        tuple(sorted(splits)),
        tuple(row for row, name in enumerate(at) if name not in splits),
        (*notes, "the folders of the files tell the splits"),
    )


def _read_table(path: Path, address: str) -> tuple[list[str], list[Row], tuple[str, ...]]:
    """(Column names, rows, notes on them); ValueError for what is no table."""
    if path.is_dir():
        raise ValueError(f"{address} is a folder: name the table in it, or write imagefolder:PATH")
    if not path.is_file() or path.stat().st_size > MAX_CSV_BYTES:
        raise ValueError(f"{address} is no file, or larger than {MAX_CSV_BYTES} bytes")
    kind = file_kind(path)
    if kind is not None and kind.startswith("JSON"):
        raise ValueError(f"{address} is JSON: write a table with a line of column names above it")
    if kind not in (None, "a text file"):
        raise ValueError(f"{address} is {kind}")
    try:
        with path.open("rb") as raw:
            wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Excel writes
        with path.open(newline="", encoding="utf-16" if wide else "utf-8-sig") as file:
            first = file.readline()
            if "\0" in first:
                raise ValueError(f"{address} is not text in UTF-8, it seems: save it as CSV UTF-8")
            told = re.fullmatch(r"sep=(.)\s*", first)  # as Excel is told of a separator
            if told is None:
                file.seek(0)
            delimiter = max(",;\t|", key=first.count) if told is None else told[1]
            table = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            columns = [name.strip() for name in next(table, ())]
            filled = [row + [""] * (len(columns) - len(row)) for row in table if any(row)]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{address} is not text in UTF-8 (byte {error.start}): save it as CSV UTF-8"
        ) from error
    except csv.Error as error:
        raise ValueError(f"{address} is no table of text: {error}") from error
    twice = sorted(name for name, count in Counter(columns).items() if count > 1 and name)
    if twice:
        raise ValueError(f"{address} has several columns called {', '.join(twice)}: rename them")
    images = tuple(image_suffixes())
    if any(re.split(r"\s", name)[0].lower().endswith(images) for name in columns):
        raise ValueError(
            f"{address}: its first line names a file ({', '.join(columns)}): put a line of column"
            " names above it, such as file_name,label"
        )
    rows = [dict(zip(columns, row, strict=False)) for row in filled]
    if not rows:
        raise ValueError(f"{address} holds no rows below its line of column names")
    longer = [row for row in filled if any(cell.strip() for cell in row[len(columns) :])]
    notes = (
        f"{len(longer)} rows have more cells than there are columns, and what goes beyond them is"
        f" not read ({delimiter.join(longer[0])}): write cells that hold {delimiter!r} in quotes",
    ) if longer else ()  # fmt: skip
    return columns, rows, notes


def _by_name(files: Iterable[str], split: str) -> tuple[dict[str, str], set[str]]:
    """(Files by their path, and by name and stem that belong to one alone, those of several).

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
    paths = {form: file for file in listed for form in (f"./{file}", file)}
    known = {**kept, **paths}
    # One letter with an accent, or a letter and an accent: file systems differ.
    return {_composed(form): file for form, file in known.items()} | known, several - paths.keys()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _value(text: str) -> int | float | str | bool:
    """A cell as the number or truth value that it spells, or its text."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    # Not 1_0, 1e3 or 007, which may be names.
    if re.fullmatch(r"[-+]?(0|[1-9]\d{0,17})", text, re.ASCII):
        return int(text)
    if text.lower() == "nan" or re.fullmatch(r"[-+]?\d{1,18}\.\d*", text, re.ASCII):
        return float(text)
    return text
