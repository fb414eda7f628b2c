"""Multi-crop batches: each view fixed by (seed, epoch, sample, view), whatever surrounds it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import MODEL
from torch import Tensor

from crate_mae.batches.config import Crops, DataConfig
from crate_mae.batches.crops import CropBatches, CropMaker, view_transforms
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.models.config import Preprocess
from crate_mae.sources.images import Sample

CROPS = Crops(local_views=3, local_size=4, blur=1.0)


def module(
    workers: int = 0, position: int = 0, crops: Crops = CROPS, **changes: Any
) -> ImageDataModule:
    data = ImageDataModule(
        DataConfig(source="digits", limit=60, val_share=0.2, workers=workers),
        model=MODEL,
        kind=CropBatches(crops=crops),
        **{"batch_size": 8, "seed": 3, **changes},
    )
    data.open()
    data.batches_seen = position
    return data


def batches(**settings: Any) -> list[Any]:
    return list(module(**settings).train_dataloader())


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(a[key], b[key]) for key in ("global_crops", "local_crops", "index"))


def test_a_batch_holds_two_global_and_so_many_smaller_views() -> None:
    batch = batches()[0]
    assert batch["global_crops"].shape == (2, 8, 1, 8, 8)
    assert batch["local_crops"].shape == (3, 8, 1, 4, 4)
    views = [*batch["global_crops"], *batch["local_crops"]]
    assert all(view.dtype == torch.float32 and bool(torch.isfinite(view).all()) for view in views)
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[2], views[3])


def test_batches_do_not_depend_on_workers_or_restarts() -> None:
    first = batches()
    for others in (batches(workers=2), batches(workers=1)):
        assert len(first) == len(others)
        assert all(same(a, b) for a, b in zip(first, others, strict=True))
    resumed = batches(position=3)
    assert all(same(a, b) for a, b in zip(first[3:], resumed, strict=True))


def test_views_do_not_depend_on_how_a_step_is_split() -> None:
    whole, halves = batches()[0], batches(batch_size=4, accumulate=2)[:2]
    for key in ("global_crops", "local_crops"):
        assert torch.equal(whole[key], torch.cat([half[key] for half in halves], dim=1))


def test_more_local_views_leave_the_others_as_they_were() -> None:
    few, many = batches()[0], batches(crops=replace(CROPS, local_views=5))[0]
    assert torch.equal(few["global_crops"], many["global_crops"])
    assert torch.equal(few["local_crops"], many["local_crops"][:3])
    none = batches(crops=replace(CROPS, local_views=0))[0]
    assert torch.equal(few["global_crops"], none["global_crops"])
    assert none["local_crops"].shape == (0, 8, 1, 4, 4)


def test_another_seed_or_epoch_makes_other_views() -> None:
    data = module()
    maker = data.kind.training_maker(data)
    sample = data.train_source.read(0)  # type: ignore[union-attr]
    assert isinstance(sample, Sample)
    before = torch.get_rng_state()
    made = [maker([(epoch, 0, sample)], [])["global_crops"] for epoch in (0, 1, 0)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])
    other = CropMaker(crops=CROPS, preprocess=data.preprocess, seed=4)
    assert not torch.equal(other([(0, 0, sample)], [])["global_crops"], made[0])


def test_validation_views_never_change() -> None:
    images: Any = [torch.full((1, 8, 8), index / 60) for index in range(60)]
    prepared = Preprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.3,))

    def held_out(seed: int) -> list[Any]:
        data = module(seed=seed, batch_size=5, dataset=images, preprocess=prepared)
        loader = data.val_dataloader()
        assert not isinstance(loader, list)
        return list(loader)

    first, other = held_out(3), held_out(4)
    assert sum(len(batch["names"]) for batch in first) == 12
    assert all(same(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_views_of_any_image_keep_range_and_channels(channels: int, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(channels, 13, 9, generator=generator)
    image = (255 * image).to(torch.uint8) if kind == torch.uint8 else image
    crops = replace(CROPS, solarise=1.0, blur=2.0)
    if channels == 7:
        crops = replace(crops, jitter=0.0, grey=0.0)
    for view, transform in enumerate(view_transforms(crops, (8, 6))):
        torch.manual_seed(view)
        made: Tensor = transform(image)
        assert made.shape == (channels, *((8, 6) if view < 2 else (4, 4)))
        assert made.dtype == kind
        assert float(made.min()) >= 0
        assert float(made.max()) <= (255 if kind == torch.uint8 else 1)


def test_without_changes_of_colour_a_whole_crop_is_the_image() -> None:
    plain = Crops(
        local_views=1, local_size=4, global_scale=(1.0, 1.0), flip=False, jitter=0, grey=0,
        blur=0, solarise=0,
    )  # fmt: skip
    image = torch.rand(1, 8, 8)
    for transform in view_transforms(plain, (8, 8))[:2]:
        # Of a square image, crops of its whole area are the image, or none fits and all is taken.
        torch.testing.assert_close(transform(image), image)


def test_local_crops_show_smaller_parts() -> None:
    """Of an image whose pixels tell their place, parts as large as the scale says."""
    rows = torch.linspace(0, 1, 64).expand(64, 64)
    image = torch.stack([rows, rows.T, rows])
    crops = Crops(
        local_views=1, local_size=16, local_scale=(0.05, 0.4), flip=False, jitter=0, grey=0, blur=0,
        solarise=0,
    )  # fmt: skip
    spans = []
    for view in (0, 2):
        torch.manual_seed(0)
        made = [view_transforms(crops, (32, 32))[view](image) for _ in range(60)]
        spans.append([float(np.prod([part.max() - part.min() for part in m[:2]])) for m in made])
    assert min(spans[0]) > 0.3
    assert max(spans[1]) < 0.45
    assert min(spans[1]) < 0.12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local_size": 3}, r"crops.local_size: image 3x3 is not a multiple of patch 2x2"),
        ({"local_size": 10}, r"crops.local_size 10x10 is above model.image_size 8x8"),
    ],
)
def test_crops_that_do_not_suit_the_model_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CropBatches(crops=replace(CROPS, **changes)).check(MODEL)


def test_colour_of_many_bands_is_not_changed() -> None:
    with pytest.raises(ValueError, match=r"1 or 3 channels, not 7: set both to 0"):
        CropBatches(crops=CROPS).check(replace(MODEL, channels=7))
    CropBatches(crops=replace(CROPS, jitter=0.0, grey=0.0)).check(replace(MODEL, channels=7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local_views": -1}, "crops.local_views must be from 0 to 64, not -1"),
        ({"global_scale": (0.5, 0.4)}, "crops.global_scale must be two shares"),
        ({"local_scale": (0.0, 0.4)}, "crops.local_scale must be two shares"),
        ({"local_scale": (0.1, 1.1)}, "crops.local_scale must be two shares"),
        ({"jitter": -0.1}, "crops.jitter must be from 0 to 2"),
        ({"grey": 1.5}, "crops.grey must be from 0 to 1"),
        ({"blur": float("nan")}, "crops.blur must be from 0 to 16"),
        ({"solarise": 2.0}, "crops.solarise must be from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Crops(**changes)


def test_an_image_whose_channels_do_not_fit_is_named() -> None:
    maker = CropMaker(
        crops=CROPS,
        preprocess=Preprocess(size=(8, 8), channels=3, mean=(0.0,) * 3, std=(1.0,) * 3),
        seed=0,
    )
    sample = Sample(image=torch.zeros(7, 8, 8), label=None, name="bands")
    with pytest.raises(ValueError, match="bands: "):
        maker([(0, 0, sample)], [])


def test_unreadable_images_are_replaced_and_named(tmp_path: Path) -> None:
    from PIL import Image

    for index in range(10):
        Image.new("L", (8, 8), 20 * index).save(tmp_path / f"{index}.png")
    (tmp_path / "4.png").write_bytes(b"no image")
    data = ImageDataModule(
        DataConfig(source=f"imagefolder:{tmp_path}", val_share=0, workers=0, cache_gib=0,
                   max_broken=0.5),
        model=MODEL, kind=CropBatches(crops=CROPS), batch_size=10, seed=0,
    )  # fmt: skip
    data.open()
    (batch,) = list(data.train_dataloader())
    assert [name for name, _ in batch["broken"]] == ["4.png"]
    assert batch["global_crops"].shape[1] == 10
