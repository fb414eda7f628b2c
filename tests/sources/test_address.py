"""Every kind of address, opened on data written here."""

import json
import os
import pickle
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crate_mae.sources import arrays
from crate_mae.sources import parquet as tables
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource, random_subset, subset
from crate_mae.sources.images import UnreadableImage, decode_image
from crate_mae.sources.torch_datasets import wrap_dataset

Encode = Callable[..., bytes]
Write = Callable[..., Path]


def _open(address: str, **options: Any) -> ImageSource:
    source = open_source(address, **options)
    assert isinstance(source, ImageSource)
    return source


def _names(source: ImageSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def _labels(source: ImageSource) -> list[int | None]:
    return [source.label(index) for index in range(len(source))]


# Addresses


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("imagefoldr:x", "did you mean 'imagefolder'.*digits, imagefolder:PATH"),
        ("nonsense", "unknown data address 'nonsense'"),
        ("imagefolder:", "imagefolder:WHAT"),
        ("imagefolder", "imagefolder:WHAT"),
        ("digits:x", "without a colon"),
        ("train.parquet", "write parquet:train.parquet"),
        ("shard.tar", "write wds:shard.tar"),
    ],
)
def test_a_wrong_address_says_what_to_write(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(address)


def test_a_bare_folder_says_imagefolder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"write imagefolder:{tmp_path}"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("scheme", ["imagefolder", "parquet", "npy"])
def test_a_missing_path_is_named(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none")):
        open_source(f"{scheme}:{tmp_path / 'none'}")


# Digits


def test_digits_are_divided_within_each_class() -> None:
    train, test, everything = (_open("digits", split=s) for s in (None, "test", "all"))
    assert (train.split, len(everything)) == ("train", 1797)
    assert len(train) + len(test) == 1797
    assert set(_names(train)) | set(_names(test)) == set(_names(everything))
    assert everything.class_names == tuple("0123456789")
    for digit in range(10):
        share = _labels(test).count(digit) / _labels(everything).count(digit)
        assert share == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ValueError, match="train, test, all"):
        open_source("digits", split="val")


def test_digits_are_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    source = _open("digits", split="all")
    raw = load_digits().images[7]
    sample = source.load(7)
    assert (sample.name, sample.label) == ("digits/0007", int(load_digits().target[7]))
    np.testing.assert_array_equal(sample.image[0].numpy(), np.round(raw * 255 / 16))
    assert source.facts(7).height == 8


# Limits and subsets


def test_limit_is_a_fixed_random_choice_in_order() -> None:
    full = _open("digits", split="all")
    first, again = (_open("digits", split="all", limit=50, seed=3) for _ in range(2))
    other = _open("digits", split="all", limit=50, seed=4)
    assert len(first) == 50
    assert _names(first) == _names(again) == sorted(_names(first))
    assert _names(first) != _names(other)
    assert first.class_names == full.class_names
    sample = first.load(5)
    index = _names(full).index(sample.name)
    assert torch.equal(sample.image, full.load(index).image)
    assert first.label(5) == sample.label == full.label(index)
    assert len(_open("digits", split="all", limit=5000)) == 1797
    assert random_subset(full, 1797) is full
    for limit in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            open_source("digits", limit=limit)


def test_subsets_nest_and_check_their_indices() -> None:
    full = _open("digits", split="all")
    inner = subset(subset(full, [10, 20, 30, 40]), [3, 1])
    assert _names(inner) == ["digits/0040", "digits/0020"]
    assert inner.facts(0) == full.facts(40)
    assert (inner.address, inner.split) == ("digits", "all")
    for index in (-1, 1797):
        with pytest.raises(ValueError, match="outside digits of 1797"):
            subset(full, [index])


def test_subset_fingerprints_depend_on_the_choice() -> None:
    full = _open("digits", split="all")
    assert subset(full, [1, 2]).fingerprint() == subset(full, [1, 2]).fingerprint()
    assert subset(full, [1, 2]).fingerprint() != subset(full, [1, 3]).fingerprint()
    assert full.fingerprint() != _open("digits").fingerprint()


# Image folders


def test_class_folders_give_labels(write: Write, tmp_path: Path) -> None:
    for name in ("b/2.png", "b/deep/1.PNG", "a/x.jpg.png", "b/notes.txt", ".hidden/no.png"):
        write(name)
    write("a/.hidden.png")
    source = _open(f"imagefolder:{tmp_path}")
    assert _names(source) == ["a/x.jpg.png", "b/2.png", "b/deep/1.PNG"]
    assert source.class_names == ("a", "b")
    assert _labels(source) == [0, 1, 1]
    assert source.split is None
    sample = source.load(1)
    assert (sample.name, sample.label, sample.image.shape) == ("b/2.png", 1, (3, 4, 5))
    assert (source.facts(1).height, source.facts(1).width) == (4, 5)


def test_a_flat_folder_is_unlabelled(write: Write, tmp_path: Path) -> None:
    write("1.png")
    write("sub/2.png")
    source = _open(f"imagefolder:{tmp_path}")
    assert source.class_names is None
    assert _labels(source) == [None, None]
    assert source.load(0).label is None
    with pytest.raises(ValueError, match="not divided into splits"):
        open_source(f"imagefolder:{tmp_path}", split="val")


def test_an_empty_folder_and_a_file_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image files"):
        open_source(f"imagefolder:{tmp_path}")
    with pytest.raises(ValueError, match="is a file"):
        open_source(f"imagefolder:{write('1.png')}")


def test_split_folders_are_chosen_by_name(write: Write, tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "Valid/a/3.png", "Valid/b/4.png"):
        write(name)
    address = f"imagefolder:{tmp_path}"
    train = _open(address)
    assert (train.split, train.class_names) == ("train", ("a", "b"))
    assert _names(train) == ["train/a/1.png", "train/b/2.png"]
    for split in ("val", "validation", "valid"):
        source = _open(address, split=split)
        assert (source.split, _labels(source)) == ("Valid", [0, 1])
    with pytest.raises(ValueError, match="no split 'test': its splits are Valid, train"):
        open_source(address, split="test")


def test_flat_images_in_split_folders_are_unlabelled(write: Write, tmp_path: Path) -> None:
    write("test/1.png")
    source = _open(f"imagefolder:{tmp_path}", split="test")
    assert source.class_names is None
    with pytest.raises(ValueError, match="no split 'train': its splits are test"):
        open_source(f"imagefolder:{tmp_path}")


def test_a_class_may_be_called_train(write: Write, tmp_path: Path) -> None:
    for name in ("bus/1.png", "car/1.png", "train/1.png"):
        write(name)
    assert _open(f"imagefolder:{tmp_path}").class_names == ("bus", "car", "train")


def test_links_to_files_are_followed_and_links_to_folders_are_not(
    write: Write, tmp_path: Path
) -> None:
    elsewhere = write("outside/other.png", (6, 7))
    write("outside/notes.txt", b"not listed")
    write("root/a/1.png")
    root = tmp_path / "root"
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "escape").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "a" / "link.png").symlink_to(elsewhere)
    (root / "a" / "notes.txt").symlink_to(tmp_path / "outside" / "notes.txt")
    (root / "a" / "same.png").symlink_to(root / "a" / "1.png")
    (root / "a" / "dangling.png").symlink_to(root / "none.png")
    source = _open(f"imagefolder:{root}")
    assert _names(source) == ["a/1.png", "a/link.png", "a/same.png"]
    assert source.load(1).image.shape == (3, 6, 7)


