"""Labels in every form people store them, in every kind of source that has columns."""

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_cases import Write, labels_of, names_of, opened, picture_table

from crate_mae.sources.address import open_pair, open_source
from crate_mae.sources.found import Reading
from crate_mae.sources.labels import class_labels

FORMS: dict[str, tuple[Any, list[int | None], tuple[str, ...]]] = {
    "words": (["red", "blue", "", "red"], [1, 0, None, 1], ("blue", "red")),
    "booleans": ([True, False, None, True], [1, 0, None, 1], ("false", "true")),
    "numbers": ([3, 0, -1, 1], [3, 0, None, 1], ("0", "1", "2", "3")),
    "whole floats": ([2.0, float("nan"), 0.0, 1.0], [2, None, 0, 1], ("0", "1", "2")),
    "digits": (["10", "9", "9", "2"], [2, 1, 1, 0], ("2", "9", "10")),
    "single lists": ([[1], [], [0], [1]], [1, None, 0, 1], ("0", "1")),
    "one-hot": ([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], [1, 0, 2, 1], ("0", "1", "2")),
    "bytes": ([b"b", b"a", None, b"b"], [1, 0, None, 1], ("a", "b")),
    "decimals": ([Decimal("2.0"), None, Decimal(0), Decimal(1)], [2, None, 0, 1], ("0", "1", "2")),
}
NO_CLASSES = {
    "fractions": ([0.5, 1.0, 2.0, 3.0], "fractions such as 0.5"),
    "several": ([[0, 1, 1], [1], [0], [1]], "several labels an image"),
    "records": ([{"name": "a", "id": 1}] * 4, "records of name, id: .*--label-key NAME.name`"),
    "decimals": ([Decimal("0.5")] * 4, "fractions such as 0.5"),
    "nothing": ([None] * 4, "is empty"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_in_a_parquet_column(tmp_path: Path, pictures: list[bytes], form: str) -> None:
    values, numbers, names = FORMS[form]
    pq.write_table(picture_table(pictures, label=pa.array(values)), tmp_path / "x.parquet")
    source = opened(f"parquet:{tmp_path}")
    assert (labels_of(source), source.class_names) == (numbers, names)


@pytest.mark.parametrize("form", NO_CLASSES)
def test_what_is_no_class_stops_nothing_and_is_told(
    tmp_path: Path, pictures: list[bytes], form: str, caplog: pytest.LogCaptureFixture
) -> None:
    values, why = NO_CLASSES[form]
    pq.write_table(picture_table(pictures, label=pa.array(values)), tmp_path / "x.parquet")
    source = opened(f"parquet:{tmp_path}")
    assert source.class_names is None
    assert len(source) == 4
    assert re.search(why, caplog.text)
    with pytest.raises(ValueError, match=rf"has no labels: .*{why}"):
        open_pair(f"parquet:{tmp_path}")


def test_dictionaries_and_parts_of_records(tmp_path: Path, pictures: list[bytes]) -> None:
    table = picture_table(
        pictures,
        label=pa.array(["b", "a", "b", "c"]).dictionary_encode(),
        meta=[{"kind": k, "n": 1} for k in "xyxy"],
    )
    pq.write_table(table, tmp_path / "x.parquet")
    assert labels_of(opened(f"parquet:{tmp_path}")) == [1, 0, 1, 2]
    chosen = opened(f"parquet:{tmp_path}", reading=Reading(label_key="meta.kind"))
    assert (labels_of(chosen), chosen.class_names) == ([0, 1, 0, 1], ("x", "y"))


def test_dots_in_names_of_columns(tmp_path: Path, pictures: list[bytes]) -> None:
    """As `pandas.json_normalize` writes them, beside a column of records that is called alike."""
    table = pa.table({"photo.jpg": pictures, "meta.kind": list("abab")})
    pq.write_table(table, tmp_path / "x.parquet")
    flat = opened(f"parquet:{tmp_path}", reading=Reading(label_key="meta.kind"))
    assert (labels_of(flat), flat.class_names) == ([0, 1, 0, 1], ("a", "b"))
    records = pa.array([{"kind": "z", "deep": {"er": n % 2}} for n in range(4)])
    pq.write_table(table.append_column("meta", records), tmp_path / "x.parquet")
    both = opened(f"parquet:{tmp_path}", reading=Reading(label_key="meta.kind"))
    assert both.class_names == ("a", "b")
    deep = opened(f"parquet:{tmp_path}", reading=Reading(label_key="meta.deep.er"))
    assert labels_of(deep) == [0, 1, 0, 1]


def test_shards_may_differ_in_the_type_of_numbers(tmp_path: Path, pictures: list[bytes]) -> None:
    for number, kind in enumerate((pa.int64(), pa.int32(), pa.uint8())):
        table = picture_table(pictures, label=pa.array([0, 1, 2, 1], kind))
        pq.write_table(table, tmp_path / f"{number}.parquet")
    assert labels_of(opened(f"parquet:{tmp_path}")) == [0, 1, 2, 1] * 3


def test_an_integer_column_that_is_not_called_a_label_is_none(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    table = picture_table(pictures, year=[2019, 2016, 1991, 2020], seed=[7, 2**31, 5, 1])
    pq.write_table(table, tmp_path / "x.parquet")
    address = f"parquet:{tmp_path}"
    source = opened(address)
    assert source.class_names is None
    assert "(year, seed); choose one with --label-key" in str(source.found.no_labels)
    by_year = opened(address, reading=Reading(label_key="year"))
    assert by_year.label(2) == 1991
    with pytest.raises(ValueError, match=r"no column 'yaer' .did you mean 'year'.*year, seed"):
        open_source(address, reading=Reading(label_key="yaer"))


def test_no_labels_on_request(tmp_path: Path, pictures: list[bytes], write: Write) -> None:
    none = Reading(label_key="none")
    pq.write_table(picture_table(pictures, label=[0, 1, 1, 0]), tmp_path / "x.parquet")
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, 1]))
    for name in ("folder/a/1.png", "folder/b/1.png"):
        write(name)
    for address in (
        f"parquet:{tmp_path / 'x.parquet'}", f"npy:{tmp_path / 'x.npz'}",
        f"imagefolder:{tmp_path / 'folder'}", "digits",
    ):  # fmt: skip
        source = opened(address, reading=none)
        assert source.class_names is None
        assert source.load(0).label is None


