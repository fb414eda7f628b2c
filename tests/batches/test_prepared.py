"""Prepared batches: read in turn or ahead by other processes, they are the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from source_cases import Items, opened

from crate_mae.batches import prepared
from crate_mae.batches.prepared import (
    FEW_STRETCHES,
    PreparedBatch,
    prepared_batches,
    read_stretches,
    reading_workers,
    stretches,
)
from crate_mae.batches.transforms import prepare
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import ImageSource, subset
from crate_mae.sources.images import Sample, to_channels
from crate_mae.sources.torch_datasets import as_source

PREPROCESS = Preprocess(size=(8, 6), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture
def pictures(tmp_path: Path) -> ImageSource:
    """Eleven images of two classes: colour, grey and of 16 bits, three of them broken."""
    draw = np.random.default_rng(0)
    for index in range(11):
        place = tmp_path / "ab"[index % 2] / f"{index:02d}.png"
        place.parent.mkdir(exist_ok=True)
        if index in (0, 4, 5):
            place.write_bytes(b"" if index == 4 else b"no picture")
            continue
        pixels = draw.integers(0, 256, (9 + index, 7, 3), np.uint8)
        if index == 3:
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(place)
        else:
            Image.fromarray(pixels if index % 3 else pixels[..., 0]).save(place)
    return opened(f"imagefolder:{tmp_path}")


def all_of(
    source: ImageSource, *, batch_size: int, workers: int
) -> tuple[list[PreparedBatch], list[tuple[str, str]], list[tuple[int, int]]]:
    broken: list[tuple[str, str]] = []
    heard: list[tuple[int, int]] = []
    batches = prepared_batches(
        source, PREPROCESS, batch_size=batch_size, broken=broken, workers=workers,
        progress=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    return list(batches), broken, heard


@pytest.mark.parametrize("batch_size", [1, 2, 4, 20])
def test_batches_are_the_images_one_by_one(pictures: ImageSource, batch_size: int) -> None:
    batches, broken, heard = all_of(pictures, batch_size=batch_size, workers=0)
    samples = {i: pictures.read(i) for i in range(len(pictures))}
    good = {i: sample for i, sample in samples.items() if isinstance(sample, Sample)}
    assert [i for batch in batches for i in batch.indices] == list(good)
    assert [n for batch in batches for n in batch.names] == [one.name for one in good.values()]
    assert [int(n) for batch in batches for n in batch.labels] == [s.label for s in good.values()]
    found = torch.cat([batch.images for batch in batches])
    for row, sample in zip(found, good.values(), strict=True):
        alone = prepare([to_channels(sample.image, 3)], PREPROCESS)[0]
        assert torch.equal(row, alone)
    assert [name for name, _ in broken] == [pictures.name(i) for i in samples if i not in good]
    assert heard[-1] == (11, 11)
    assert all(len(batch.names) <= batch_size for batch in batches)


@pytest.mark.parametrize("workers", [1, 3])
def test_other_processes_read_the_same(pictures: ImageSource, workers: int) -> None:
    state = torch.get_rng_state()
    alone = all_of(pictures, batch_size=2, workers=0)
    ahead = all_of(pictures, batch_size=2, workers=workers)
    for one, other in zip(alone[0], ahead[0], strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert (one.names, one.indices) == (other.names, other.indices)
    assert alone[1:] == ahead[1:]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_what_does_not_fit_is_told_in_the_same_words(tmp_path: Path, workers: int) -> None:
    np.save(tmp_path / "five.npy", np.zeros((6, 8, 8, 5), np.uint8))
    source = opened(f"npy:{tmp_path / 'five.npy'}")
    with pytest.raises(ValueError, match=r"^an image of 5 channels cannot be turned into 3"):
        list(prepared_batches(source, PREPROCESS, batch_size=2, broken=[], workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_stretches_come_in_the_order_asked_for(pictures: ImageSource, workers: int) -> None:
    cuts = [range(8, 11), range(2), range(2, 3)]
    found = list(read_stretches(pictures, PREPROCESS, cuts, workers=workers))
    assert [stretch.indices for stretch in found] == [[9, 10], [1], []]
    assert [len(stretch.broken) for stretch in found] == [1, 1, 1]
    assert found[2].prepared(PREPROCESS) is None


def test_stretches_cover_a_range_once() -> None:
    assert stretches(range(3, 10), 3) == [range(3, 6), range(6, 9), range(9, 10)]
    assert stretches(range(0), 3) == []
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        stretches(range(3), 0)


def test_processes_read_where_there_is_much_to_decode(
    pictures: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, few = stretches(range(11), 2), stretches(range(FEW_STRETCHES), 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert reading_workers(pictures, PREPROCESS, many) == 3
    assert reading_workers(subset(pictures, range(11)), PREPROCESS, many) == 3
    assert reading_workers(pictures, PREPROCESS, few) == 0, "they would start for nothing"
    np.save(tmp_path / "arrays.npy", np.zeros((11, 8, 8, 3), np.uint8))
    in_memory = opened(f"npy:{tmp_path / 'arrays.npy'}")
    assert reading_workers(in_memory, PREPROCESS, many) == 0, "nothing to decode"
    of_others = as_source(Items([(torch.zeros(3, 8, 8), 0)] * 11), None)
    assert reading_workers(of_others, PREPROCESS, many) == 0, "it may not bear other processes"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert reading_workers(pictures, PREPROCESS, many) == 6
    # Room for the stretches of one worker: 2 of 8 x 6 pixels of 3 channels in float32, 3 times.
    monkeypatch.setattr(prepared, "shared_memory", lambda: 2 * 3 * (2 * 8 * 6 * 3 * 4) * 1 + 5)
    assert reading_workers(pictures, PREPROCESS, many) == 1
    monkeypatch.setattr(prepared, "shared_memory", lambda: 1000)
    assert reading_workers(pictures, PREPROCESS, many) == 0
