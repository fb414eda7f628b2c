"""From a data configuration to loaders: what is checked, measured, kept and held out."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from data_cases import MODEL, Pictures, indices, same_batches, write_shards
from PIL import Image
from torch.utils.data import Dataset

from crate_mae.batches.assembly import Batch, TimedLoader, stable_index
from crate_mae.batches.broken import TooManyBrokenImagesError
from crate_mae.batches.cache import CachedSource
from crate_mae.batches.config import Augment, DataConfig, Masking
from crate_mae.batches.data_module import ImageDataModule, default_workers
from crate_mae.batches.masked import MaskedBatches
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource, subset
from crate_mae.sources.splits import split_off
from crate_mae.sources.torch_datasets import wrap_dataset


def _module(
    dataset: Dataset[Any] | ImageSource | None = None,
    *,
    model: ModelConfig = MODEL,
    masking: Masking | None = None,
    batch_size: int = 4,
    accumulate: int = 1,
    val_dataset: ImageSource | None = None,
    preprocess: Preprocess | None = None,
    seed: int = 0,
    **config: Any,
) -> ImageDataModule:
    module = ImageDataModule(
        DataConfig(**{"workers": 0, **config}),
        model=model,
        kind=MaskedBatches(masking=masking or Masking()),
        batch_size=batch_size,
        accumulate=accumulate,
        dataset=dataset,
        val_dataset=val_dataset,
        preprocess=preprocess,
        seed=seed,
    )
    module.open()
    return module


def _validation(module: ImageDataModule) -> list[Batch]:
    loader = module.val_dataloader()
    assert isinstance(loader, TimedLoader)
    return list(loader)


# Configuration


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"val_share": 1.0}, r"data\.val_share must be in \[0, 1\), not 1\.0"),
        ({"val_share": -0.1}, r"data\.val_share"),
        ({"max_broken": 1.5}, r"data\.max_broken must be in \[0, 1\], not 1\.5"),
        ({"workers": -1}, r"data\.workers must be at least 0, not -1"),
        ({"cache_gib": -1.0}, r"data\.cache_gib must be a number of GiB, at least 0"),
        ({"cache_gib": float("nan")}, r"data\.cache_gib must be a number of GiB, at least 0"),
        ({"cache_gib": float("inf")}, r"data\.cache_gib must be a number of GiB, at least 0"),
        ({"limit": 0}, r"data\.limit must be at least 1, not 0"),
        ({"val_limit": 0}, r"data\.val_limit must be at least 1, not 0"),
        ({"mean": [0.5]}, r"data\.mean and data\.std go together"),
        ({"std": [0.5]}, r"data\.mean and data\.std go together"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masking": Masking(ratio=0.99)}, "mask ratio 0.99 keeps no patch of 16"),
        ({"dataset": Pictures(20, size=(8, 1))}, "picture-000 is 8x1, smaller than a 2x2 patch"),
        ({"dataset": Pictures(3), "val_share": 0.0}, "3 training images .* optim.batch_size"),
        ({"dataset": Pictures(20, channels=5)}, "picture-00.: an image of 5 channels"),
        ({"dataset": Pictures(20), "mean": [0.1] * 3, "std": [1.0] * 3}, "3 means and 3 stds"),
        ({"dataset": Pictures(1), "batch_size": 1}, "1 images cannot be split with val_share"),
        ({"preprocess": Preprocess(size=(8, 8))}, "for 3 channels of 8x8 does not fit a model"),
    ],
)  # fmt: skip
def test_data_that_cannot_train_the_model_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _module(**options)


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="image 9x8 is not a multiple of patch 2x2"):
        ModelConfig(**{**MODEL.to_dict(), "image_size": (9, 8)})


def test_fewer_images_than_an_accumulated_step_are_refused() -> None:
    with pytest.raises(ValueError, match="12 training images are fewer than one batch of 16"):
        _module(Pictures(12), val_share=0.0, accumulate=4)


def test_much_smaller_images_are_enlarged_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = _module(Pictures(20, size=(4, 3), broken=(0,)), max_broken=0.2)
    assert "picture-001 is 4x3 and is enlarged to model.image_size 8x8" in caplog.text
    assert next(iter(module.train_dataloader()))["images"].shape == (4, 1, 8, 8)


# Opening


def test_digits_by_default() -> None:
    module = _module(limit=100, batch_size=9)
    assert module.val_source is not None
    assert (module.num_samples, len(module.val_source)) == (90, 10)
    assert module.steps_per_epoch == len(module.train_dataloader()) == 10
    assert len(list(module.train_dataloader())) == 10
    module.open()  # again


def test_images_are_asked_for_only_once_they_are_open() -> None:
    module = ImageDataModule(DataConfig(), model=MODEL, kind=MaskedBatches(), batch_size=4)
    with pytest.raises(RuntimeError, match=r"not open yet: call open\(\) first"):
        module.train_dataloader()


def test_channels_of_the_source_are_matched() -> None:
    colour = ModelConfig(**{**MODEL.to_dict(), "channels": 3})
    images = next(iter(_module(Pictures(20), model=colour).train_dataloader()))["images"]
    assert images.shape == (4, 3, 8, 8)
    images = next(iter(_module(Pictures(20, channels=3)).train_dataloader()))["images"]
    assert images.shape == (4, 1, 8, 8)


def test_arrays_of_five_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((20, 5, 8, 8)).astype(np.float32)
    np.save(tmp_path / "bands.npy", values)
    model = ModelConfig(**{**MODEL.to_dict(), "channels": 5})
    module = _module(model=model, source=f"npy:{tmp_path / 'bands.npy'}", val_share=0.0)
    np.testing.assert_allclose(module.preprocess.mean, values.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(module.preprocess.std, values.std((0, 2, 3)), rtol=1e-5)
    assert next(iter(module.train_dataloader()))["images"].shape == (4, 5, 8, 8)


def test_sixteen_bit_files_among_others_have_the_same_scale(tmp_path: Path) -> None:
    for number in range(8):
        level = np.full((8, 8), 30 * number, np.uint8)
        wide = number % 2 == 0
        pixels = level.astype(np.uint16) * 257 if wide else level
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    module = _module(
        source=f"imagefolder:{tmp_path}", val_share=0.0, batch_size=8, mean=[0.0], std=[1.0]
    )
    batch = next(iter(module.train_dataloader()))
    expected = batch["index"].float() * 30 / 255
    torch.testing.assert_close(batch["images"].mean((1, 2, 3)), expected)


# Mean and standard deviation


def test_statistics_are_measured_on_the_training_images_alone() -> None:
    module = _module(Pictures(30), val_share=0.5)
    source = module.train_source
    assert isinstance(source, ImageSource)
    pixels = np.stack([source.load(i).image.numpy() for i in range(15)]) / 255
    assert len(source) == 15
    np.testing.assert_allclose(module.preprocess.mean, [pixels.mean()], rtol=1e-6)
    np.testing.assert_allclose(module.preprocess.std, [pixels.std()], rtol=1e-6)
    assert (module.preprocess.size, module.preprocess.channels) == ((8, 8), 1)


def test_given_statistics_and_given_preprocessing_are_used() -> None:
    preprocess = _module(Pictures(20), mean=[0.3], std=[0.7]).preprocess
    assert (preprocess.mean, preprocess.std) == ((0.3,), (0.7,))
    other = Preprocess(size=(8, 8), channels=1, mean=(0.1,), std=(0.2,))
    module = _module(Pictures(20), mean=[0.3], std=[0.7], preprocess=other)
    assert module.preprocess is other
    source = module.train_source
    assert isinstance(source, ImageSource)
    maker = module.kind.validation_maker(module)
    images = maker([(0, 0, source.load(0))], [])["images"]
    torch.testing.assert_close(images[0], (source.load(0).image / 255 - 0.1) / 0.2)


# Held-out images


def test_held_out_images_are_disjoint_and_fixed() -> None:
    parts = split_off(Pictures(40), 0.25, seed=1)
    names = [{part.name(i) for i in range(len(part))} for part in parts]
    assert (len(parts[0]), len(parts[1])) == (30, 10)
    assert len(names[0] | names[1]) == 40
    again = split_off(Pictures(40), 0.25, seed=1)[1]
    assert [again.name(i) for i in range(10)] == [parts[1].name(i) for i in range(10)]
    other = split_off(Pictures(40), 0.25, seed=2)[1]
    assert {other.name(i) for i in range(10)} != names[1]
    train, val = split_off(Pictures(40), 0.25, seed=1, limit=3)
    assert (len(train), len(val)) == (37, 3)
    assert len(split_off(Pictures(40), 0.001, seed=1)[1]) == 1


def test_validation_images_by_split_source_or_data_set() -> None:
    module = _module(limit=20, val_split="test", val_limit=30)
    assert module.val_source is not None
    assert (module.val_source.split, len(module.val_source), module.num_samples) == ("test", 30, 20)
    module = _module(Pictures(20), val_source="digits", val_limit=7)
    assert module.val_source is not None
    assert (module.val_source.address, len(module.val_source)) == ("digits", 7)
    module = _module(Pictures(20), val_dataset=Pictures(9), limit=10, val_limit=5)
    assert module.val_source is not None
    assert (module.num_samples, len(module.val_source)) == (10, 5)
    module = _module(Pictures(20), val_share=0.0)
    assert module.val_source is None
    assert module.val_dataloader() == []


@pytest.mark.parametrize(
    "where", [{"val_split": "test"}, {"val_source": "digits"}, {"val_share": 0.4}]
)
def test_images_are_the_same_whatever_the_seed(where: dict[str, Any]) -> None:
    """Losses of runs that differ in their seed alone are of the same images."""
    chosen = []
    for seed in (0, 1):
        module = _module(limit=50, **where, val_limit=20, seed=seed)
        assert module.val_source is not None
        assert isinstance(module.train_source, ImageSource)
        chosen.append(
            [
                [source.name(i) for i in range(len(source))]
                for source in (module.train_source, module.val_source)
            ]
        )
    assert chosen[0] == chosen[1]
    assert len(chosen[0][1]) == 20
    whole = cast("ImageSource", open_source("digits", split="train"))
    first = {whole.name(i) for i in range(50)}
    assert not set(chosen[0][0]) <= first, "a random choice, not the first ones"
    assert set(chosen[0][0]) <= {whole.name(i) for i in range(len(whole))}


def test_a_split_of_other_images_does_not_validate_a_data_set_given_in_python() -> None:
    """The source of the settings is then the default one, and nothing of this run."""
    with pytest.raises(
        ValueError, match="val_split test is a split of digits, not of the data set"
    ):
        _module(Pictures(20), val_split="test")


def test_validation_images_of_a_data_set_are_the_same_whatever_the_seed() -> None:
    sources = [
        _module(Pictures(20), val_dataset=Pictures(30), val_limit=5, seed=seed).val_source
        for seed in (0, 1)
    ]
    names = [[source.name(i) for i in range(5)] for source in sources if source is not None]
    assert names[0] == names[1]


def test_a_channel_of_one_value_is_refused_by_name() -> None:
    """Whatever the value: for most of them the measured spread is rounding, not 0."""
    for value in (0, 7, 100, 255):
        image = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)
        images = [torch.cat([image, torch.full((1, 8, 8), value, dtype=torch.uint8)])] * 20
        with pytest.raises(ValueError, match=r"channel 1 of .* has one value everywhere, about"):
            _module(images, model=replace(MODEL, channels=2))  # type: ignore[arg-type]


def test_validation_images_are_checked_before_training() -> None:
    five = [torch.zeros(5, 8, 8) for _ in range(9)]
    with pytest.raises(ValueError, match="5 channels cannot be turned into"):
        _module(Pictures(20), val_dataset=wrap_dataset(five))  # type: ignore[arg-type]


def test_validating_on_all_images_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    _module(limit=20, val_split="all", val_limit=7)
    assert "validation images are training images: name data.val_split" in caplog.text


def test_names_that_are_not_utf8_have_their_own_numbers() -> None:
    names = ["a/1.png", "a\udce9/1.png", "a\udcfc/1.png"]
    assert len({stable_index(name) for name in names}) == 3


def test_validating_on_training_images_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    _module(limit=20, val_source="digits", val_limit=7)
    assert "validation images are training images: name data.val_split" in caplog.text
    caplog.clear()
    _module(limit=20, val_split="test", val_limit=7)
    assert not caplog.text


def test_validation_batches_never_change() -> None:
    module = _module(Pictures(50), val_share=0.3)
    first = _validation(module)
    assert indices(first) == list(range(15))
    module.batches_seen = 17
    next(iter(module.train_dataloader()))
    assert same_batches(_validation(module), first)
    plain = _module(Pictures(50), val_share=0.3, augment=Augment(kind="none"))
    assert same_batches(_validation(plain), first)
    pickle.dumps(module.kind.validation_maker(module))  # for workers that are not forked


# Memory


def test_batches_do_not_depend_on_the_cache_or_the_workers() -> None:
    variants = [
        _module(Pictures(30), cache_gib=gib, workers=workers)
        for gib, workers in ((2.0, 0), (0.0, 0), (2.0, 2), (0.0, 1))
    ]
    kept = [isinstance(module.train_source, CachedSource) for module in variants]
    assert kept == [True, False, True, False]
    epochs = [list(module.train_dataloader()) for module in variants]
    assert all(same_batches(epochs[0], epoch) for epoch in epochs[1:])
    held = [_validation(module) for module in variants]
    assert all(same_batches(held[0], batches) for batches in held[1:])


def test_images_that_do_not_fit_are_not_kept() -> None:
    almost = 27 * 64 / 2**30
    assert isinstance(_module(Pictures(30), cache_gib=almost).train_source, CachedSource)
    small = _module(Pictures(30), cache_gib=almost / 1.01)
    assert not isinstance(small.train_source, CachedSource)
    assert isinstance(small.val_source, CachedSource)


def test_default_workers() -> None:
    assert 1 <= default_workers(cached=False) <= 8
    if not torch.cuda.is_available():
        assert default_workers(cached=True) == 0


# Broken images


def test_broken_images_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    module = _module(Pictures(30, broken=(3, 9)), max_broken=0.1)
    assert module.broken == {"picture-003": "torn", "picture-009": "torn"}
    module.broken.note([("picture-003", "torn")])
    assert caplog.text.count("unreadable image passed over: picture-003 (torn)") == 1
    assert module.broken.total == 30
    assert module.val_source is not None
    assert module.num_samples + len(module.val_source) == 28


@pytest.mark.parametrize("cache_gib", [0.0, 2.0])
def test_too_many_broken_images_stop_the_run_with_a_list(cache_gib: float) -> None:
    def train() -> None:
        source = Pictures(30, broken=range(6))
        module = _module(source, max_broken=0.1, cache_gib=cache_gib, val_share=0.0, batch_size=30)
        for batch in module.train_dataloader():
            module.broken.note(batch["broken"])
        module.broken.stop_if_too_many()

    message = (
        r"6 of 30 .* allowed share of 0\.1: .* set data\.max_broken to 0\.2\n  picture-00\d: torn\n"
    )
    with pytest.raises(TooManyBrokenImagesError, match=message) as caught:
        train()
    assert all(f"\n  picture-00{i}: torn" in str(caught.value) for i in range(6))


def test_broken_training_images_do_not_count_against_a_small_validation_set() -> None:
    module = _module(Pictures(100, broken=range(5)), val_dataset=Pictures(10), max_broken=0.05)
    assert len(module.broken) == 5


# Position


def test_training_goes_on_from_any_batch() -> None:
    module = _module(Pictures(40), accumulate=2)
    whole = [batch for seen in (0, 8) for batch in _from(module, seen)]
    assert len(whole) == 16
    for seen in (1, 5, 8, 11):
        fresh = _module(Pictures(40), accumulate=2)
        fresh.load_state_dict({"batches_seen": seen, "broken": {"x": "torn"}})
        assert fresh.state_dict() == {"batches_seen": seen, "broken": {"x": "torn"}}
        rest = list(fresh.train_dataloader())
        assert same_batches(rest, whole[seen : seen // 8 * 8 + 8])
    assert fresh.waited > 0
    assert _module(Pictures(40)).waited == 0


def _from(module: ImageDataModule, seen: int) -> list[Batch]:
    module.batches_seen = seen
    return list(module.train_dataloader())


# Streams


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three unequal shards with two broken images among 40."""
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("streams") / "shards"
    return write_shards(folder, [20, 5, 15], broken=(1, 22))


