"""Reports against NumPy on the same pixels."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from source_cases import Encode, Items, Write

import crate_mae.sources.pixel_statistics as statistics_module
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource
from crate_mae.sources.describe import describe_source
from crate_mae.sources.pixel_statistics import PixelStatistics, measure_statistics
from crate_mae.sources.torch_datasets import wrap_dataset
from crate_mae.sources.webdataset import StreamSource


def _wrapped(images: list[Any]) -> ImageSource:
    return wrap_dataset(Items(images))


def _random_images(shapes: list[tuple[int, int]], channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (channels, h, w), np.uint8) for h, w in shapes]


def _pixels(images: list[np.ndarray]) -> np.ndarray:
    """All pixels of all images as (channels, N) in float64 on the [0, 1] scale."""
    scaled = [i.astype(np.float64) / (255 if i.dtype == np.uint8 else 1) for i in images]
    return np.concatenate([image.reshape(len(image), -1) for image in scaled], axis=1)


@settings(max_examples=40)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=5),
    channels=st.integers(1, 5),
    chunk=st.integers(1, 100),
    floats=st.booleans(),
)
def test_statistics_are_numpys(
    shapes: list[tuple[int, int]], channels: int, chunk: int, floats: bool
) -> None:
    images = _random_images(shapes, channels)
    if floats:
        images = [(image / 300 - 0.1).astype(np.float32) for image in images]
    statistics = PixelStatistics(channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics_module, "_CHUNK", chunk)
        for image in images:
            statistics.add(torch.from_numpy(image))
    pixels = _pixels(images)
    np.testing.assert_allclose(statistics.mean(), pixels.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(statistics.std(), pixels.std(axis=1), atol=1e-12)
    assert (statistics.lowest, statistics.highest) == (pixels.min(), pixels.max())


def test_statistics_do_not_cancel_far_from_zero() -> None:
    values = 1e6 + np.random.default_rng(0).random((1, 100, 100)).astype(np.float32)
    statistics = PixelStatistics(1)
    for row in values[0]:
        statistics.add(torch.from_numpy(row[None, None]))
    np.testing.assert_allclose(statistics.std(), values.astype(np.float64).std(), rtol=1e-9)


def test_measure_statistics_after_a_change_of_channels() -> None:
    colour, grey = _random_images([(6, 7)])[0], _random_images([(9, 5)], 1)[0]
    source = _wrapped([torch.from_numpy(colour), torch.from_numpy(grey)])
    mean, std = measure_statistics(source, channels=3)
    pixels = _pixels([colour, np.repeat(grey, 3, axis=0)])
    np.testing.assert_allclose(mean, pixels.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=1), atol=1e-12)
    luma = np.asarray(Image.fromarray(colour.transpose(1, 2, 0)).convert("L"))
    mean, _ = measure_statistics(source, channels=1)
    np.testing.assert_allclose(mean, _pixels([luma[None], grey]).mean(), atol=1e-12)
    with pytest.raises(ValueError, match="dataset:Items, items/000000: an image of 3 channels"):
        measure_statistics(source, channels=5)


def test_measure_statistics_over_a_seeded_choice() -> None:
    source = open_source("digits")
    some = measure_statistics(source, channels=1, limit=40, seed=1)
    assert some == measure_statistics(source, channels=1, limit=40, seed=1)
    assert some != measure_statistics(source, channels=1, limit=40, seed=2)
    assert measure_statistics(source, channels=1, limit=9999) == measure_statistics(
        source, channels=1
    )
    chosen = open_source("digits", limit=40, seed=1)
    assert measure_statistics(chosen, channels=1) == some
    with pytest.raises(ValueError, match="at least 1"):
        measure_statistics(source, channels=1, limit=0)


@pytest.fixture
def folder(write: Write, tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Two classes: three colour images, a grey one, and two that cannot be read."""
    images = _random_images([(4, 5), (4, 5), (10, 8)])
    for name, image in zip(("a/1.png", "a/2.png", "b/3.png"), images, strict=True):
        write(name, Image.fromarray(image.transpose(1, 2, 0)))
    write("b/4.png", Image.new("L", (20, 30), 77))
    write("a/text.jpg", b"only\x1b[31m text")
    write("b/empty.jpg", b"")
    return tmp_path, images