def test_keys_of_what_has_none_are_refused(tmp_path: Path, write: Write) -> None:
    for name in ("folder/a/1.png", "folder/b/1.png"):
        write(name)
    pytest.importorskip("tifffile").imwrite(tmp_path / "x.tif", np.zeros((2, 8, 8), np.uint8))
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "1.npy", np.zeros((8, 8), np.uint8))
    for address in (
        "digits", f"imagefolder:{tmp_path / 'folder'}", f"tiff:{tmp_path / 'x.tif'}",
        f"tiff:{tmp_path}", f"npy:{tmp_path / 'arrays'}",
    ):  # fmt: skip
        told = rf"^{re.escape(address)} has no columns to choose from: leave the"
        with pytest.raises(ValueError, match=rf"{told} label key 'kind' out \(--label-key;"):
            open_source(address, reading=Reading(label_key="kind"))
        both = Reading(image_key="photo", label_key="kind")
        with pytest.raises(ValueError, match=rf"{told} image key 'photo' and the label key 'kind'"):
            open_source(address, reading=both)
        with pytest.raises(ValueError, match=r"of a run --data\.image_key\)"):
            open_source(address, reading=Reading(image_key="photo", label_key="none"))
        assert opened(address, reading=Reading(label_key="none")).class_names is None


def test_one_array_has_labels_to_choose_and_no_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    np.save(tmp_path / "kinds.npy", np.array(["b", "a"]))
    address = f"npy:{tmp_path / 'x.npy'}"
    assert labels_of(opened(address, reading=Reading(label_key="kinds.npy"))) == [1, 0]
    with pytest.raises(ValueError, match=r"x\.npy has no columns .* the image key 'photo' out"):
        open_source(address, reading=Reading(image_key="photo", label_key="kinds.npy"))


