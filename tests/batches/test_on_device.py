"""Images kept on a device: numbers, crops, masks, mixing, against definitions and torchvision."""

import hashlib
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import GREY, MODEL, Pictures, bicubic, write_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from crate_mae.batches.assembly import SourceBatches
from crate_mae.batches.config import (
    Augment,
    DataConfig,
    LabelledDataConfig,
    Masking,
    SupervisedAugment,
)
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.labelled import LabelledBatches
from crate_mae.batches.masked import MaskedBatches
from crate_mae.batches.on_device import FixedDeviceBatches, NotKeptError, check_room, masks_of
from crate_mae.batches.on_device_transforms import TRIES, Mixing, _crops, augmented
from crate_mae.batches.transforms import normalise
from crate_mae.common.precision import float32_products
from crate_mae.common.randomness import AUGMENT, MASK, numbers, uniform
from crate_mae.models.masks import num_kept

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _bytes(count: int, size: tuple[int, int], seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, *size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


# -- numbers by key


def _splitmix(index: int, count: int, *key: int) -> list[int]:
    """The definition of SplitMix64 in Python's unbounded whole numbers."""
    whole = 2**64

    def scrambled(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % whole
        x = (x ^ x >> 27) * 0x94D049BB133111EB % whole
        return x ^ x >> 31

    packed = struct.pack(f"<{len(key)}q", *key)
    start = int.from_bytes(hashlib.blake2b(packed, digest_size=4).digest(), "little")
    gamma = 0x9E3779B97F4A7C15
    first = scrambled((index * gamma + start) % whole)
    found = [scrambled((first + gamma * j) % whole) for j in range(1, count + 1)]
    return [x - whole if x >> 63 else x for x in found]


@pytest.mark.parametrize("device", DEVICES)
@given(
    index=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5),
    key=st.lists(st.integers(0, 2**40), min_size=1, max_size=3),
)
def test_numbers_are_those_of_the_definition(device: str, index: list[int], key: list[int]) -> None:
    found = numbers(torch.tensor(index, device=device), 4, *key).cpu().tolist()
    assert found == [_splitmix(i, 4, *key) for i in index]


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    drawn = uniform(torch.arange(20_000), 6, 1, 2).double().numpy()
    other = uniform(torch.arange(20_000), 6, 1, 3).double().numpy()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in drawn.T])
    chi_squared = ((counts - 1000) ** 2 / 1000).sum(axis=1)
    assert (chi_squared < 43.8).all()  # 19 degrees of freedom, p = 0.001
    table = np.corrcoef(np.concatenate([drawn, other], axis=1).T) - np.eye(12)
    assert np.abs(table).max() < 5 / math.sqrt(20_000)


# -- masks


@pytest.mark.parametrize("device", DEVICES)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(2, 9),
    ratio=st.floats(0.1, 0.9),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50)
def test_random_masks_keep_as_many_as_the_rule(
    device: str, rows: int, columns: int, ratio: float, seed: int
) -> None:
    index = torch.arange(5, device=device)
    try:
        kept = num_kept(rows * columns, ratio)
    except ValueError:
        with pytest.raises(ValueError, match="mask ratio"):
            masks_of(Masking(ratio=ratio), (rows, columns), index, seed)
        return
    mask = masks_of(Masking(ratio=ratio), (rows, columns), index, seed)
    assert mask.shape == (5, rows * columns)
    assert mask.dtype == torch.bool
    assert ((~mask).sum(dim=1) == kept).all()


def test_every_patch_is_kept_equally_often_and_pairs_too() -> None:
    visible = ~masks_of(Masking(), (4, 4), torch.arange(40_000), 0, 0)
    share = visible.double().mean(dim=0)
    assert (share - 4 / 16).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 40_000)
    pairs = visible.double().T @ visible.double() / 40_000
    expected = 4 * 3 / (16 * 15)
    apart = (pairs - expected)[~torch.eye(16, dtype=torch.bool)].abs().max()
    assert apart < 5 * math.sqrt(expected / 40_000)


def test_ratios_of_a_range_are_drawn_evenly() -> None:
    masking = Masking(ratio=0.5, ratio_max=0.9)
    kept = (~masks_of(masking, (10, 10), torch.arange(20_000), 0, 0)).sum(dim=1)
    assert kept.min() == 10
    assert kept.max() == 49  # a ratio of exactly 0.5 is one of 2^24
    assert abs(float(kept.double().mean()) - 29.5) < 0.5


@pytest.mark.parametrize("kind", ["block", "grid"])
def test_other_kinds_are_the_masks_of_loader_processes(kind: Any) -> None:
    masking = Masking(kind=kind)
    found = masks_of(masking, (4, 4), torch.tensor([3, 8]), 5, 6)
    assert torch.equal(found, torch.stack([masking.draw((4, 4), 5, 6, i) for i in (3, 8)]))


