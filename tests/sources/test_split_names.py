"""Names that mean a split, and names that only look so."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from source_cases import Write, labels_of, names_of, opened, picture_table

from crate_mae.sources.address import open_source
from crate_mae.sources.split_names import split_folders, split_name, words_beside_split


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("train", "train"), ("Training", "train"), ("TRAIN", "train"), ("train2017", "train"),
        ("TestSet", "test"), ("Testing", "test"), ("test1", "test"), ("seg_test", "test"),
        ("valid", "validation"), ("ImageNetVal", "validation"), ("dev", "validation"),
        ("val_256", "validation"), ("validation-00000-of-00001", "validation"),
        ("train_val", "train"), ("TrainVal-0", "train"),
        ("latest", None), ("contest", None), ("trainer", None), ("devices", None), ("value", None),
    ],
)  # fmt: skip
def test_words_that_mean_a_split(name: str, meaning: str | None) -> None:
    said = split_name(name)
    assert (None if said is None else said.meaning) == meaning


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ("Training Testing", "Training Testing"),
        ("seg_train seg_test seg_pred", "seg_train seg_test"),
        ("train2017 val2017 annotations", "train2017 val2017"),
        ("train test unlabeled extra", "train test"),
        ("trainA trainB testA testB", "trainA trainB testA testB"),
        ("TRAIN VAL", "TRAIN VAL"),
        ("bus car train", ""),  # a vehicle
        ("train_station test_tube", ""),  # of different things
        ("train_station", ""),
        ("Training", "Training"),
    ],
)
def test_folders_beside_each_other(folders: str, splits: str) -> None:
    assert set(split_folders(folders.split())) == set(splits.split())


LAYOUTS = {
    "kaggle": "{}/cat/1.png {}/dog/2.png",
    "wrapped": "archive/{}/cat/1.png archive/{}/dog/2.png",
    "twice": "{}/{}/cat/1.png {}/{}/dog/2.png",
    "images": "{}/images/cat/1.png {}/images/dog/2.png",
    "below the classes": "cat/{}/1.png dog/{}/2.png",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("words", [("Training", "Testing"), ("seg_train", "seg_test")])
def test_test_images_are_never_trained_on(
    write: Write, tmp_path: Path, layout: str, words: tuple[str, str]
) -> None:
    for word in words:
        for name in LAYOUTS[layout].split():
            write(name.replace("{}", word))
    address = f"imagefolder:{tmp_path}"
    train, test = opened(address), opened(address, split="test")
    assert all(words[0] in name for name in names_of(train))
    assert all(words[1] in name for name in names_of(test))
    assert len(train) == len(test) == 2
    for source in (train, test):
        assert source.class_names == ("cat", "dog")
        assert labels_of(source) == [0, 1]
        assert source.found.splits == tuple(sorted(words))


def test_images_outside_the_splits_and_a_class_called_train_are_told(
    write: Write, tmp_path: Path
) -> None:
    for name in ("a/train/x/1.png", "a/test/x/1.png", "a/extra/1.png", "a/cover.png"):
        write(name)
    source = opened(f"imagefolder:{tmp_path / 'a'}")
    assert names_of(source) == ["train/x/1.png"]
    (entry,) = source.found.passed_over
    assert (entry.count, entry.names) == (2, ("cover.png", "extra/1.png"))
    for name in ("b/bus/1.png", "b/Train/1.png"):
        write(name)
    source = opened(f"imagefolder:{tmp_path / 'b'}")
    assert source.class_names == ("Train", "bus")
    assert source.found.notes == ("Train is read as a class beside 1 others, not as a split",)


@pytest.mark.parametrize("train", ["training", "TRAIN", "x_train", "train2017", "data-Train-0"])
def test_names_of_parquet_files(tmp_path: Path, pictures: list[bytes], train: str) -> None:
    pq.write_table(picture_table(pictures), tmp_path / f"{train}.parquet")
    pq.write_table(picture_table(pictures[:1]), tmp_path / "Testing.parquet")
    pq.write_table(picture_table(pictures[:2]), tmp_path / "notes.parquet")
    address = f"parquet:{tmp_path}"
    source = opened(address)
    assert len(source) == 4
    assert len(opened(address, split="test")) == 1
    assert source.found.passed_over[0].names == ("notes.parquet",)
    with pytest.raises(ValueError, match="no split 'validation'"):
        open_source(address, split="validation")


def test_several_files_of_one_split_are_read_together(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    for name in ("train-a", "training-b", "val-c"):
        pq.write_table(picture_table(pictures), tmp_path / f"{name}.parquet")
    assert (opened(f"parquet:{tmp_path}").split, len(opened(f"parquet:{tmp_path}"))) == ("train", 8)


@pytest.mark.parametrize(
    ("layout", "train", "test", "classes"),
    [
        ("cat/train/1 cat/test/2 dog/train/3", "13", "2", ("cat", "dog")),
        ("a/cat/train/1 a/cat/test/2 a/dog/test/3", "1", "23", ("cat",)),
        ("cat/Training/1 cat/val/2 dog/TRAIN/3 dog/test/4", "13", "4", ("cat", "dog")),
        ("train/a/1 Training/b/2 test/a/3", "12", "3", ("a", "b")),
        ("train/a/1 trainval/a/2 val/a/3 test/a/4", "1", "4", ("a",)),
        ("trainval/a/2 test/a/4", "2", "4", ("a",)),
        ("train_val/a/2 train/a/1 test/a/4", "1", "4", ("a",)),
        ("a/b/c/d/train/x/1 a/b/c/d/test/x/2", "1", "2", ("x",)),
        ("train/a/1 train_masks/a/2 test/a/3 test_masks/a/4", "1", "3", ("a",)),
    ],
)
def test_uneven_splits(
    write: Write, tmp_path: Path, layout: str, train: str, test: str, classes: tuple[str, ...]
) -> None:
    for name in layout.split():
        write(f"{name}.png")
    for split, expected in ((None, train), ("test", test)):
        source = opened(f"imagefolder:{tmp_path}", split=split)
        assert sorted(name[-5] for name in names_of(source)) == list(expected)
    assert opened(f"imagefolder:{tmp_path}").class_names == classes
    assert opened(f"imagefolder:{tmp_path}", split="test").class_names is not None


def test_splits_that_some_classes_lack_are_told(write: Write, tmp_path: Path) -> None:
    for name in ("cat/train/1.png", "cat/test/2.png", "dog/3.png"):
        write(name)
    source = opened(f"imagefolder:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert source.found.notes == (
        "not read as splits, as not every class is divided into the same ones: cat/test, cat/train",
    )


def test_the_spelling_that_is_asked_for_is_taken(
    tmp_path: Path, pictures: list[bytes], write: Write
) -> None:
    for number, name in enumerate(("TRAIN", "train", "Training", "test")):
        (tmp_path / name).mkdir()
        pq.write_table(picture_table(pictures[: number + 1]), tmp_path / name / "0.parquet")
    source = opened(f"parquet:{tmp_path}")
    assert (len(source), source.split) == (6, "train")
    assert "split train is train, training together" in source.found.notes
    cases = ((1, "TRAIN"), (2, "train"))
    for count, name in cases:
        for index in range(count):
            write(f"images/{name}/{index}.png")
    for count, name in cases:
        assert len(opened(f"imagefolder:{tmp_path / 'images'}", split=name)) == count


@pytest.mark.parametrize(
    ("name", "meaning", "rest"),
    [
        ("xtrain", "train", "x"), ("Xtr", "train", "x"), ("Yte", "test", "y"),
        ("x_test", "test", "x"), ("test-dev2017", "test", ""), ("holdout", "test", ""),
        ("训练集", "train", ""), ("测试", "test", ""), ("Trainingsdaten", "train", ""),
        ("entraînement", "train", ""), ("tr", None, "tr"), ("texte", None, "texte"),
        ("testimony", None, "testimony"), ("extra", None, "extra"), ("Étude", None, "étude"),
    ],
)  # fmt: skip
def test_words_of_other_languages_and_of_arrays(name: str, meaning: str | None, rest: str) -> None:
    said = split_name(name)
    assert (None if said is None else said.meaning) == meaning
    assert "_".join(words_beside_split(name)) == rest


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ("train-clean train-noisy test", "train-clean train-noisy test"),
        ("train test-dev2017", "train test-dev2017"),
        ("训练 测试", "训练 测试"),
        ("test_tube test", ""),  # one meaning
        ("train_small test other", ""),  # read as classes, and told of
    ],
)
def test_splits_about_different_things(folders: str, splits: str) -> None:
    assert set(split_folders(folders.split())) == set(splits.split())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("fold1/a/1 fold1/b/2 fold2/a/3 fold2/b/4", "fold1, fold2 are read as classes, and each"),
        ("s1/train/a/1 s1/train/b/2 s1/test/a/3 s2/train/a/4 s2/train/b/5", "each holds a, b"),
        ("train/images/1 train/masks/2 test/images/3 test/masks/4", "masks beside folders of im"),
        ("a/validation/1 b/validation/2", "not read as splits, as not every class"),
        ("train_1 train_2 test_1", r"names of files may tell splits \(t\w+_1.png, t\w+_1.png\)"),
        ("a/1 b/2 c/", "passed over: 1 folders without such files in or below them: c$"),
    ],
)
def test_folders_that_look_like_something_else_are_told(
    write: Write, tmp_path: Path, files: str, words: str
) -> None:
    for name in files.split():
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            write(f"{name}.png")
    lines = opened(f"imagefolder:{tmp_path}").found.lines()
    assert any(re.search(words, line) for line in lines), lines


@pytest.mark.parametrize("files", ["a/x/1 a/y/2 b/x/3", "images/1 photos/2", "a/1 b/2", "a/x/1"])
def test_plain_folders_are_told_of_nothing(write: Write, tmp_path: Path, files: str) -> None:
    for name in files.split():
        write(f"{name}.png")
    assert opened(f"imagefolder:{tmp_path}").found.lines() == []


def test_a_word_that_is_nearly_a_split_is_corrected(write: Write, tmp_path: Path) -> None:
    write("train/1.png")
    write("test/1.png")
    with pytest.raises(ValueError, match=r"no split 'trian' \(did you mean 'train'\?\)"):
        open_source(f"imagefolder:{tmp_path}", split="trian")