def test_links_to_folders_alone_are_explained(write: Write, tmp_path: Path) -> None:
    write("outside/1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(ValueError, match="1 links to folders are not followed"):
        open_source(f"imagefolder:{tmp_path / 'root'}")


def test_what_is_no_regular_file_is_left_out(write: Write, tmp_path: Path) -> None:
    write("a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    assert _names(_open(f"imagefolder:{tmp_path}")) == ["a.png"]


def test_a_broken_file_is_reported_by_its_name(write: Write, tmp_path: Path) -> None:
    write("a/1.png", b"no image")
    with pytest.raises(UnreadableImage, match=r"a/1\.png: not an image"):
        _open(f"imagefolder:{tmp_path}").load(0)


def test_folder_fingerprints_follow_the_content_not_the_place(write: Write, tmp_path: Path) -> None:
    def fingerprint(root: str) -> str:
        return _open(f"imagefolder:{tmp_path / root}").fingerprint()

    for root in ("here", "there"):
        write(f"{root}/a/1.png")
        write(f"{root}/b/2.png")
    original = fingerprint("here")
    assert original == fingerprint("there")
    write("there/b/2.png", (9, 9))  # resized
    seen = {original, fingerprint("there")}
    write("there/b/3.png")  # added
    seen.add(fingerprint("there"))
    (tmp_path / "there/b/3.png").rename(tmp_path / "there/b/4.png")  # renamed
    seen.add(fingerprint("there"))
    (tmp_path / "there/a").rename(tmp_path / "there/c")  # another class
    seen.add(fingerprint("there"))
    assert len(seen) == 5


# Arrays

_DTYPES = st.sampled_from([np.uint8, np.uint16, np.bool_, np.float16, np.float32, np.float64])


def _random_array(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    values = np.random.default_rng(0).random(shape)
    if dtype in (np.uint8, np.uint16):
        return (values * np.iinfo(dtype).max).astype(dtype)
    return (values > 0.5) if dtype is np.bool_ else values.astype(dtype)


def _expected(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    return (array / 65535 if array.dtype == np.uint16 else array).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(["HW", "HWC", "CHW"]),
    number=st.integers(1, 3),
    height=st.integers(6, 12),
    width=st.integers(6, 12),
    channels=st.integers(1, 5),
    dtype=_DTYPES,
)
def test_arrays_of_every_layout_and_type(
    tmp_path_factory: pytest.TempPathFactory,
    layout: str,
    number: int,
    height: int,
    width: int,
    channels: int,
    dtype: type,
) -> None:
    sizes = {"H": height, "W": width, "C": channels}
    array = _random_array((number, *(sizes[axis] for axis in layout)), dtype)
    path = tmp_path_factory.mktemp("arrays") / "x.npy"
    np.save(path, array)
    source = _open(f"npy:{path}")
    assert len(source) == number
    assert source.class_names is None
    planes = _expected(array[-1])
    if layout != "CHW":
        planes = planes[None] if layout == "HW" else planes.transpose(2, 0, 1)
    sample = source.load(number - 1)
    assert sample.name == f"x.npy/{number - 1:04d}"
    assert sample.image.dtype == (torch.uint8 if dtype is np.uint8 else torch.float32)
    np.testing.assert_allclose(sample.image.numpy(), planes, rtol=1e-6)
    facts = source.facts(0)
    assert (facts.height, facts.width) == (height, width)
    assert facts.mode == f"{1 if layout == 'HW' else channels} x {array.dtype}"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 8, 8), np.uint8), "ambiguous"),
        (np.zeros((2, 8, 8), np.int64), "no known scale"),
        (np.zeros((2, 8, 8), np.complex64), "no known scale"),
        (np.zeros((8, 8), np.uint8), "is not .N, H, W."),
        (np.zeros((0, 8, 8), np.uint8), "N > 0"),
        (np.array([{"an": "object"}], dtype=object), "Python objects"),
    ],
)
def test_unsuitable_arrays_are_explained(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        open_source(f"npy:{tmp_path / 'x.npy'}")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    for suffix in ("npy", "npz"):
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match=r"x\.np"):
            open_source(f"npy:{path}")
    np.savez(tmp_path / "y.npz", images=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        open_source(f"npy:{tmp_path / 'y.npz'}")
    assert not (tmp_path / "ran").exists()


def test_labels_beside_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 9), np.uint8))
    np.save(tmp_path / "x_labels.npy", np.array([2, -1, 0]))
    source = _open(f"npy:{tmp_path / 'x.npy'}")
    assert source.class_names == ("0", "1", "2")
    assert _labels(source) == [2, None, 0]
    assert source.load(0).label == 2
    for wrong in (np.zeros(2, int), np.zeros(3), np.array([0, 0, 10**7])):
        np.save(tmp_path / "x_labels.npy", wrong)
        with pytest.raises(ValueError, match="label"):
            open_source(f"npy:{tmp_path / 'x.npy'}")