# -- augmentation


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stored", [(32, 32), (40, 24), (9, 64)])
def test_resized_crops_are_those_of_torchvision(stored: tuple[int, int], device: str) -> None:
    images, index = _bytes(64, stored), torch.arange(64)
    augment = Augment(min_scale=0.2, flip=False)
    found = augmented(images.to(device), index.to(device), augment, (24, 16), 7, 8).cpu()
    places = _crops(uniform(index, 1 + 4 * TRIES, AUGMENT, 7, 8)[:, 1:], stored, 0.2)
    for image, made, *place in zip(images, found, *places, strict=True):
        cut = [int(value) for value in place]
        assert cut[0] >= 0
        assert cut[0] + cut[2] <= stored[0]
        assert cut[1] + cut[3] <= stored[1]
        expected = tv.resized_crop(
            image, *cut, [24, 16], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        assert (made.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4)])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("stored", [(1, 1), (2, 2), (1, 3), (5, 2)])
def test_crops_of_small_images_are_the_bicubic_kernel(
    stored: tuple[int, int], channels: int, size: tuple[int, int]
) -> None:
    images, index = _bytes(16, stored, channels=channels), torch.arange(16)
    found = augmented(images, index, Augment(flip=False), size, 7, 8)
    places = _crops(uniform(index, 1 + 4 * TRIES, AUGMENT, 7, 8)[:, 1:], stored, 0.2)
    for image, made, *place in zip(images, found, *places, strict=True):
        top, left, height, width = (int(value) for value in place)
        truth = bicubic(image[:, top : top + height, left : left + width], size)
        torch.testing.assert_close(made.double(), truth, atol=1, rtol=0)


def test_float_images_are_cropped_as_torchvision_does_and_keep_their_range() -> None:
    images, index = _bytes(16, (20, 20), channels=5).float() / 255, torch.arange(16)
    found = augmented(images, index, Augment(flip=False), (12, 12), 1, 1)
    places = _crops(uniform(index, 1 + 4 * TRIES, AUGMENT, 1, 1)[:, 1:], (20, 20), 0.2)
    for image, made, *place in zip(images, found, *places, strict=True):
        expected = tv.resized_crop(
            image,
            *(int(value) for value in place),
            [12, 12],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        ).clamp(float(image.min()), float(image.max()))
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_crops_have_the_published_areas_and_shapes() -> None:
    drawn = uniform(torch.arange(20_000), 4 * TRIES, 1)
    _, _, height, width = _crops(drawn, (512, 512), 0.2)
    area, aspect = height * width / 512**2, width / height
    assert float(area.min()) > 0.199
    assert float(area.max()) <= 1
    assert float(aspect.min()) > 0.745
    assert float(aspect.max()) < 1.345
    assert abs(float(aspect.log().mean())) < 0.01
    narrow = _crops(drawn, (4, 4000), 0.9)  # none fits: the largest one in the centre
    assert (narrow[2] == 4).all()
    assert (narrow[3] == 5).all()
    assert (narrow[1] == 1997).all()


@pytest.mark.parametrize("device", DEVICES)
@given(
    height=st.integers(1, 12), width=st.integers(1, 12), padding=st.integers(0, 14),
    flip=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60)
def test_padded_crops_are_windows_of_the_reflected_image(
    device: str, height: int, width: int, padding: int, flip: bool, seed: int
) -> None:
    images, index = _bytes(3, (height, width), seed), torch.arange(3)
    augment = Augment(kind="pad_crop", padding=padding, flip=flip)
    found = augmented(images.to(device), index.to(device), augment, (height, width), seed, 0).cpu()
    up = left = min(padding, height - 1, width - 1)
    for image, made in zip(images.numpy(), found.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (up, up), (left, left)), mode="reflect")
        windows = [
            padded[:, i : i + height, j : j + width][..., :: -1 if turned else 1]
            for i in range(2 * up + 1)
            for j in range(2 * left + 1)
            for turned in ((False, True) if flip else (False,))
        ]
        assert any((made == window).all() for window in windows)


def test_all_offsets_and_both_directions_are_drawn() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(4000, -1, -1, -1)
    found = augmented(image, torch.arange(4000), Augment(kind="pad_crop", padding=2), (8, 8), 0, 0)
    kinds, counts = np.unique(found.flatten(1).numpy(), axis=0, return_counts=True)
    assert len(kinds) == 50  # 5 x 5 offsets, mirrored or not
    assert counts.min() > 40
    assert counts.max() < 130


