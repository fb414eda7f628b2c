"""Digits, and arrays of every layout and type."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from source_cases import labels_of, names_of, opened

from crate_mae.sources import arrays
from crate_mae.sources.address import open_source
from crate_mae.sources.base import subset
from crate_mae.sources.images import UnreadableImage


def test_digits_are_divided_within_each_class() -> None:
    train, test, everything = (opened("digits", split=s) for s in (None, "test", "all"))
    assert (train.split, len(everything)) == ("train", 1797)
    assert len(train) + len(test) == 1797
    assert set(names_of(train)) | set(names_of(test)) == set(names_of(everything))
    assert everything.class_names == tuple("0123456789")
    for digit in range(10):
        share = labels_of(test).count(digit) / labels_of(everything).count(digit)
        assert share == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ValueError, match="train, test, all"):
        open_source("digits", split="val")


def test_digits_are_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    source = opened("digits", split="all")
    raw = load_digits().images[7]
    sample = source.load(7)
    assert (sample.name, sample.label) == ("digits/0007", int(load_digits().target[7]))
    np.testing.assert_array_equal(sample.image[0].numpy(), np.round(raw * 255 / 16))
    assert source.facts(7).height == 8


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


@settings(max_examples=60)
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
    source = opened(f"npy:{path}")
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
        (np.zeros(8, np.uint8), "is not .N, H, W."),
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
    with pytest.raises(ValueError, match="Python objects, which are never loaded"):
        open_source(f"npy:{tmp_path / 'y.npz'}")
    assert not (tmp_path / "ran").exists()


def test_labels_beside_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 9), np.uint8))
    np.save(tmp_path / "x_labels.npy", np.array([2, -1, 0]))
    source = opened(f"npy:{tmp_path / 'x.npy'}")
    assert source.class_names == ("0", "1", "2")
    assert labels_of(source) == [2, None, 0]
    assert source.load(0).label == 2
    for wrong in (np.zeros(2, int), np.array(3), np.array([0, 0, 10**7])):
        np.save(tmp_path / "x_labels.npy", wrong)
        with pytest.raises(ValueError, match="label"):
            open_source(f"npy:{tmp_path / 'x.npy'}")


def test_archives_hold_images_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _random_array((3, 8, 9, 5), np.uint16)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=images, labels=np.array([0, 1, 1], np.uint8))
    source = opened(f"npy:{path}")
    assert labels_of(source) == [0, 1, 1]
    assert source.load(2).image.shape == (5, 8, 9)
    fingerprint = source.fingerprint()
    np.savez(path, images=images[::-1], labels=np.array([0, 1, 1]))
    assert opened(f"npy:{path}").fingerprint() != fingerprint
    np.savez(path, left=images, right=images)
    with pytest.raises(ValueError, match="named images; it holds left, right"):
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
    source = opened(f"npy:{tmp_path}")
    assert source.class_names == ("a", "b")
    assert labels_of(source) == [0, 0, 1, 1, 1, 1, 1, 1]
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
    source = opened(f"npy:{tmp_path / 'x.npy'}")
    packed = pickle.dumps(source)
    assert len(packed) < 10_000
    assert torch.equal(pickle.loads(packed).load(7).image, source.load(7).image)


def test_array_fingerprints_cover_shape_and_type(tmp_path: Path) -> None:
    def fingerprint(array: np.ndarray) -> str:
        np.save(tmp_path / "x.npy", array)
        return opened(f"npy:{tmp_path / 'x.npy'}").fingerprint()

    arrays: list[np.ndarray] = [
        np.zeros((2, 8, 9), np.uint8),
        np.zeros((2, 9, 8), np.uint8),
        np.zeros((2, 8, 9)),
    ]
    assert len({fingerprint(array) for array in arrays}) == 3
    assert fingerprint(arrays[0]) == fingerprint(arrays[0].copy())


@pytest.mark.parametrize("whole", [2**26, 0])
def test_the_fingerprint_of_a_mapped_array_follows_its_pixels(
    whole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file is too large to be read whole."""
    monkeypatch.setattr("crate_mae.sources.arrays.WHOLE_BYTES", whole)
    path, copied = tmp_path / "x.npy", tmp_path / "there" / "x.npy"
    copied.parent.mkdir()
    images = _random_array((50, 8, 9), np.uint8)
    np.save(path, images)
    np.save(copied, images)
    before = opened(f"npy:{path}").fingerprint()
    assert opened(f"npy:{copied}").fingerprint() == before, "not of place and time"
    first = subset(opened(f"npy:{path}"), range(3)).fingerprint()
    np.save(path, 255 - images)
    assert opened(f"npy:{path}").fingerprint() != before
    assert subset(opened(f"npy:{path}"), range(3)).fingerprint() != first
    images[31, 4, 4] ^= 1
    np.save(path, images)
    assert opened(f"npy:{path}").fingerprint() != before, "one pixel of a small file"


