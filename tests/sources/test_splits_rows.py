"""Rows of tables and arrays that belong to a split are never trained on unasked."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_cases import Write, labels_of, names_of, opened, picture_table

from crate_mae.sources.splits import are_splits

WORDS = ["train", "test", "train", "val"]


def _written(
    kind: str, folder: Path, pictures: list[bytes], write: Write, name: str, words: list[str]
) -> str:
    path, labels = folder / f"x.{kind}", [0, 1, 2, 3]
    if kind == "parquet":
        table = picture_table(pictures, label=labels).append_column(name, pa.array(words))
        pq.write_table(table, path, row_group_size=1)
    elif kind == "npz":
        arrays: dict[str, Any] = {"labels": np.array(labels), name: np.array(words)}
        np.savez(path, images=np.zeros((4, 8, 8, 1), np.uint8), **arrays)
    else:
        rows = [f"{n}.png,{word},{n}" for n, word in enumerate(words)]
        path.write_text("\n".join([f"file,{name},label", *rows]))
        for number in range(4):
            write(f"{number}.png")
    return f"{'npy' if kind == 'npz' else kind}:{path}"


@pytest.mark.parametrize("kind", ["parquet", "npz", "csv"])
@pytest.mark.parametrize("name", ["phase", "data_split", "Usage", "fold", "set_type"])
def test_any_column_whose_values_are_splits_tells_them(
    tmp_path: Path, pictures: list[bytes], write: Write, kind: str, name: str
) -> None:
    address = _written(kind, tmp_path, pictures, write, name, WORDS)
    train = opened(address)
    assert (labels_of(train), train.split) == ([0, 2], "train")
    assert train.found.splits == ("test", "train", "val")
    assert train.found.notes == (f"the column {name} tells the splits",)
    assert labels_of(opened(address, split="test")) == [1]


@pytest.mark.parametrize("kind", ["parquet", "npz", "csv"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kind", ["train", "bus", "car", "test"]),  # a vehicle
        ("notes", ["train", "train", "train", "train"]),
        ("text", ["a test", "to train", "x", "the val"]),
    ],
)
def test_other_values_tell_nothing(
    tmp_path: Path, pictures: list[bytes], write: Write, kind: str, name: str, words: list[str]
) -> None:
    source = opened(_written(kind, tmp_path, pictures, write, name, words))
    assert (len(source), source.split) == (4, None)


@pytest.mark.parametrize("kind", ["parquet", "npz", "csv"])
def test_lists_that_choose_rows_are_told(
    tmp_path: Path, pictures: list[bytes], write: Write, kind: str
) -> None:
    source = opened(_written(kind, tmp_path, pictures, write, "test_idx", ["0", "1", "2", "3"]))
    assert len(source) == 4
    told = "test_idx: called like splits, and not read as such: all rows are read together"
    assert source.found.notes == (told,)


def test_splits_of_an_archive_in_a_column_or_a_pickle(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8), np.uint8)
    words = np.array(WORDS)[:, None]
    np.savez(tmp_path / "x.npz", images=images, split=words)
    assert len(opened(f"npy:{tmp_path / 'x.npz'}")) == 2
    np.savez(tmp_path / "x.npz", images=images, split=words.astype(object))
    source = opened(f"npy:{tmp_path / 'x.npz'}")
    assert len(source) == 4
    assert "split holds Python objects, which are never loaded" in " ".join(source.found.notes)


def test_folders_of_the_files_in_a_table_are_splits(write: Write, tmp_path: Path) -> None:
    for name in ("train/1.png", "train/2.png", "test/1.png", "val/1.png"):
        write(name)
    rows = "file,label\ntrain/1.png,a\ntest/1.png,b\ntrain/2.png,b\n"
    table = tmp_path / "all.csv"
    table.write_text(rows)
    source = opened(f"csv:{table}")
    assert (names_of(source), source.split) == (["train/1.png", "train/2.png"], "train")
    assert source.found.splits == ("test", "train")
    assert names_of(opened(f"csv:{table}", split="test")) == ["test/1.png"]
    table.rename(tmp_path / "test.csv")  # a table that is called by one
    assert names_of(opened(f"csv:{tmp_path / 'test.csv'}")) == ["test/1.png"]
    (tmp_path / "only.csv").write_text("file,label\nval/1.png,a\n")
    assert names_of(opened(f"csv:{tmp_path / 'only.csv'}")) == ["val/1.png"]
    with pytest.raises(ValueError, match="no split 'test': its splits are val"):
        opened(f"csv:{tmp_path / 'only.csv'}", split="test")


def test_many_values_are_no_splits() -> None:
    assert are_splits("x", ["train", "", "PublicTest", None])
    assert not are_splits("x", ["train"] * 2000 + ["test", "dog"])
    assert not are_splits("x", [f"train{n} " for n in range(30)] + ["test"])
    assert not are_splits("x", [])