def test_the_image_column_is_chosen(tmp_path: Path, pictures: list[bytes]) -> None:
    table = pa.table({"left": pictures, "right": list(reversed(pictures)), "label": [0, 1, 1, 0]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="choose one with --image-key"):
        open_source(f"parquet:{tmp_path}")
    for key, order in (("left", pictures), ("right", pictures[::-1])):
        source = opened(f"parquet:{tmp_path}", reading=Reading(image_key=key))
        assert source.encoded(0) == order[0]  # type: ignore[attr-defined]


ARRAYS: dict[str, Callable[[], np.ndarray]] = {
    "int32": lambda: np.array([2, 0, 1], np.int32),
    "big-endian": lambda: np.array([2, 0, 1], ">i8"),
    "column": lambda: np.array([[2], [0], [1]], np.uint8),
    "words": lambda: np.array(["c", "a", "b"]),
    "booleans": lambda: np.array([True, False, True]),
    "one-hot": lambda: np.eye(3)[[2, 0, 1]],
}


@pytest.mark.parametrize("form", ARRAYS)
def test_forms_in_arrays(tmp_path: Path, form: str) -> None:
    values = ARRAYS[form]()
    expected = [1, 0, 1] if form == "booleans" else [2, 0, 1]
    images = np.zeros((3, 8, 9), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=values)
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "x_labels.npy", values)
    for name in ("x.npz", "x.npy"):
        source = opened(f"npy:{tmp_path / name}")
        assert labels_of(source) == expected
        assert source.class_names is not None
        assert source.class_names[-1] in ("2", "c", "true")


@pytest.mark.parametrize(
    ("image", "label", "test"),
    [("trainX", "trainY", "testX"), ("X_Train", "Y_Train", "X_Test"),
     ("train/images", "train/labels", "test/images"), ("imgsTrain", "classId_train", "imgsTest")],
)  # fmt: skip
def test_names_of_arrays_in_any_spelling(tmp_path: Path, image: str, label: str, test: str) -> None:
    arrays = {image: np.zeros((3, 8, 9), np.uint8), label: np.array([2, 0, 1]),
              test: np.zeros((2, 8, 9), np.uint8)}  # fmt: skip
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    source = opened(f"npy:{tmp_path / 'x.npz'}")
    assert (len(source), source.split, labels_of(source)) == (3, "train", [2, 0, 1])
    assert source.found.splits == ("test", "train")


def test_one_image_has_one_label_and_other_arrays_are_told(tmp_path: Path) -> None:
    image = np.zeros((8, 9, 3), np.uint8)
    np.savez(tmp_path / "x.npz", image=image, label=np.array(3), mask=image[..., 0])
    source = opened(f"npy:{tmp_path / 'x.npz'}")
    assert labels_of(source) == [3]
    np.savez(tmp_path / "y.npz", x_train=image[None], x_unlabeled=image[None])
    told = opened(f"npy:{tmp_path / 'y.npz'}").found.passed_over
    assert [str(entry) for entry in told] == ["1 arrays that may be images: x_unlabeled"]


@pytest.mark.parametrize("column", [[-1, -1, -1, -1], [-2, None, -1, -1]])
def test_numbers_below_zero_alone_are_no_labels(
    tmp_path: Path, pictures: list[bytes], column: list[int | None]
) -> None:
    pq.write_table(picture_table(pictures, label=column), tmp_path / "x.parquet")
    found = opened(f"parquet:{tmp_path}").found
    assert found.no_labels == "the column label holds no class number of 0 or more"


def test_pickled_labels_are_not_loaded_but_told(tmp_path: Path) -> None:
    pickled = np.array(["a", "b"], dtype=object)
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8)), labels=pickled, allow_pickle=True)
    source = opened(f"npy:{tmp_path / 'x.npz'}")
    assert source.class_names is None
    assert "never loaded: save the labels" in str(source.found.no_labels)
    np.save(tmp_path / "y.npy", np.zeros((2, 8, 8)))
    np.save(tmp_path / "y_labels.npy", pickled, allow_pickle=True)
    assert "never loaded" in str(opened(f"npy:{tmp_path / 'y.npy'}").found.no_labels)
    with pytest.raises(ValueError, match="holds Python objects, which are never loaded"):
        open_source(f"npy:{tmp_path / 'y_labels.npy'}")


