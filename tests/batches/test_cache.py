"""Decoded images in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import Pictures
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from crate_mae.batches.cache import CachedSource, decoded_bytes
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource
from crate_mae.sources.torch_datasets import wrap_dataset


def test_cached_images_are_those_of_the_source() -> None:
    source = Pictures(10)
    cached = CachedSource(source)
    assert (len(cached), cached.address, cached.class_names) == (10, "pictures", ("even", "odd"))
    source.loads = 0
    for index in range(10):
        sample = cached.load(index)
        assert torch.equal(sample.image, source.pixels(index))
        assert (sample.label, sample.name) == (index % 2, source.name(index))
        assert (cached.label(index), cached.name(index)) == (index % 2, source.name(index))
        assert cached.facts(index) == source.facts(index)
    assert source.loads == 0
    assert cached.fingerprint() == source.fingerprint()


def test_unreadable_images_are_listed_and_left_out() -> None:
    cached = CachedSource(Pictures(6, broken=(0, 4)))
    assert [cached.name(i) for i in range(len(cached))] == [f"picture-00{i}" for i in (1, 2, 3, 5)]
    assert cached.broken == [("picture-000", "torn"), ("picture-004", "torn")]
    assert len(CachedSource(Pictures(2, broken=(0, 1)))) == 0


def test_images_of_different_sizes_and_types_are_kept_apart() -> None:
    images = [
        torch.zeros(1, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 4, 5, dtype=torch.uint8),
        torch.zeros(1, 4, 4),
    ]
    cached = CachedSource(wrap_dataset(images))  # type: ignore[arg-type]
    for index, image in enumerate(images):
        assert torch.equal(cached.load(index).image, image)
        assert cached.load(index).image.dtype == image.dtype


def test_labels_that_come_with_the_items_are_kept_too() -> None:
    read: list[int] = []

    class Items(Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            read.append(index)
            return torch.zeros(1, 4, 4), index % 2

    cached = CachedSource(wrap_dataset(Items(), class_names=["even", "odd"]))
    read.clear()
    assert [cached.load(i).label for i in range(3)] == [0, 1, 0]
    assert read == []


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    CachedSource(Pictures(3, broken=(2,)), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def _actual(source: ImageSource) -> int:
    images = [source.load(index).image for index in range(len(source))]
    return sum(image.numel() * image.element_size() for image in images)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3), (9, 8, 5)])
def test_the_size_of_decoded_arrays(dtype: type, shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, *shape), dtype))
    source = open_source(f"npy:{tmp_path / 'x.npy'}")
    assert isinstance(source, ImageSource)
    assert decoded_bytes(source) == _actual(source)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_the_size_of_decoded_files(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (8, 9)).save(tmp_path / "x.tiff")
    source = open_source(f"imagefolder:{tmp_path}")
    assert isinstance(source, ImageSource)
    assert decoded_bytes(source) == _actual(source)


def test_the_size_is_estimated_from_readable_images() -> None:
    assert decoded_bytes(Pictures(200, broken=range(100))) == 200 * 64
    assert decoded_bytes(Pictures(3, broken=range(3))) == 0