def test_a_sample_is_the_same_in_any_batch_and_other_in_another_epoch() -> None:
    images, index = _bytes(6, (16, 16)), torch.arange(6)
    for kind in ("pad_crop", "resized_crop"):
        augment = Augment(kind=kind)
        whole = augmented(images, index, augment, (16, 16), 0, 3)
        part = augmented(images[[4, 1]], index[[4, 1]], augment, (16, 16), 0, 3)
        assert torch.equal(whole[[4, 1]], part)
        assert not torch.equal(whole, augmented(images, index, augment, (16, 16), 0, 4))
    untouched = augmented(images, index, Augment(kind="none", flip=False), (16, 16), 0, 3)
    assert torch.equal(untouched, images)


# -- mixing


def test_mixed_pairs_are_weighted_sums_with_labels_to_match() -> None:
    images, labels = torch.rand(7, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    mix = Mixing(mixup=0.8, cutmix=0.0, num_classes=3)
    mixed, targets = mix(images, labels, list(range(7)), 0, 0)
    for first in (0, 2, 4):
        pair, own = images[first : first + 2].double(), targets[first : first + 2].double()
        at, partner = labels[first], labels[first + 1]
        share = float(own[0, at])
        assert at == partner or float(own[0, partner]) == pytest.approx(1 - share, abs=1e-6)
        expected = share * pair + (1 - share) * pair.flip(0)
        torch.testing.assert_close(mixed[first : first + 2].double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(mixed[6], images[6])
    assert targets[6].tolist() == [0, 0, 1]
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(7))


def test_pasted_rectangles_come_from_the_partner_and_labels_tell_their_area() -> None:
    count, size = 400, 10
    images = (torch.arange(count) % 2).float().view(-1, 1, 1, 1).expand(-1, 1, size, size)
    labels = torch.arange(count) % 2
    mixed, targets = Mixing(mixup=0.0, cutmix=1.0, num_classes=2)(
        images, labels, list(range(count)), 0, 0
    )
    assert set(np.unique(mixed.numpy()).tolist()) == {0.0, 1.0}
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets[:, 1], atol=1e-6, rtol=0)
    for image in mixed[::2, 0]:
        rows, columns = image.amax(dim=1), image.amax(dim=0)
        assert torch.equal(image, rows[:, None] * columns)  # a rectangle
    assert 0.05 < float(targets[::2, 1].mean()) < 0.5


def test_both_kinds_of_mixing_take_turns() -> None:
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]).repeat(300, 1, 1, 1)
    mix = Mixing(mixup=1.0, cutmix=1.0, num_classes=2)
    mixed, _ = mix(images, torch.tensor([0, 1]).repeat(300), list(range(600)), 0, 0)
    flat = mixed[::2].flatten(1)
    blended = ((flat > 0.001) & (flat < 0.999)).any(dim=1).double().mean()
    assert 0.4 < float(blended) < 0.6


# -- the data module


def _module(source: Any, kind: Any = None, **config: Any) -> ImageDataModule:
    settings = DataConfig(**{"on_device": True, "val_share": 0.25, **config})
    module = ImageDataModule(
        settings, model=MODEL, kind=kind or MaskedBatches(), batch_size=4, dataset=source
    )
    module.open()
    return module


def test_epochs_have_the_order_of_loader_processes_and_validation_is_the_same() -> None:
    augment = Augment(kind="none", flip=False)
    here = _module(Pictures(40), augment=augment)
    there = _module(Pictures(40), augment=augment, on_device=False, workers=0)
    for _ in range(2):
        for mine, theirs in zip(here.train_dataloader(), there.train_dataloader(), strict=True):
            assert torch.equal(mine["index"], theirs["index"])
            assert torch.equal(mine["images"], theirs["images"])
            assert mine["names"] == theirs["names"]
            assert mine["mask"].shape == theirs["mask"].shape
            here.batches_seen += 1
            there.batches_seen += 1
        for _ in range(2):
            pairs = zip(here.val_dataloader(), there.val_dataloader(), strict=True)
            for mine, theirs in pairs:
                assert torch.equal(mine["images"], theirs["images"])
                assert torch.equal(mine["mask"], theirs["mask"])


def test_batches_hold_the_sample_of_their_key() -> None:
    module = _module(Pictures(40), augment=Augment(kind="pad_crop", padding=2))
    batch = next(iter(module.train_dataloader()))
    source = module.train_source
    stored = torch.stack([source.load(int(i)).image for i in batch["index"]])  # type: ignore[union-attr]
    changed = augmented(stored, batch["index"], module.config.augment, (8, 8), 0, 0)
    assert torch.equal(batch["images"], normalise(changed, module.preprocess))
    ranks = numbers(batch["index"], 17, MASK, 0, 0)[:, 1:].argsort(dim=1)
    for mask, order in zip(batch["mask"], ranks, strict=True):
        assert not mask[order[:4]].any()
        assert mask[order[4:]].all()