def test_archives_with_splits_and_other_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "x_train": rng.integers(0, 255, (4, 8, 8, 3), np.uint8),
        "y_train": np.array([0, 1, 1, 0]),
        "x_test": rng.integers(0, 255, (2, 8, 8, 3), np.uint8),
        "y_test": np.array([1, 0]),
    }
    np.savez(tmp_path / "x.npz", **parts)
    for split, count in ((None, 4), ("test", 2)):
        source = opened(f"npy:{tmp_path / 'x.npz'}", split=split)
        name = source.split
        assert (len(source), name) == (count, split or "train")
        np.testing.assert_array_equal(
            source.load(0).image.numpy(), parts[f"x_{name}"][0].transpose(2, 0, 1)
        )
        assert labels_of(source) == parts[f"y_{name}"].tolist()
    np.savez(tmp_path / "y.npz", photos=parts["x_test"], kind=np.array(["b", "a"]))
    source = opened(f"npy:{tmp_path / 'y.npz'}", reading=Reading(label_key="kind"))
    assert (labels_of(source), source.class_names) == ([1, 0], ("a", "b"))


@pytest.mark.parametrize(
    ("names", "default", "splits"),
    [
        (["test_images", "images"], "images", ("test",)),
        (["x_val", "data", "x_test"], "data", ("test", "val")),
        (["x_test", "x_train"], "x_train", ("test", "train")),
        (["x_test", "x_val"], None, ("test", "val")),
        (["X_test"], None, ("test",)),
    ],
)
def test_arrays_of_a_test_are_never_read_unasked(
    tmp_path: Path, names: list[str], default: str | None, splits: tuple[str, ...]
) -> None:
    arrays: dict[str, Any] = {n: np.full((2, 8, 8), 10 * i, np.uint8) for i, n in enumerate(names)}
    np.savez(tmp_path / "x.npz", **arrays)
    address = f"npy:{tmp_path / 'x.npz'}"
    if default is None:
        shown = ", ".join(splits)
        with pytest.raises(ValueError, match=f"splits? {shown} and none called train: name"):
            open_source(address)
    else:
        source = opened(address)
        assert source.load(0).image[0, 0, 0] == 10 * names.index(default)
        assert source.found.splits == splits
    test = opened(address, split="test")
    (name,) = [name for name in names if "test" in name]
    assert test.load(0).image[0, 0, 0] == 10 * names.index(name)
    assert test.split == "test"


def test_csv_tables(write: Write, tmp_path: Path) -> None:
    for name in ("train/001.png", "train/002.png", "test/001.png", "other.png"):
        write(name)
    (tmp_path / "train.csv").write_text("id;breed;year\n001;pug;7\n002;husky;8\n009;pug;9\n")
    source = opened(f"csv:{tmp_path / 'train.csv'}", reading=Reading(label_key="breed"))
    assert names_of(source) == ["train/001.png", "train/002.png"]
    assert (labels_of(source), source.class_names) == ([1, 0], ("husky", "pug"))
    told = dict(zip(["missing", "unnamed"], source.found.passed_over, strict=True))
    assert told["missing"].names == ("009",)
    assert told["unnamed"].names == ("other.png", "test/001.png")
    (tmp_path / "all.csv").write_text(
        "file_name,label,split\ntrain/001.png,a,train\ntest/001.png,b,test\n../x.png,a,train\n"
    )
    source = opened(f"csv:{tmp_path / 'all.csv'}", split="test")
    assert (names_of(source), source.class_names) == (["test/001.png"], ("b",))
    assert opened(f"csv:{tmp_path / 'all.csv'}").found.passed_over[0].names == ("../x.png",)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column that names files"):
        open_source(f"csv:{tmp_path / 'bad.csv'}")


def test_tables_written_on_windows(write: Write, tmp_path: Path) -> None:
    write("train/1.png")
    write("train/2.png")
    (tmp_path / "x.csv").write_text("Image;Label\ntrain\\1.png;a\n.\\train\\2.png;b\n", "utf-8-sig")
    source = opened(f"csv:{tmp_path / 'x.csv'}")
    assert (names_of(source), labels_of(source)) == (["train/1.png", "train/2.png"], [0, 1])


WORDS = ["train", "test", "unused", "train"]


