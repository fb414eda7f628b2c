"""Labelled batches: augmentation, mixing, erasing and dropped steps, fixed by the sample alone."""

import math
from typing import Any

import pytest
import torch
from data_cases import GREY, MODEL, Pictures
from torch import Tensor

from crate_mae.batches.config import LabelledDataConfig, SupervisedAugment
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.labelled import (
    LabelledBatch,
    LabelledBatches,
    LabelledMaker,
    drop_rates,
    keep_factors,
)
from crate_mae.batches.transforms import supervised_transform
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import labels_of
from crate_mae.sources.images import Sample

STILL: dict[str, Any] = {"kind": "none", "flip": False}
ALL: dict[str, Any] = {
    "kind": "resized_crop", "rand_augment": 9, "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0
}  # fmt: skip


def maker(*, drop_path: float = 0.0, **augment: Any) -> LabelledMaker:
    """A maker of batches of two classes, 8x8 grey images."""
    data = ImageDataModule(
        LabelledDataConfig(workers=0),
        model=MODEL,
        kind=LabelledBatches(
            augment=SupervisedAugment(**augment), num_classes=2, drop_path=drop_path
        ),
        batch_size=2,
        dataset=Pictures(4),
        preprocess=GREY,
    )
    data.open()
    made = data.kind.training_maker(data)
    assert isinstance(made, LabelledMaker)
    return made


def batch(made: LabelledMaker, indices: range, epoch: int = 0) -> LabelledBatch:
    """The batch of these pictures."""
    source = Pictures(100)
    return made([(epoch, index, source.load(index)) for index in indices], [])


def test_a_batch_depends_on_epoch_and_sample_alone() -> None:
    made = maker(drop_path=0.3, **ALL)
    state = torch.get_rng_state()
    whole = batch(made, range(8))
    assert torch.equal(torch.get_rng_state(), state)
    halves = [batch(made, range(4)), batch(made, range(4, 8))]
    for key, dim in (("images", 0), ("targets", 0), ("labels", 0), ("keep", 1)):
        joined = torch.cat([half[key] for half in halves], dim)  # type: ignore[literal-required]
        assert torch.equal(whole[key], joined)  # type: ignore[literal-required]
    later = batch(made, range(8), epoch=1)
    assert not torch.equal(whole["images"], later["images"])
    assert not torch.equal(whole["targets"], later["targets"])


def test_mixup_blends_neighbours_and_their_labels_alike() -> None:
    plain, mixed = batch(maker(**STILL), range(40)), batch(maker(mixup=1.0, **STILL), range(40))
    assert torch.equal(mixed["labels"], torch.arange(40) % 2)
    shares = []
    for first in range(0, 40, 2):
        a, b = plain["images"][first], plain["images"][first + 1]
        share = float(mixed["targets"][first, 0])  # the even picture is of class 0
        shares.append(share)
        for place, weight in ((first, share), (first + 1, 1 - share)):
            expected = weight * a + (1 - weight) * b
            torch.testing.assert_close(mixed["images"][place], expected, atol=1e-5, rtol=1e-5)
            assert mixed["targets"][place].tolist() == pytest.approx([weight, 1 - weight], abs=1e-6)
    assert len(set(shares)) == 20, "each pair has a share of its own"


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels() -> None:
    plain, mixed = batch(maker(**STILL), range(40)), batch(maker(cutmix=1.0, **STILL), range(40))
    pasted = 0
    for first in range(0, 40, 2):
        own, other = plain["images"][first, 0], plain["images"][first + 1, 0]
        image = mixed["images"][first, 0]
        assert bool(((image == own) | (image == other)).all())
        foreign = (image != own).nonzero()
        if len(foreign):
            low, high = foreign.min(dim=0).values, foreign.max(dim=0).values + 1
            inside = image[low[0] : high[0], low[1] : high[1]]
            assert torch.equal(inside, other[low[0] : high[0], low[1] : high[1]])
        area = 1 - len(foreign) / 64
        # A pixel that is the same in both does not show.
        assert float(mixed["targets"][first, 0]) == pytest.approx(area, abs=3 / 64)
        pasted += len(foreign) > 0
    assert pasted > 10


def test_with_both_each_pair_gets_one_or_the_other() -> None:
    plain = batch(maker(**STILL), range(80))["images"]
    both = batch(maker(mixup=1.0, cutmix=1.0, **STILL), range(80))["images"]
    pure = [
        bool(((both[i] == plain[i]) | (both[i] == plain[i + 1])).all()) for i in range(0, 80, 2)
    ]
    assert 8 < sum(pure) < 32  # half of 40, within four standard deviations