def test_a_report_on_a_folder(folder: tuple[Path, list[np.ndarray]]) -> None:
    root, images = folder
    source = open_source(f"imagefolder:{root}")
    calls: list[tuple[int, int]] = []
    report = describe_source(source, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 6) for n in range(1, 7)]
    assert (report.address, report.split) == (f"imagefolder:{root}", None)
    assert (report.count, report.examined, report.readable) == (6, 6, 4)
    assert [name for name, _ in report.unreadable] == ["a/text.jpg", "b/empty.jpg"]
    assert (report.heights, report.widths) == ((4, 7.0, 30), (5, 6.5, 20))
    assert report.sizes == {"4 x 5": 2, "10 x 8": 1, "30 x 20": 1}
    assert report.modes == {"RGB": 3, "L": 1}
    assert report.channel_counts == {3: 3, 1: 1}
    assert report.channels == 3
    pixels = _pixels(images)
    assert report.mean is not None
    assert report.std is not None
    np.testing.assert_allclose(report.mean, pixels.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(report.std, pixels.std(axis=1), atol=1e-12)
    assert report.value_range == (pixels.min(), pixels.max())
    assert report.dtypes == {"uint8": 4}
    assert report.classes == {"a": 2, "b": 2}
    assert report.fingerprint == source.fingerprint()
    assert "the 3 with 3" in report.notes[0]


def test_the_report_as_json_and_as_text(folder: tuple[Path, list[np.ndarray]]) -> None:
    report = describe_source(open_source(f"imagefolder:{folder[0]}"))
    loaded = json.loads(json.dumps(report.to_dict()))
    assert loaded["channel_counts"] == {"3": 3, "1": 1}
    assert loaded["unreadable"][1] == ["b/empty.jpg", "the file is empty"]
    table = report.table(width=80)
    assert all(len(line) <= 80 for line in table.splitlines())
    for part in ("readable       4 of 6", "a  2", "b/empty.jpg: the file is empty", "RGB (3)"):
        assert part in table


def test_long_lists_are_cut_and_odd_names_escaped(write: Write, tmp_path: Path) -> None:
    for number in range(25):
        write(f"{'long' * 30 if number else 'x'}{number:02d}.png", b"nothing")
    write("\x1b[2J\n.png", b"nothing")
    report = describe_source(open_source(f"imagefolder:{tmp_path}"))
    table = report.table(width=80)
    words = " ".join(table.split())
    assert "26 images: not an image in a known format, but a text file (" in words
    assert "and 21 more)" in words
    assert "\x1b" not in table
    assert r"\x1b[2J\n.png" in table
    assert all(len(line) <= 80 for line in table.splitlines())
    assert len(report.unreadable) == 26
    assert (report.mean, report.heights, report.channels, report.sizes) == (None, None, None, {})
    assert report.value_range is None
    with pytest.raises(ValueError, match="no image that can be read"):
        measure_statistics(open_source(f"imagefolder:{tmp_path}"), channels=3)


def test_a_limited_report_says_so() -> None:
    calls: list[tuple[int, int]] = []
    report = describe_source(
        open_source("digits"), limit=30, progress=lambda done, total: calls.append((done, total))
    )
    assert (report.examined, report.readable) == (30, 30)
    assert calls[-1] == (30, 30)
    assert f"{report.count}, 30 examined" in report.table()
    assert report.classes is not None
    assert sum(report.classes.values()) == 30


def test_a_class_without_images_is_listed() -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    items: Any = Items([(image, 0), (image, -1)])
    report = describe_source(wrap_dataset(items, class_names=["here", "nowhere"]))
    assert report.classes == {"here": 1, "nowhere": 0}
    assert report.unlabelled == 1
    assert "1 images carry no label" in report.table()


def test_multi_band_floats_are_reported(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 9, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    report = describe_source(open_source(f"npy:{tmp_path / 'x.npy'}"))
    assert (report.channels, report.dtypes, report.classes) == (5, {"float32": 4}, None)
    assert report.mean is not None
    np.testing.assert_allclose(report.mean, array.astype(np.float64).mean(axis=(0, 2, 3)))
    assert report.modes == {"5 x float32": 4}
    assert "unlabelled" in report.table()


def test_a_report_on_a_stream(tmp_path: Path, encode: Encode) -> None:
    pytest.importorskip("webdataset")
    images = _random_images([(4, 5), (6, 7)])
    members = {
        f"{n}.png": encode(Image.fromarray(i.transpose(1, 2, 0))) for n, i in enumerate(images)
    }
    members |= {"0.cls": b"4", "bad.jpg": b"x"}
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            archive.addfile(info, io.BytesIO(members[name]))
    source = open_source(f"wds:{tmp_path / 'x.tar'}")
    assert isinstance(source, StreamSource)
    report = describe_source(source)
    assert (report.count, report.readable) == (3, 2)
    assert report.unreadable[0][0] == "x.tar/bad"
    assert (report.modes, report.classes, report.unlabelled) == ({"RGB": 2}, {"4": 1}, 1)
    assert report.mean is not None
    np.testing.assert_allclose(report.mean, _pixels(images).mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(measure_statistics(source, channels=3)[0], report.mean, atol=1e-12)
    assert describe_source(source, limit=1).examined == 1
    assert measure_statistics(source, channels=3, limit=3)[0] == pytest.approx(report.mean)