def test_archives_hold_images_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _random_array((3, 8, 9, 5), np.uint16)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=images, labels=np.array([0, 1, 1], np.uint8))
    source = _open(f"npy:{path}")
    assert _labels(source) == [0, 1, 1]
    assert source.load(2).image.shape == (5, 8, 9)
    fingerprint = source.fingerprint()
    np.savez(path, images=images[::-1], labels=np.array([0, 1, 1]))
    assert _open(f"npy:{path}").fingerprint() != fingerprint
    np.savez(path, pictures=images)
    with pytest.raises(ValueError, match="named images; it holds pictures"):
        open_source(f"npy:{path}")
    monkeypatch.setattr(arrays, "MAX_ARCHIVE_BYTES", 100)
    with pytest.raises(ValueError, match="unpacks to"):
        open_source(f"npy:{path}")


def test_an_archive_that_lies_about_its_shape_is_refused(tmp_path: Path) -> None:
    import zipfile

    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 10000, 10000), }"
    header += b" " * (127 - 10 - len(header)) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", data)
    (tmp_path / "x.npy").write_bytes(data)
    for name in ("x.npz", "x.npy"):
        with pytest.raises(ValueError, match=name):
            open_source(f"npy:{tmp_path / name}")


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    contents = {
        "a/1.npy": _random_array((8, 9), np.uint8),
        "a/2.npy": _random_array((5, 8, 9), np.float32),
        "b/3.npy": _random_array((8, 9, 4), np.uint16),
        "b/bad_dtype.npy": np.zeros((8, 9), np.int32),
        "b/nan.npy": np.full((8, 9), np.nan),
        "b/object.npy": np.array([None], dtype=object),
        "b/stack.npy": np.zeros((2, 8, 9, 3), np.uint8),
    }
    for name, array in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, array, allow_pickle=True)
    (tmp_path / "b" / "text.npy").write_text("no array")
    source = _open(f"npy:{tmp_path}")
    assert source.class_names == ("a", "b")
    assert _labels(source) == [0, 0, 1, 1, 1, 1, 1, 1]
    shapes = [tuple(source.load(index).image.shape) for index in range(3)]
    assert shapes == [(1, 8, 9), (5, 8, 9), (4, 8, 9)]
    assert source.facts(2).mode == "4 x uint16"
    reasons = [
        "no known scale",
        "not finite",
        "Python objects",
        "naming the file itself",
        "not a .npy",
    ]
    for index, reason in enumerate(reasons, start=3):
        with pytest.raises(UnreadableImage, match=reason):
            source.load(index)