@pytest.mark.parametrize("kind", ["parquet", "npz", "csv"])
def test_a_column_that_tells_splits_is_used(
    tmp_path: Path, pictures: list[bytes], write: Write, kind: str
) -> None:
    labels, path = [5, 4, 3, 2], tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(picture_table(pictures, Split=WORDS, label=labels), path, row_group_size=3)
    elif kind == "npz":
        images = np.arange(4, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
        np.savez(path, images=images, labels=labels, split=np.array(WORDS, "S"))
    else:
        rows = [f"{n}.png,{WORDS[n]},{labels[n]}" for n in range(4)]
        path.write_text("\n".join(["file,split,label", *rows]))
        for number in range(4):
            write(f"{number}.png")
    address = f"{'npy' if kind == 'npz' else kind}:{path}"
    train, test = opened(address), opened(address, split="Testing")
    assert (labels_of(train), train.split) == ([5, 2], "train")
    assert (labels_of(test), test.split) == ([4], "test")
    assert train.found.splits == ("test", "train")
    (entry,) = train.found.passed_over
    assert (entry.what, entry.count) == ("rows of no split", 1)
    where = {"parquet": "x.parquet/{:06d}", "npz": "x.npz/{:04d}", "csv": "{}.png"}[kind]
    assert names_of(train) == [where.format(0), where.format(3)]
    if kind == "npz":
        assert [int(train.load(i).image.max()) for i in (0, 1)] == [0, 3]
    with pytest.raises(ValueError, match="no split 'validation': its splits are test, train"):
        open_source(address, split="validation")


@pytest.mark.parametrize(
    ("column", "values", "train", "test"),
    [
        ("is_train", [True, False, True, None], [0, 2], [1]),
        ("is_training_image", [1, 0, 0, 1], [0, 3], [1, 2]),
        ("is_test", [1.0, 0.0, 0.0, 1.0], [1, 2], [0, 3]),
        ("SUBSET", ["Train", "VAL", "TRAIN", "test"], [0, 2], [3]),
    ],
)
def test_forms_of_columns_that_tell_splits(
    tmp_path: Path, pictures: list[bytes], column: str, values: list[Any], train: list[int],
    test: list[int],
) -> None:  # fmt: skip
    table = picture_table(pictures, label=[0, 1, 2, 3]).append_column(column, pa.array(values))
    pq.write_table(table, tmp_path / "x.parquet")
    address = f"parquet:{tmp_path}"
    assert labels_of(opened(address)) == train
    assert labels_of(opened(address, split="test")) == test


def test_columns_that_tell_no_split_are_told(tmp_path: Path, pictures: list[bytes]) -> None:
    table = picture_table(pictures, split=[0, 0, 1, 1], label=[0, 1, 0, 1])
    pq.write_table(table, tmp_path / "x.parquet")
    source = opened(f"parquet:{tmp_path}")
    assert len(source) == 4
    (note,) = source.found.notes
    flags = picture_table(pictures, label=[0, 1, 0, 1], is_valid=[True, True, False, True])
    (tmp_path / "flags").mkdir()
    pq.write_table(flags, tmp_path / "flags" / "x.parquet")
    sound = opened(f"parquet:{tmp_path / 'flags' / 'x.parquet'}")
    assert (len(sound), len(sound.found.notes)) == (4, 1)
    (tmp_path / "flags" / "x.parquet").unlink()
    assert note.startswith("the column split may tell splits, but its values (0, 1) are no names")
    with pytest.raises(ValueError, match="no split 'test': it is not divided into splits"):
        open_source(f"parquet:{tmp_path}", split="test")
    (tmp_path / "x.parquet").rename(tmp_path / "train.parquet")
    (note,) = opened(f"parquet:{tmp_path}").found.notes
    assert note == (
        "the column split may tell splits: the names of the files do, and it is not read"
    )


def test_further_columns_of_labels_are_told(tmp_path: Path, pictures: list[bytes]) -> None:
    table = picture_table(pictures, Label=["a", "b"] * 2, target=[0, 1] * 2)
    pq.write_table(table, tmp_path / "x.parquet")
    address = f"parquet:{tmp_path}"
    told = "labels are those of Label; target may be, too (--label-key)"
    assert opened(address).found.notes == (told,)
    assert opened(address, reading=Reading(label_key="target")).found.notes == ()


def test_rows_of_a_table_that_are_not_read(write: Write, tmp_path: Path) -> None:
    for name in ("a.png", "x/b.png", "y/b.png", "c.heic"):
        write(name, *([b"x"] if name.endswith("heic") else []))
    absolute = tmp_path / "a.png"
    others = ["b.png,0", "c.heic,0", "gone.png,0", "x/b.png,2"]
    rows = ["./a.png,0", "a.png,0", f"{absolute},1", *others]
    (tmp_path / "t.csv").write_text("\n".join(["file, label", *rows]))
    source = opened(f"csv:{tmp_path / 't.csv'}")
    assert (names_of(source), labels_of(source)) == (["a.png", "x/b.png"], [0, 2])
    told = {entry.what: entry.names for entry in source.found.passed_over}
    assert told.pop("files of other kinds (.csv 1, .heic 1)")
    assert told == {
        "further rows of one image": ("a.png",),
        "further rows of one image, with another label": (str(absolute),),
        "rows whose file name stands for several files (give the path)": ("b.png",),
        "rows whose file is of another kind (.heic)": ("c.heic",),
        "rows whose file is not there": ("gone.png",),
        "images that no row names": ("y/b.png",),
    }


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["1_0", "1"], ("1", "1_0")),
        (["1e3", "2"], ("1e3", "2")),
        (["inf", "nan"], ("inf",)),
        (["2.0", "1"], ("0", "1", "2")),
        ([" b", "a "], ("a", "b")),
    ],
)
def test_cells_that_are_numbers_and_cells_that_are_names(
    write: Write, tmp_path: Path, cells: list[str], names: tuple[str, ...]
) -> None:
    rows = [f"{n}.png,{cell}" for n, cell in enumerate(cells)]
    for number in range(2):
        write(f"{number}.png")
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *rows]))
    assert opened(f"csv:{tmp_path / 't.csv'}").class_names == names