def test_erasing_puts_noise_in_one_rectangle_and_leaves_the_rest() -> None:
    plain = batch(maker(kind="pad_crop"), range(60))["images"]
    erased = batch(maker(kind="pad_crop", erasing=1.0), range(60))["images"]
    touched = 0
    for before, after in zip(plain, erased, strict=True):
        changed = (before[0] != after[0]).nonzero()
        if not len(changed):
            continue
        touched += 1
        height, width = (changed.max(dim=0).values - changed.min(dim=0).values + 1).tolist()
        assert height * width == len(changed)
        assert 1 <= height * width <= 0.34 * 64 + 8  # rounding of a side
    assert touched > 55
    half = batch(maker(kind="pad_crop", erasing=0.5), range(60))["images"]
    share = sum(not torch.equal(a, b) for a, b in zip(plain, half, strict=True)) / 60
    assert 0.25 < share < 0.75


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_rand_augment_keeps_range_and_kind(dtype: torch.dtype) -> None:
    preprocess = Preprocess(size=(12, 12), mean=(0.5,) * 3, std=(0.2,) * 3)
    change = supervised_transform(SupervisedAugment(rand_augment=9, **STILL), preprocess)
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    image = image if dtype == torch.uint8 else image / 255
    changed = [change(image) for _ in range(40)]
    assert {(tuple(i.shape), i.dtype) for i in changed} == {((3, 12, 12), dtype)}
    top = 255 if dtype == torch.uint8 else 1
    assert all(0 <= float(i.min()) <= float(i.max()) <= top for i in changed)
    assert sum(not torch.equal(i, image) for i in changed) > 30


def test_rand_augment_of_full_strength_uses_the_whole_range() -> None:
    """A rotation of 30 degrees and the mean colour outside: both are what was asked for."""
    import torchvision.transforms.v2.functional as tv
    from torchvision.transforms import InterpolationMode

    preprocess = Preprocess(size=(16, 16), mean=(0.2, 0.4, 0.6), std=(1.0,) * 3)
    change = supervised_transform(SupervisedAugment(rand_augment=10, **STILL), preprocess)
    image = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    image[:, 4:12, 4:12] = torch.arange(64, dtype=torch.uint8).view(8, 8) * 3
    fill = [51.0, 102.0, 153.0]
    wanted = [
        tv.rotate(image, angle, interpolation=InterpolationMode.BILINEAR, fill=fill)
        for angle in (30.0, -30.0)
    ]
    torch.manual_seed(0)
    found: list[Tensor] = [change(image) for _ in range(400)]  # one in 98 is a rotation and nothing
    assert any(torch.equal(changed, one) for changed in found for one in wanted)


def test_dropped_steps_have_their_rates_and_mean_one() -> None:
    assert drop_rates(0.2, 1) == (0.2,)
    assert drop_rates(0.3, 4) == pytest.approx((0.0, 0.1, 0.2, 0.3))
    rates, count = drop_rates(0.4, 3), 4000
    factors = keep_factors(rates, [(0, 1, index) for index in range(count)])
    assert factors.shape == (3, count)
    assert bool((factors[0] == 1).all())
    for rate, row in zip(rates, factors, strict=True):
        assert row[row != 0].tolist() == pytest.approx([1 / (1 - rate)] * int((row != 0).sum()))
        dropped = float((row == 0).double().mean())
        error = math.sqrt(rate * (1 - rate) / count)
        assert abs(dropped - rate) <= 4 * error
        assert abs(float(row.mean()) - 1) <= 4 * error / (1 - rate)
    layers = (factors[1:] == 0).double()
    assert abs(float(torch.corrcoef(layers)[0, 1])) < 4 / math.sqrt(count), "layers are independent"


def test_validation_batches_are_never_changed() -> None:
    data = ImageDataModule(
        LabelledDataConfig(workers=0),
        model=MODEL,
        kind=LabelledBatches(augment=SupervisedAugment(**ALL), num_classes=2, drop_path=0.5),
        batch_size=2,
        dataset=Pictures(8),
        val_dataset=Pictures(6),
        preprocess=GREY,
    )
    data.open()
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    batches: list[LabelledBatch] = list(loader)
    images = torch.cat([b["images"] for b in batches])
    expected = torch.stack([Pictures(6).pixels(i) / 255 for i in range(6)])
    torch.testing.assert_close(images, (expected - 0.25) / 0.5)
    assert torch.cat([b["targets"] for b in batches]).tolist() == [0, 1, 0, 1, 0, 1]
    assert all(b["keep"] is None for b in batches)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shots": 0}, r"data\.shots must be at least 1, not 0"),
        ({"share": 0.0}, r"data\.share must be above 0 and at most 1, not 0"),
        ({"share": 1.5}, r"data\.share"),
        ({"shots": 1, "share": 0.5}, "give one"),
        ({"test_limit": 0}, r"data\.test_limit"),
        ({"val_share": 1.0}, r"data\.val_share"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelledDataConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rand_augment": 11}, "rand_augment must be from 0 to 10, not 11"),
        ({"erasing": 1.1}, "erasing"),
        ({"mixup": -1.0}, "mixup"),
        ({"cutmix": math.inf}, "cutmix"),
        ({"padding": -1}, "padding"),
    ],
)
def test_wrong_augmentation_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupervisedAugment(**wrong)


def test_images_that_rand_augment_cannot_change_are_refused() -> None:
    five = Preprocess(size=(8, 8), channels=5, mean=(0.0,) * 5, std=(1.0,) * 5)
    with pytest.raises(ValueError, match="1 or 3 channels, not 5"):
        supervised_transform(SupervisedAugment(rand_augment=1), five)


def test_an_image_without_a_label_is_named() -> None:
    class Partly(Pictures):
        def label(self, index: int) -> int | None:  # type: ignore[override]
            return None if index == 3 else index % 2

    with pytest.raises(ValueError, match="1 of 5 images of pictures have no label, such as pic"):
        labels_of(Partly(5))
    sample = Sample(image=Pictures(1).pixels(0), label=None, name="odd one")
    with pytest.raises(ValueError, match="odd one has no label"):
        maker(**STILL)([(0, 0, sample)], [])