def test_a_mapped_array_is_reopened_in_another_process(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", _random_array((20, 64, 64), np.uint8))
    source = _open(f"npy:{tmp_path / 'x.npy'}")
    packed = pickle.dumps(source)
    assert len(packed) < 10_000
    assert torch.equal(pickle.loads(packed).load(7).image, source.load(7).image)


def test_array_fingerprints_cover_shape_and_type(tmp_path: Path) -> None:
    def fingerprint(array: np.ndarray) -> str:
        np.save(tmp_path / "x.npy", array)
        return _open(f"npy:{tmp_path / 'x.npy'}").fingerprint()

    arrays: list[np.ndarray] = [
        np.zeros((2, 8, 9), np.uint8),
        np.zeros((2, 9, 8), np.uint8),
        np.zeros((2, 8, 9)),
    ]
    assert len({fingerprint(array) for array in arrays}) == 3
    assert fingerprint(arrays[0]) == fingerprint(arrays[0].copy())


# Parquet


def _table(images: Sequence[bytes | None], *, struct: bool = True, **columns: Any) -> pa.Table:
    cells: list[Any] = [{"bytes": i, "path": f"{n}.png"} for n, i in enumerate(images)]
    return pa.table({"picture": cells if struct else images, **columns})


@pytest.fixture
def pictures(encode: Encode) -> list[bytes]:
    return [encode((4, 5), seed=seed) for seed in range(4)]


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_columns_are_found_by_type(
    tmp_path: Path, pictures: list[bytes], struct: bool
) -> None:
    table = _table(
        pictures, struct=struct, kind=[1, 0, None, 1], text=list("abcd"), id=[5, 6, 7, 8]
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    source = _open(f"parquet:{tmp_path / 'x.parquet'}")
    assert source.class_names == ("0", "1")
    assert _labels(source) == [1, 0, None, 1]
    sample = source.load(3)
    assert (sample.name, sample.label) == ("x.parquet/000003", 1)
    assert torch.equal(sample.image, decode_image(pictures[3], "x"))
    assert source.facts(3).width == 5


def test_class_names_come_from_the_schema(tmp_path: Path, pictures: list[bytes]) -> None:
    features = {
        "picture": {"_type": "Image"},
        "fine": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    }
    table = _table(pictures, number=[9, 9, 9, 9], fine=pa.array([0, 1, 1, 0], pa.uint8()))
    noted = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": noted}), tmp_path / "x.parquet")
    source = _open(f"parquet:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert _labels(source) == [0, 1, 1, 0]
    table = _table(pictures, number=[9, 9, 9, 9], fine=[0, 1, 1, 2])
    pq.write_table(table.replace_schema_metadata({"huggingface": noted}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="label 2 but only 2 class names"):
        open_source(f"parquet:{tmp_path}")


@pytest.mark.parametrize("noted", ["{", "[]", "null", '{"info": {"features": [1]}}', "[" * 10_000])
def test_odd_schema_notes_are_ignored(tmp_path: Path, pictures: list[bytes], noted: str) -> None:
    table = _table(pictures, label=[0, 1, 1, 0]).replace_schema_metadata({"huggingface": noted})
    pq.write_table(table, tmp_path / "x.parquet")
    assert _open(f"parquet:{tmp_path}").class_names == ("0", "1")


def test_parquet_labels_by_name_or_not_at_all(tmp_path: Path, pictures: list[bytes]) -> None:
    pq.write_table(_table(pictures, a=[0] * 4, label=[1] * 4), tmp_path / "named.parquet")
    assert _open(f"parquet:{tmp_path / 'named.parquet'}").label(0) == 1
    pq.write_table(_table(pictures, a=[0] * 4, b=[1] * 4), tmp_path / "unclear.parquet")
    with pytest.raises(ValueError, match=r"several integer columns.*: a, b"):
        open_source(f"parquet:{tmp_path / 'unclear.parquet'}")
    pq.write_table(_table(pictures, image_id=[7] * 4), tmp_path / "none.parquet")
    assert _open(f"parquet:{tmp_path / 'none.parquet'}").class_names is None


def test_parquet_without_images_lists_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"no column of encoded images.*text \(string\), label"):
        open_source(f"parquet:{tmp_path}")
    table = pa.table({"left": [b"a"], "right": [b"b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="several image columns"):
        open_source(f"parquet:{tmp_path}")
    (tmp_path / "x.parquet").write_text("not parquet at all")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        open_source(f"parquet:{tmp_path}")
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds no \.parquet files"):
        open_source(f"parquet:{tmp_path}")


def test_rows_with_only_a_path_are_unreadable(tmp_path: Path, pictures: list[bytes]) -> None:
    pq.write_table(_table([pictures[0], None]), tmp_path / "x.parquet")
    source = _open(f"parquet:{tmp_path}")
    assert source.load(0).image.shape == (3, 4, 5)
    for read in (source.load, source.facts):
        with pytest.raises(UnreadableImage, match="at most a path"):
            read(1)


def test_parquet_splits_come_from_the_names(tmp_path: Path, pictures: list[bytes]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    files = {
        "train-00000-of-00002": pictures[:2],
        "train-00001-of-00002": pictures[2:],
        "validation-00000-of-00001": pictures[:1],
    }
    for name, images in files.items():
        pq.write_table(_table(images), folder / f"{name}.parquet")
    address = f"parquet:{tmp_path}"
    train = _open(address)
    assert (train.split, len(train)) == ("train", 4)
    assert train.name(2) == "data/train-00001-of-00002.parquet/000000"
    assert torch.equal(train.load(2).image, decode_image(pictures[2], "x"))
    assert len(_open(address, split="val")) == 1
    with pytest.raises(ValueError, match="its splits are train, validation"):
        open_source(address, split="test")
    assert _open(f"parquet:{folder / 'train-00000-of-00002.parquet'}").split == "train"


def test_parquet_folders_may_name_the_split_or_nothing_does(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    for name in ("test/0000", "test/0001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(_table(pictures), tmp_path / f"{name}.parquet")
    assert (_open(f"parquet:{tmp_path}").split, len(_open(f"parquet:{tmp_path}"))) == ("test", 8)
    pq.write_table(_table(pictures), tmp_path / "other.parquet")
    rest = _open(f"parquet:{tmp_path}")  # never test images unasked
    assert (rest.split, len(rest), rest.name(0)) == (None, 4, "other.parquet/000000")
    (tmp_path / "other.parquet").rename(tmp_path / "val.parquet")
    with pytest.raises(
        ValueError, match="has the splits test, val and none called train: name one"
    ):
        _open(f"parquet:{tmp_path}")
    assert len(_open(f"parquet:{tmp_path}", split="validation")) == 4


def test_parquet_shards_must_agree(tmp_path: Path, pictures: list[bytes]) -> None:
    pq.write_table(_table(pictures), tmp_path / "0.parquet")
    pq.write_table(_table(pictures, struct=False), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet has another type in column 'picture'"):
        open_source(f"parquet:{tmp_path}")
    pq.write_table(pa.table({"other": [b"x"]}), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet has no column 'picture'"):
        open_source(f"parquet:{tmp_path}")


def test_parquet_too_large_for_memory_points_to_hf(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(_table(pictures), tmp_path / "x.parquet")
    monkeypatch.setattr(tables, "MAX_PARQUET_BYTES", 100)
    with pytest.raises(ValueError, match=f"open it with hf:{tmp_path}"):
        open_source(f"parquet:{tmp_path}")


def test_parquet_fingerprints_follow_sizes_and_labels(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    def fingerprint(table: pa.Table) -> str:
        pq.write_table(table, tmp_path / "x.parquet")
        return _open(f"parquet:{tmp_path}").fingerprint()

    tables = [
        _table(pictures, label=[0, 1, 1, 0]),
        _table(pictures, label=[0, 1, 0, 0]),
        _table(pictures[:3], label=[0, 1, 1]),
        _table([b"longer" * 50, *pictures[1:]], label=[0, 1, 1, 0]),
    ]
    assert len({fingerprint(table) for table in tables}) == 4
    assert fingerprint(tables[0]) == fingerprint(tables[0])


# torch datasets


class _Items(torch.utils.data.Dataset[Any]):
    """A dataset with given items and any further attributes."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


_PIXELS = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(_PIXELS),
        torch.from_numpy(_PIXELS).permute(2, 0, 1),
        _PIXELS,
        _PIXELS.transpose(2, 0, 1),
    ],
)
@pytest.mark.parametrize(
    "shape_item",
    [
        lambda image: (image, 1),
        lambda image: [image, torch.tensor(1)],
        lambda image: {"image": image, "label": np.int64(1)},
        lambda image: {"pixel_values": image, "labels": 1},
    ],
)
def test_items_of_every_form(image: Any, shape_item: Callable[[Any], Any]) -> None:
    source = wrap_dataset(_Items([shape_item(image)]), class_names=["a", "b"])
    sample = source.load(0)
    assert (source.label(0), sample.label, sample.name) == (1, 1, "_items/000000")
    np.testing.assert_array_equal(sample.image.numpy(), _PIXELS.transpose(2, 0, 1))
    assert (source.facts(0).height, source.facts(0).width) == (6, 7)


@pytest.mark.parametrize(
    ("image", "dtype", "shape"),
    [
        (torch.zeros(6, 7), torch.float32, (1, 6, 7)),
        (torch.zeros(5, 6, 7, dtype=torch.bfloat16), torch.float32, (5, 6, 7)),
        (torch.zeros(2, 6, 7, dtype=torch.bool), torch.float32, (2, 6, 7)),
        (np.zeros((6, 7), np.uint16), torch.float32, (1, 6, 7)),
    ],
)
def test_wrapped_pixels_take_the_common_types(
    image: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    sample = wrap_dataset(_Items([image])).load(0)
    assert (sample.image.dtype, tuple(sample.image.shape), sample.label) == (dtype, shape, None)


def test_unsuitable_items_are_explained() -> None:
    broken = OSError("broken pipe")
    items = [torch.zeros(1, 2, 3, 4), torch.zeros(6, 7, dtype=torch.int64), np.zeros(3), broken]
    source = wrap_dataset(_Items(items))
    for index, reason in enumerate(["not .C, H, W", "no known scale", "one image", "broken pipe"]):
        with pytest.raises(UnreadableImage, match=reason):
            source.load(index)
    with pytest.raises(ValueError, match="is a str, not a PIL image"):
        wrap_dataset(_Items(["file.png"])).load(0)
    with pytest.raises(ValueError, match="it has picture, label"):
        wrap_dataset(_Items([{"picture": 1, "label": 2}]))
    with pytest.raises(ValueError, match="empty"):
        wrap_dataset(_Items([]))
    with pytest.raises(ValueError, match="not a map-style dataset"):
        wrap_dataset(object())  # type: ignore[arg-type]


def test_labels_come_from_the_dataset_without_decoding() -> None:
    image = Image.fromarray(_PIXELS)
    never = RuntimeError("decoded")
    dataset = _Items([never, (image, 1), never], targets=[0, 1, 2], classes=["x", "y", "z"])
    source = wrap_dataset(dataset)
    assert source.class_names == ("x", "y", "z")
    assert _labels(source) == [0, 1, 2]
    part = wrap_dataset(torch.utils.data.Subset(dataset, [2, 1]))
    assert (part.class_names, _labels(part)) == (("x", "y", "z"), [2, 1])


def test_labels_without_names_are_gathered() -> None:
    image = Image.fromarray(_PIXELS)
    source = wrap_dataset(_Items([(image, 3), OSError("broken"), (image, 0)]))
    assert source.class_names == ("0", "1", "2", "3")
    assert _labels(source) == [3, None, 0]
    assert wrap_dataset(_Items([(image, "cat")])).class_names is None
    transformed = _Items([(image, 1)], targets=[0], target_transform=lambda t: t + 1)
    assert wrap_dataset(transformed).label(0) == 1


def test_wrapped_fingerprints_follow_the_pixels() -> None:
    def fingerprint(value: int, **attributes: Any) -> str:
        image = torch.full((3, 6, 7), value, dtype=torch.uint8)
        return wrap_dataset(_Items([image], **attributes)).fingerprint()

    assert fingerprint(1) == fingerprint(1)
    assert fingerprint(1) != fingerprint(2)
    assert fingerprint(1, data=np.zeros(3)) != fingerprint(1, data=np.ones(3))


# torchvision


def test_fake_data_needs_no_network() -> None:
    source = _open("torchvision:FakeData", limit=4)
    assert len(source) == 4
    assert source.class_names == tuple("0123456789")
    assert source.load(0).image.shape == (3, 224, 224)
    assert source.name(0).startswith("fakedata/")
    with pytest.raises(ValueError, match="not divided into splits"):
        open_source("torchvision:FakeData", split="train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR1", "did you mean 'CIFAR10'"),
        ("wrap_dataset_for_transforms_v2", "no image dataset"),
        ("VisionDataset", "no image dataset"),
        ("../os", "no image dataset"),
        ("CocoDetection", "pass it to wrap_dataset"),
    ],
)
def test_torchvision_names_are_checked(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(f"torchvision:{name}:{tmp_path}")


def test_a_failed_download_gives_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as library

    def offline(_self: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(library.CIFAR10, "download", offline)
    with pytest.raises(FileNotFoundError, match=r"download failed.*no route to host"):
        open_source(f"torchvision:CIFAR10:{tmp_path}")
    with pytest.raises(ValueError, match="its splits are test, train"):
        open_source(f"torchvision:CIFAR10:{tmp_path}", split="val")
    with pytest.raises(FileNotFoundError, match="torchvision cannot download it"):
        open_source(f"torchvision:ImageNet:{tmp_path}", split="val")


def test_torchvision_splits_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as library

    built: list[dict[str, Any]] = []

    class Fake(_Items):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split not in ("train", "valid"):
                raise ValueError(f"Unknown value '{split}' for argument split.")
            built.append({"root": root, "split": split, "download": download})
            if not download:
                raise RuntimeError("Dataset not found")
            super().__init__([(Image.fromarray(_PIXELS), 0)], classes=["only"])

    monkeypatch.setattr(library, "DTD", Fake)
    source = _open(f"torchvision:DTD:{tmp_path}", split="val")
    assert (source.split, source.address) == ("valid", f"torchvision:DTD:{tmp_path}")
    assert [call["download"] for call in built] == [False, True]
    assert built[0]["root"] == str(tmp_path)
    with pytest.raises(ValueError, match="Unknown value 'extra'"):
        open_source(f"torchvision:DTD:{tmp_path}", split="extra")


# Hugging Face


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path / "cache"


@pytest.mark.usefixtures("hub_cache")
def test_hugging_face_reads_a_local_folder(tmp_path: Path, pictures: list[bytes]) -> None:
    features = {
        "picture": {"_type": "Image"},
        "kind": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    }
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    folder = tmp_path / "pets"
    folder.mkdir()
    table = _table(pictures, kind=[0, 1, 1, 0])
    pq.write_table(table.replace_schema_metadata(noted), folder / "train.parquet")
    broken = _table([b"no image", None], kind=[0, -1])
    pq.write_table(broken.replace_schema_metadata(noted), folder / "validation.parquet")
    source = _open(f"hf:{folder}")
    assert (source.split, source.class_names) == ("train", ("cat", "dog"))
    assert _labels(source) == [0, 1, 1, 0]
    sample = source.load(2)
    assert (sample.name, sample.label) == ("train/000002", 1)
    assert torch.equal(sample.image, decode_image(pictures[2], "x"))
    assert source.facts(0).width == 5
    other = _open(f"hf:{folder}", split="val")
    assert (other.split, _labels(other)) == ("validation", [0, None])
    with pytest.raises(UnreadableImage, match="not an image"):
        other.load(0)
    with pytest.raises(UnreadableImage, match="only a path"):
        other.load(1)
    assert source.fingerprint() == _open(f"hf:{folder}").fingerprint()
    assert source.fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="its splits are train, validation"):
        open_source(f"hf:{folder}", split="test")


@pytest.mark.usefixtures("hub_cache")
def test_hugging_face_opens_files_of_its_own_folder_only(write: Write, tmp_path: Path) -> None:
    for name in ("pets/cat/1.png", "pets/dog/2.png"):
        write(name)
    source = _open(f"hf:{tmp_path / 'pets'}")
    assert source.class_names == ("cat", "dog")
    assert source.load(1).image.shape == (3, 4, 5)
    source._folders = [tmp_path / "elsewhere"]  # type: ignore[attr-defined]
    with pytest.raises(UnreadableImage, match="only a path"):
        source.load(1)


@pytest.mark.usefixtures("hub_cache")
def test_hugging_face_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_source(f"hf:{tmp_path / 'none'}")
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "texts" / "train.parquet")
    with pytest.raises(ValueError, match=r"no column of type Image; its columns: text \(Value\)"):
        open_source(f"hf:{tmp_path / 'texts'}")


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"crate-mae\[hf\]"):
        open_source("hf:anything")