def test_the_fingerprint_of_a_folder_of_arrays_follows_their_pixels(tmp_path: Path) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", _random_array((8, 9), np.uint8))
    source = opened(f"npy:{tmp_path}")
    before = source.fingerprint()
    assert opened(f"npy:{tmp_path}").fingerprint() == before
    changed = np.load(tmp_path / "b.npy")
    changed[3, 3] ^= 1
    np.save(tmp_path / "b.npy", changed)
    assert opened(f"npy:{tmp_path}").fingerprint() != before
    (tmp_path / "b.npy").unlink()
    assert source.fingerprint() != before, "a file that is gone is no error here"


def test_the_first_bytes_tell_what_a_file_holds(tmp_path: Path) -> None:
    images = np.arange(4 * 8 * 9, dtype=np.uint8).reshape(4, 8, 9)
    np.savez(tmp_path / "x.npz", images=images, labels=[0, 1, 2, 3])
    (tmp_path / "zip.npy").write_bytes((tmp_path / "x.npz").read_bytes())
    np.save(tmp_path / "x.npy", images)
    (tmp_path / "array.npz").write_bytes((tmp_path / "x.npy").read_bytes())
    for name in ("zip.npy", "array.npz"):
        source = opened(f"npy:{tmp_path / name}")
        np.testing.assert_array_equal(source.load(3).image[0], images[3])
    assert labels_of(opened(f"npy:{tmp_path / 'zip.npy'}")) == [0, 1, 2, 3]


def test_a_damaged_archive_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=np.zeros((4, 8, 9), np.uint8))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="damaged or cut off"):
        opened(f"npy:{path}")


def test_members_of_archives_that_are_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    members: dict[str, Any] = {"data/images": np.zeros((4, 8, 9), np.uint8)}
    members["data/labels"] = np.array([3, 2, 1, 0])
    np.savez(path, **members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/data/._images.npy", b"\0\5\x16\7")
    assert labels_of(opened(f"npy:{path}")) == [3, 2, 1, 0]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"x")
    with pytest.raises(ValueError, match=r"holds no \.npy arrays, but a\.png"):
        opened(f"npy:{path}")


def test_labels_are_those_with_one_for_each_image(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    images = np.zeros((4, 8, 9), np.uint8)
    np.savez(path, images=images, classes=np.array(["cat", "dog"]), y=[0, 1, 1, 0])
    assert labels_of(opened(f"npy:{path}")) == [0, 1, 1, 0]
    np.savez(path, x=images.reshape(4, -1), y=[0, 1, 1, 0])
    with pytest.raises(ValueError, match=r"shape \(4, 72\) holds one row for each of 4 labels"):
        opened(f"npy:{path}")


def test_images_that_may_be_counted_last_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((28, 28, 50), np.uint8))
    (note,) = opened(f"npy:{tmp_path / 'x.npy'}").found.notes
    assert note.startswith("shape (28, 28, 50) is read as 28 grey images of 28 x 50; where")