def test_encodings_and_columns_of_tables(write: Write, tmp_path: Path) -> None:
    write("1.png")
    path = tmp_path / "t.csv"
    path.write_text("file\tlabel\n1.png\tcaf\u00e9\n", "utf-16")  # as Excel's Unicode text
    assert opened(f"csv:{path}").class_names == ("caf\u00e9",)
    path.write_text("file,label\n1.png,caf\u00e9\n", "latin-1")
    with pytest.raises(ValueError, match=r"not text in UTF-8 .*: save it as"):
        open_source(f"csv:{path}")
    path.write_text("file,label,label\n1.png,a,b\n")
    with pytest.raises(ValueError, match="several columns called label: rename them"):
        open_source(f"csv:{path}")
    path.write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(ValueError, match="is a web page, not the file itself"):
        open_source(f"csv:{path}")


def test_rows_of_several_spellings_and_of_no_split(write: Write, tmp_path: Path) -> None:
    for name in "abcde":
        write(f"{name}.png")
    (tmp_path / "x.csv").write_text("id,split\na,train\nb,Training\nc,trainval\nd,test\ne,\n")
    source = opened(f"csv:{tmp_path / 'x.csv'}")
    assert (names_of(source), source.split) == (["a.png", "b.png"], "train")
    assert source.found.notes == ("split train is Training, train together",)
    told = {entry.what: entry.names for entry in source.found.passed_over}
    assert told["rows of no split"] == ("e",)
    assert names_of(opened(f"csv:{tmp_path / 'x.csv'}", split="train")) == ["a.png"]


def test_classes_of_training_and_test_are_matched_by_name(write: Write, tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png"):
        write(name)
    train, test = open_pair(f"imagefolder:{tmp_path}")
    assert test.class_names == train.class_names == ("a", "b", "c")
    assert labels_of(test) == [0, 2]
    assert [test.load(index).label for index in range(2)] == [0, 2]
    write("test/d/1.png")
    with pytest.raises(ValueError, match=r"images of .* test have classes .* train do not .*d"):
        open_pair(f"imagefolder:{tmp_path}")


def test_a_stray_image_is_named(write: Write, tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "cover.png"):
        write(name)
    with pytest.raises(ValueError, match=r"has no labels: cover\.png lies beside the class"):
        open_pair(f"imagefolder:{tmp_path}")


def test_values_of_one_form_stay_of_it() -> None:
    found = class_labels([0, 2, np.int16(1), np.bool_(True)], ["a", "b", "c"], "x")
    assert found.names == ("0", "1", "2", "True")  # numbers beside a truth value are words
    assert found.numbers is not None
    assert found.numbers.tolist() == [0, 2, 1, 3]
