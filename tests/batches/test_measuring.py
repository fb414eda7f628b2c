"""Mean, deviation and range: measured as NumPy does, and held against the images when given."""

from typing import Any

import numpy as np
import pytest
import torch

from crate_mae.batches.config import DataConfig, SupervisedAugment
from crate_mae.batches.measuring import chosen_preprocess
from crate_mae.batches.transforms import denormalise, displayed, supervised_transform
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.sources.arrays import ArraySource

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 8, 9, 3), np.uint8)


def _chosen(array: np.ndarray, **data: Any) -> Preprocess:
    channels = array.shape[-1]
    model = ModelConfig(image_size=8, patch_size=4, channels=channels)
    source = ArraySource("npy:x", array, prefix="x")
    given = data.pop("given", None)
    return chosen_preprocess(source, DataConfig(**data), model, (8, 8), 0, given=given)


def test_means_on_the_scale_of_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"count from 0 to 1: divided by 255, mean \[0\.485"):
        _chosen(BYTES, mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])
    with pytest.raises(ValueError, match="do not belong to 8-bit images"):
        _chosen(BYTES, mean=[-0.2] * 3, std=[0.2] * 3)
    own = _chosen(BYTES, mean=[0.5] * 3, std=[0.25] * 3)
    assert (own.low, own.high) == ((0.0,) * 3, (1.0,) * 3)


def test_given_values_far_from_the_images_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    floats = BYTES.astype(np.float32)
    _chosen(floats, mean=[127.0] * 3, std=[70.0] * 3)
    assert not caplog.records
    _chosen(floats, mean=[0.5] * 3, std=[0.25] * 3)
    assert "are far from those of the images (mean [12" in caplog.text
    caplog.clear()
    _chosen(floats, given=Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.2,) * 3))
    assert "the weights'" in caplog.text


@pytest.mark.parametrize("factor", [1e-12, 1.0, 255.0, 1e6])
def test_measured_values_have_the_scale_of_the_data(factor: float) -> None:
    floats = (RNG.random((6, 8, 9, 3)) * factor).astype(np.float32)
    found = _chosen(floats)
    np.testing.assert_allclose(found.mean, floats.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(found.std, floats.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-9)
    assert found.low == pytest.approx([float(floats.min())] * 3)
    assert found.high == pytest.approx([float(floats.max())] * 3)


def test_bands_have_ranges_of_their_own_and_a_single_value_is_refused() -> None:
    bands = RNG.random((6, 8, 9, 5)).astype(np.float32) * np.array(
        [1, 10, 300, 1e-4, 1], np.float32
    )
    assert _chosen(bands).high == pytest.approx(bands.max(axis=(0, 1, 2)).tolist())
    bands[..., 3] = 1e-4
    with pytest.raises(ValueError, match="channel 3 of npy:x has one value everywhere"):
        _chosen(bands)


def test_random_changes_keep_the_scale_of_floats() -> None:
    """torchvision's operations take floats from 0 to 1; others must not be cut to that."""
    augment = SupervisedAugment(kind="none", flip=False, rand_augment=5)
    unit = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for factor in (1.0, 1000.0):
        preprocess = Preprocess(
            size=(8, 8), mean=(0.5 * factor,) * 3, std=(0.2 * factor,) * 3,
            low=(0.0,) * 3, high=(factor,) * 3,
        )  # fmt: skip
        transform = supervised_transform(augment, preprocess)
        torch.manual_seed(3)
        outputs.append([transform(factor * unit) / factor for _ in range(10)])
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_what_is_drawn_begins_at_the_lowest_value() -> None:
    preprocess = Preprocess(
        size=(2, 2), channels=1, mean=(50.0,), std=(10.0,), low=(0.0,), high=(200.0,)
    )
    values = torch.tensor([[[0.0, 50.0], [100.0, 200.0]]])
    inputs = (values - 50) / 10
    torch.testing.assert_close(denormalise(inputs, preprocess), values)
    torch.testing.assert_close(displayed(inputs, preprocess), values / 200)
    torch.testing.assert_close(displayed(inputs * 2, preprocess).amax(), torch.tensor(1.0))