def test_labelled_batches_have_targets_and_dropped_steps() -> None:
    kind = LabelledBatches(augment=SupervisedAugment(mixup=0.5), num_classes=2, drop_path=0.5)
    settings = LabelledDataConfig(on_device=True, augment=kind.augment)
    module = ImageDataModule(
        settings,
        model=replace(MODEL, depth=3),
        kind=kind,
        batch_size=8,
        dataset=Pictures(64),
        preprocess=GREY,
    )
    module.open()
    batches = list(module.train_dataloader())
    keep = torch.cat([batch["keep"] for batch in batches], dim=1)
    assert set(keep[0].tolist()) == {1.0}
    assert set(keep[2].tolist()) == {0.0, 2.0}
    for batch in batches:
        assert batch["labels"].tolist() == [int(i) % 2 for i in batch["index"]]
        torch.testing.assert_close(batch["targets"].sum(dim=1), torch.ones(8))


def test_what_cannot_be_kept_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"more than data\.cache_gib 0"):
        _module(Pictures(40), cache_gib=0.0)
    with pytest.raises(ValueError, match=r"leave data\.workers 2 out"):
        DataConfig(on_device=True, workers=2)
    with pytest.raises(ValueError, match=r"augment\.erasing to 0"):
        LabelledDataConfig(on_device=True, augment=SupervisedAugment(erasing=0.1))
    mixed = [Pictures(4), Pictures(4, size=(9, 9))]

    class Both(Pictures):
        def pixels(self, index: int) -> Tensor:
            return mixed[index % 2].pixels(index)

    with pytest.raises(ValueError, match=r"data\.augment\.kind=pad_crop"):
        _module(Both(40))
    fitted = _module(Both(40), augment=Augment(kind="pad_crop")).train_dataloader()
    assert next(iter(fitted))["images"].shape == (4, 1, 8, 8)


def test_devices_without_room_and_of_other_kinds_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = _bytes(100, (32, 32))
    assert check_room(images, torch.device("cpu")) == images.nbytes
    with pytest.raises(ValueError, match="not for mps"):
        check_room(images, torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * images.nbytes, 0))
    assert check_room(images, torch.device("cuda")) == images.nbytes // 5
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * images.nbytes - 2, 0))
    with pytest.raises(ValueError, match=r"GiB free, half of it for them"):
        check_room(images, torch.device("cuda"))


def test_types_that_differ_are_named_and_streams_refused(tmp_path: Path) -> None:
    class Mixed(Pictures):
        def pixels(self, index: int) -> Tensor:
            made = super().pixels(index)
            return made.float() / 255 if index % 2 else made

    with pytest.raises(NotKeptError, match=r"one type: .* torch\.\w+, .* torch\.\w+; leave it out"):
        _module(Mixed(40), augment=Augment(kind="pad_crop"))
    shards = write_shards(tmp_path / "shards", [8])
    stream = ImageDataModule(
        DataConfig(source=shards, on_device=True, val_share=0.0, mean=[0.5], std=[0.5]),
        model=MODEL,
        kind=MaskedBatches(),
        batch_size=4,
    )
    with pytest.raises(ValueError, match="is a stream, which cannot be kept"):
        stream.open()


def test_validation_batches_stay_as_far_as_there_is_room() -> None:
    class Counted(SourceBatches):
        calls = 0

        def __getitems__(self, keys: list[tuple[int, int]]) -> Any:
            Counted.calls += 1
            return super().__getitems__(keys)

    module = _module(Pictures(40))
    assert module.val_source is not None
    source = Counted(module.val_source, module.kind.validation_maker(module))
    keys = [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4), (0, 5)]]
    one = sum(v.nbytes for v in source.__getitems__(keys[0]).values() if isinstance(v, Tensor))
    Counted.calls = 0
    fixed = FixedDeviceBatches(source, torch.device("cpu"), room=2 * one)
    for _ in range(3):
        for each in keys:
            assert torch.equal(
                fixed.__getitems__(each)["images"], source.__getitems__(each)["images"]
            )
    assert Counted.calls == 9 + 3 + 2  # the third batch is made anew each time


@pytest.mark.parametrize("tf32", [True, False])
def test_images_do_not_depend_on_how_products_round(tf32: bool) -> None:
    images, index = _bytes(8, (32, 32)), torch.arange(8)
    expected = augmented(images, index, Augment(), (32, 32), 0, 0)
    seen: list[str] = []
    product = Tensor.__matmul__

    def noted(a: Tensor, b: Tensor) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return product(a, b)

    with float32_products(tf32=tf32), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "__matmul__", noted)
        assert torch.equal(augmented(images, index, Augment(), (32, 32), 0, 0), expected)
    assert seen == ["highest", "highest"]
