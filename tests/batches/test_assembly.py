"""Batches: the same samples, changes and masks whatever the workers, devices and restarts."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import (
    GREY,
    Pictures,
    batch_maker,
    indices,
    same_batches,
    write_shards,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_mae.batches.assembly import (
    Batch,
    SourceBatches,
    StreamBatches,
    TimedLoader,
    Waiting,
    stable_index,
    whole_batch,
)
from crate_mae.batches.config import VALIDATION_SEED, Augment, Masking
from crate_mae.batches.on_device import masks_of
from crate_mae.batches.samplers import EpochBatches, FixedBatches, step_of
from crate_mae.models.config import Preprocess
from crate_mae.sources.address import open_source
from crate_mae.sources.base import Share
from crate_mae.sources.images import Sample
from crate_mae.sources.torch_datasets import wrap_dataset
from crate_mae.sources.webdataset import StreamSource

COLLATE: Any = whole_batch
KEYS = [(0, 5), (0, 2), (1, 5)]


def _make(keys: list[tuple[int, int]], **options: Any) -> Batch:
    source = Pictures(9, size=(12, 10))
    batch: Batch = SourceBatches(source, batch_maker(**options)).__getitems__(keys)
    return batch


# What a batch holds


def test_a_batch_follows_from_seed_epoch_and_sample() -> None:
    batch = _make(KEYS)
    assert batch["images"].shape == (3, 1, 8, 8)
    assert batch["images"].dtype == torch.float32
    assert batch["mask"].shape == (3, 16)
    assert batch["mask"].dtype == torch.bool
    assert batch["mask"].sum(dim=1).tolist() == [12, 12, 12]
    assert batch["index"].tolist() == [5, 2, 5]
    assert batch["names"] == ["picture-005", "picture-002", "picture-005"]
    assert batch["broken"] == []
    assert same_batches([batch], [_make(KEYS)])
    # Another epoch changes image and mask, and so does another seed.
    assert not torch.equal(batch["images"][0], batch["images"][2])
    assert not torch.equal(batch["mask"][0], batch["mask"][2])
    other = _make(KEYS, seed=1)
    assert not torch.equal(batch["images"][0], other["images"][0])
    assert not torch.equal(batch["mask"], other["mask"])


def test_the_rest_of_the_batch_does_not_matter() -> None:
    batch = _make(KEYS)
    for place, key in enumerate(KEYS):
        alone = _make([key])
        assert torch.equal(batch["images"][place], alone["images"][0])
        assert torch.equal(batch["mask"][place], alone["mask"][0])


def test_masks_are_the_same_whatever_the_augmentation() -> None:
    masks = [
        _make(KEYS, augment=augment)["mask"]
        for augment in (Augment(), Augment(kind="pad_crop"), Augment(kind="none", flip=False))
    ]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    images = [_make(KEYS, masking=m)["images"] for m in (Masking(), Masking(kind="block"))]
    assert torch.equal(*images)


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = _make(KEYS)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert same_batches([first], [_make(KEYS)])
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="picture-005: an image of 5 channels cannot be turned"):
        SourceBatches(Pictures(9, channels=5), batch_maker()).__getitems__(KEYS)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_are_normalised() -> None:
    source = Pictures(4)
    make = batch_maker(Augment(kind="none", flip=False))
    batch = SourceBatches(source, make).__getitems__([(0, 3)])
    expected = (source.pixels(3).float() / 255 - 0.25) / 0.5
    torch.testing.assert_close(batch["images"][0], expected)


def test_channels_are_matched_to_the_model() -> None:
    colour = Preprocess(size=(8, 8), channels=3)
    plain = Augment(kind="none", flip=False)
    grey = SourceBatches(Pictures(4), batch_maker(plain, preprocess=colour))
    images = grey.__getitems__([(0, 1)])["images"]
    assert images.shape == (1, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])
    colours = SourceBatches(Pictures(4, channels=3), batch_maker(plain))
    assert colours.__getitems__([(0, 1)])["images"].shape == (1, 1, 8, 8)
    identity = Preprocess(size=(8, 8), channels=5, mean=(0.0,) * 5, std=(1.0,) * 5)
    bands = SourceBatches(Pictures(4, channels=5), batch_maker(plain, preprocess=identity))
    expected = Pictures(4, channels=5).pixels(1).float() / 255
    torch.testing.assert_close(bands.__getitems__([(0, 1)])["images"][0], expected)


def test_bytes_and_floats_in_one_batch_have_one_scale() -> None:
    white = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    source = wrap_dataset([white, white.float() / 255])  # type: ignore[arg-type]
    images = SourceBatches(source, batch_maker()).__getitems__([(0, 0), (0, 1)])["images"]
    torch.testing.assert_close(images, torch.full_like(images, (1 - 0.25) / 0.5))


# Masking


def test_ratio_ranges_are_drawn_evenly_for_each_image() -> None:
    masking = Masking(ratio=0.25, ratio_max=0.75)
    grid = (20, 20)
    ratios = [float(masking.draw(grid, 0, 0, i).float().mean()) for i in range(400)]
    assert 0.25 <= min(ratios) < 0.28
    assert 0.72 < max(ratios) <= 0.7525
    assert abs(sum(ratios) / 400 - 0.5) < 0.03
    assert ratios == [float(masking.draw(grid, 0, 0, i).float().mean()) for i in range(400)]
    single = Masking(ratio=0.5, ratio_max=0.5)
    assert {int(single.draw((4, 4), i).sum()) for i in range(20)} == {8}


@pytest.mark.parametrize("kind", ["random", "block", "grid"])
def test_every_kind_of_mask_is_reproducible(kind: Any) -> None:
    masking = Masking(kind=kind)
    masks = [masking.draw((4, 4), 0, 0, i) for i in range(10)]
    assert all(int(mask.sum()) == 12 for mask in masks)
    assert all(torch.equal(masks[i], masking.draw((4, 4), 0, 0, i)) for i in range(10))
    assert len({tuple(mask.tolist()) for mask in masks}) > 1


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.floats(0.3, 0.9))
def test_squares_of_patches_are_hidden_whole(
    rows: int, columns: int, square: int, ratio: float
) -> None:
    masking = Masking(square=square, ratio=ratio)
    grid = (rows * square, columns * square)
    if not 0 < int(rows * columns * (1 - ratio)) < rows * columns:
        with pytest.raises(ValueError, match=r"mask ratio|cannot be masked in part"):
            masking.check(grid)
        return
    index = torch.arange(5)
    by_sample = torch.stack([masking.draw(grid, 3, i) for i in range(5)])
    for masks in (by_sample, masks_of(masking, grid, index, 3)):
        cells = masks.view(5, rows, square, columns, square)
        assert torch.equal(cells, cells[:, :, :1, :, :1].expand_as(cells))
        kept = square**2 * int(rows * columns * (1 - ratio))
        assert (~masks).sum(dim=1).tolist() == [kept] * 5 == [masking.kept(grid)] * 5


def test_a_step_has_one_ratio_whatever_shares_it() -> None:
    """Two devices and two accumulated batches of a step hide alike; steps differ."""
    masking = Masking(ratio=0.2, ratio_max=0.9, ratio_per="step")
    grid, counts = (8, 8), {}
    for accumulate, world in ((1, 1), (2, 2)):
        seen: dict[int, set[int]] = {}
        for rank in range(world):
            sampler = EpochBatches(
                num_samples=64,
                batch_size=16 // accumulate // world,
                accumulate=accumulate,
                share=Share(seed=0, rank=rank, world_size=world),
            )
            for keys in sampler:
                ratio = masking.step_ratio(0, step_of(keys))
                masks = [masking.draw(grid, 0, *key, ratio=ratio) for key in keys]
                on_device = masks_of(
                    masking, grid, torch.tensor([i for _, i in keys]), 0, 0, ratio=ratio
                )
                removed = {int(mask.sum()) for mask in [*masks, *on_device]}
                seen.setdefault(step_of(keys), set()).update(removed)
        counts[world] = seen
    assert counts[1] == counts[2]
    assert sorted(counts[1]) == [0, 1, 2, 3]
    assert all(len(removed) == 1 for removed in counts[1].values())
    assert len({min(removed) for removed in counts[1].values()}) > 1
    ratios = [masking.step_ratio(0, step) for step in range(300)]
    assert 0.2 <= min(map(float, filter(None, ratios))) < 0.22
    assert 0.88 < max(map(float, filter(None, ratios))) <= 0.9
    fixed = masking.of_validation
    assert fixed.step_ratio(0, 0) == fixed.step_ratio(VALIDATION_SEED, 7) == pytest.approx(0.55)
    assert masking.step_ratio(VALIDATION_SEED, 0) != masking.step_ratio(VALIDATION_SEED, 1)
    for other in (Masking(), Masking(ratio=0.2, ratio_max=0.9)):
        assert other.of_validation is other


def test_settings_of_masks_say_themselves() -> None:
    assert str(Masking()) == "75% (random)"
    text = str(Masking(ratio=0.5, ratio_max=0.75, ratio_per="step", square=2))
    assert text == "50% to 75% (by step) (random, squares of 2 x 2)"


def test_wrong_masking_is_refused() -> None:
    with pytest.raises(ValueError, match=r"masking\.square 3 must divide the grid of 4 x 4"):
        Masking(square=3).check((4, 4))
    with pytest.raises(ValueError, match=r"squares are for masking\.kind=random alone"):
        Masking(kind="block", square=2)
    with pytest.raises(ValueError, match="ratio_per must be image or step"):
        Masking(ratio_per="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"masking\.kind must be one of random, block, grid"):
        Masking(kind="stripes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ratio_max 0\.5 is below masking\.ratio 0\.75"):
        Masking(ratio_max=0.5)
    Masking().check((4, 4))
    for ratio, ratio_max in ((0.0, None), (1.0, None), (1.5, None), (0.5, 0.99), (0.0, 0.5)):
        with pytest.raises(ValueError, match="mask ratio"):
            Masking(ratio=ratio, ratio_max=ratio_max).check((4, 4))


# Order


@settings(max_examples=60)
@given(
    num_samples=st.integers(24, 80),
    split=st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4), (3, 2), (2, 6)]),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_a_step_sees_the_same_samples_on_any_devices(
    num_samples: int, split: tuple[int, int], seed: int, epoch: int
) -> None:
    world, accumulate = split
    whole = 24  # samples of an optimiser step

    def steps(world: int, accumulate: int) -> list[list[tuple[int, int]]]:
        size = whole // (world * accumulate)
        ranks = []
        for rank in range(world):
            sampler = EpochBatches(
                num_samples=num_samples,
                batch_size=size,
                accumulate=accumulate,
                share=Share(rank=rank, world_size=world, seed=seed),
                position=lambda: epoch * (num_samples // whole) * accumulate,
            )
            batches = list(sampler)
            assert len(batches) == len(sampler) == num_samples // whole * accumulate
            assert all(len(batch) == size for batch in batches)
            ranks.append(batches)
        return [
            sorted(
                key
                for batches in ranks
                for batch in batches[step * accumulate : (step + 1) * accumulate]
                for key in batch
            )
            for step in range(num_samples // whole)
        ]

    divided = steps(world, accumulate)
    assert divided == steps(1, 1)
    keys = [key for step in divided for key in step]
    assert len(keys) == len(set(keys)) == num_samples // whole * whole
    assert {e for e, _ in keys} == {epoch}
    assert all(0 <= index < num_samples for _, index in keys)


@settings(max_examples=60)
@given(
    num_samples=st.integers(12, 60),
    batch_size=st.integers(1, 3),
    accumulate=st.integers(1, 2),
    rank=st.integers(0, 1),
    done=st.integers(0, 200),
)
def test_order_goes_on_from_any_position(
    num_samples: int, batch_size: int, accumulate: int, rank: int, done: int
) -> None:
    position = 0
    sampler = EpochBatches(
        num_samples=num_samples,
        batch_size=batch_size,
        accumulate=accumulate,
        share=Share(rank=rank, world_size=2),
        position=lambda: position,
    )
    epoch, first = divmod(done, len(sampler))
    position = epoch * len(sampler)
    uninterrupted = list(sampler)
    position = done
    assert list(sampler) == uninterrupted[first:]
    position = (epoch + 1) * len(sampler)
    following = [[index for _, index in batch] for batch in sampler]
    assert following != [[index for _, index in batch] for batch in uninterrupted]


def test_fewer_images_than_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="7 images do not fill one step of 2 x 2 accumulated x 2"):
        EpochBatches(num_samples=7, batch_size=2, accumulate=2, share=Share(world_size=2))


@given(
    num_samples=st.integers(0, 40),
    batch_size=st.integers(1, 7),
    world_size=st.integers(1, 4),
)
def test_fixed_batches_cover_everything_once(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    samplers = [
        FixedBatches(
            num_samples=num_samples,
            batch_size=batch_size,
            share=Share(rank=rank, world_size=world_size),
        )
        for rank in range(world_size)
    ]
    batches = [batch for sampler in samplers for batch in sampler]
    assert sorted(key for batch in batches for key in batch) == [(0, i) for i in range(num_samples)]
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


def _loader(workers: int, **options: Any) -> TimedLoader:
    sampler = EpochBatches(num_samples=20, batch_size=4, share=Share(seed=3), **options)
    images = SourceBatches(Pictures(20, broken=(7,)), batch_maker())
    return TimedLoader(images, batch_sampler=sampler, num_workers=workers, collate_fn=COLLATE)


def test_workers_change_nothing() -> None:
    alone = list(_loader(0))
    assert len(alone) == 5
    for workers in (1, 2):
        shared = list(_loader(workers))
        assert same_batches(alone, shared)
        assert [b["broken"] for b in alone] == [b["broken"] for b in shared]


# Broken images


def test_a_broken_image_is_replaced_and_named() -> None:
    images = SourceBatches(Pictures(6, broken=(2, 3, 5)), batch_maker())
    batch = images.__getitems__([(0, 1), (0, 2), (0, 5)])
    assert batch["names"] == ["picture-001", "picture-004", "picture-000"]
    assert batch["index"].tolist() == [1, 2, 5]
    assert batch["broken"] == [(f"picture-00{i}", "torn") for i in (2, 3, 5)]
    assert batch["images"].shape == (3, 1, 8, 8)
    assert len(images) == 6


def test_nothing_readable_is_an_error_with_a_list() -> None:
    images = SourceBatches(Pictures(7, broken=range(7)), batch_maker())
    with pytest.raises(
        ValueError, match=r"no readable image in pictures: picture-003 \(torn\).* and 2 more"
    ):
        images.__getitems__([(0, 3)])


# Streams


def _stream(
    address: str, *, batches: int = 8, batch_size: int = 3, position: int = 0, **options: Any
) -> StreamBatches:
    source = open_source(address)
    assert isinstance(source, StreamSource)
    stream = StreamBatches(
        source,
        batch_maker(),
        share=Share(**options),
        batch_size=batch_size,
        batches_per_epoch=batches,
    )
    stream.position = position
    return stream


def _streamed(stream: StreamBatches, workers: int) -> list[Batch]:
    return list(TimedLoader(stream, batch_size=None, num_workers=workers, collate_fn=COLLATE))


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four shards of six images."""
    pytest.importorskip("webdataset")
    return write_shards(tmp_path_factory.mktemp("even") / "shards", [6] * 4)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four shards of very different length, with five broken images."""
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("uneven") / "shards"
    return write_shards(folder, [9, 1, 4, 10], broken=(0, 3, 11, 17, 20))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_batch_of_a_stream_is_full(even: str, workers: int) -> None:
    batches = _streamed(_stream(even), workers)
    assert len(batches) == len(_stream(even)) == 8
    assert all(batch["images"].shape == (3, 1, 8, 8) for batch in batches)
    assert same_batches(batches, _streamed(_stream(even), workers))
    names = [name for batch in batches for name in batch["names"]]
    assert len(set(names)) == 24  # shards of equal length: every image once
    second = _streamed(_stream(even, position=8), workers)
    assert sorted(n for b in second for n in b["names"]) == sorted(names)
    assert not same_batches(batches, second)


def test_no_worker_is_one_worker(even: str) -> None:
    assert same_batches(_streamed(_stream(even), 0), _streamed(_stream(even), 1))


def test_devices_share_the_shards(even: str) -> None:
    parts = [
        _streamed(_stream(even, batches=4, rank=rank, world_size=2), workers=0) for rank in range(2)
    ]
    names = [name for batches in parts for batch in batches for name in batch["names"]]
    assert len(names) == len(set(names)) == 24


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_stopped(even: str, workers: int) -> None:
    whole = _streamed(_stream(even, position=8), workers)
    for done in (0, 1, 2, 5, 7):
        rest = _streamed(_stream(even, position=8 + done), workers)
        assert same_batches(rest, whole[done:])


@pytest.mark.parametrize("workers", [0, 2])
def test_unequal_shards_and_broken_images(uneven: str, workers: int) -> None:
    whole = _streamed(_stream(uneven), workers)
    assert len(whole) == 8
    assert all(len(batch["names"]) == 3 for batch in whole)
    known: set[str] = set()
    for done, batch in enumerate(whole):
        stream = _stream(uneven, position=done)
        stream.known_broken = frozenset(known)
        rest = _streamed(stream, workers)
        assert same_batches(rest, whole[done:])
        assert rest[0]["broken"] == batch["broken"]
        known |= {name for name, _ in batch["broken"]}
    assert 0 < len(known) <= 5


def test_a_run_longer_than_the_shards_begins_again(even: str) -> None:
    batches = _streamed(_stream(even, batches=16), workers=0)
    names = [name for batch in batches for name in batch["names"]]
    assert sorted(names[:24]) == sorted(names[24:])
    assert names[:24] != names[24:]
    assert same_batches(_streamed(_stream(even, batches=16, position=11), 0), batches[11:])


def test_streams_that_cannot_give_a_batch_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    address = write_shards(tmp_path / "torn", [3], broken=range(3))
    with pytest.raises(ValueError, match="no readable image for worker 0"):
        next(iter(_stream(address)))
    with pytest.raises(ValueError, match="do not fill one step"):
        _stream(address, batches=0)
    with pytest.raises(ValueError, match="1 shards, too few for 2 processes"):
        next(iter(_stream(address, world_size=2)))


def test_stable_numbers_depend_on_the_whole_name() -> None:
    names = [
        *(f"folder/{i}.png" for i in range(300)),
        "",
        "a",
        "a\0",
        "ä",
        "図" * 9,
        "図" * 8 + "画",
    ]
    numbers = {stable_index(name) for name in names}
    assert len(numbers) == len(names)
    assert all(0 <= number < 2**31 for number in numbers)
    assert stable_index("folder/1.png") == stable_index("folder/1.png")


# Waiting


class _Slow(Pictures):
    def load(self, index: int) -> Sample:
        time.sleep(0.02)
        return super().load(index)


def test_waiting_is_counted_but_not_the_work_between() -> None:
    sampler = FixedBatches(num_samples=4, batch_size=2)
    images = SourceBatches(_Slow(4), batch_maker(preprocess=GREY))
    loader = TimedLoader(images, batch_sampler=sampler, collate_fn=COLLATE)
    called: list[float] = []
    loader.waiting = waiting = Waiting()
    loader.before_iteration = lambda: called.append(waiting.seconds)
    assert waiting.seconds == 0
    batches = []
    start = time.perf_counter()
    for batch in loader:
        batches.append(batch)
        time.sleep(0.1)
    assert 0.08 <= waiting.seconds <= time.perf_counter() - start - 0.2
    first = waiting.seconds
    assert indices(loader) == indices(batches) == [0, 1, 2, 3]
    assert waiting.seconds >= first + 0.08
    assert called == [0, first]