def _stream_module(shards: str, **options: Any) -> ImageDataModule:
    return _module(**{"source": shards, "mean": [0.5], "std": [0.3], "max_broken": 0.1, **options})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_stopped(shards: str, workers: int) -> None:
    whole, states = [], []
    module = _stream_module(shards, workers=workers)
    for _ in range(2):
        for batch in module.train_dataloader():
            states.append(module.state_dict())
            whole.append(batch)
            module.broken.note(batch["broken"])
            module.batches_seen += 1
    assert len(whole) == 20
    assert len(module.broken) == 2
    for seen in (0, 3, 7, 10, 16):
        fresh = _stream_module(shards, workers=workers)
        fresh.load_state_dict(states[seen])
        assert same_batches(list(fresh.train_dataloader()), whole[seen : seen // 10 * 10 + 10])


def test_a_stream_has_at_most_one_worker_for_each_shard(
    shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crate_mae.batches.data_module.default_workers", lambda **_: 8)
    assert _stream_module(shards, workers=None).train_dataloader().num_workers == 3


def test_streams_are_limited(shards: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        module = _stream_module(shards)
    assert "a stream has no held-out share" in caplog.text
    assert (module.num_samples, module.broken.total, module.val_source) == (40, 40, None)
    with pytest.raises(ValueError, match=r"cannot be measured before training: give data\.mean"):
        _stream_module(shards, mean=None, std=None)
    with pytest.raises(ValueError, match="validation needs a source of known size"):
        _stream_module(shards, val_source=shards)
    with pytest.raises(ValueError, match="without a limit"):
        _stream_module(shards, limit=5)
    with pytest.raises(ValueError, match="40 training images are fewer than one batch of 41"):
        _stream_module(shards, batch_size=41)


def test_a_subset_of_a_cached_source_reads_from_memory() -> None:
    source = Pictures(10)
    part = subset(CachedSource(source), [7, 2])
    source.loads = 0
    assert part.load(0).name == "picture-007"
    assert source.loads == 0
