"""Fitting, random changes and normalisation, against numpy and Pillow."""

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import bicubic
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from crate_mae.batches.config import Augment, AugmentKind
from crate_mae.batches.transforms import denormalise, fit, normalise, prepare, training_transform
from crate_mae.models.config import Preprocess


def _image(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (channels, height, width), np.uint8)
    return torch.from_numpy(values)


def _facts(channels: int, size: tuple[int, int] = (6, 5)) -> Preprocess:
    mean = tuple(0.1 * (c + 1) for c in range(channels))
    return Preprocess(size=size, channels=channels, mean=mean, std=tuple(m + 0.2 for m in mean))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_normalised_values_and_the_way_back(channels: int, as_bytes: bool) -> None:
    preprocess = _facts(channels)
    images = torch.stack([_image(6, 5, channels, seed) for seed in range(4)])
    scaled = images.numpy() / 255
    given = images if as_bytes else torch.from_numpy(scaled.astype(np.float32))
    before = given.clone()
    result = normalise(given, preprocess)
    mean = np.array(preprocess.mean)[:, None, None]
    std = np.array(preprocess.std)[:, None, None]
    assert result.dtype == torch.float32
    assert torch.equal(given, before)
    np.testing.assert_allclose(result.numpy(), (scaled - mean) / std, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(denormalise(result, preprocess).numpy(), scaled, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "size", "scaled", "corner"),
    [
        (20, 41, (8, 12), (8, 16), (0, 2)),  # reduced, wider than wanted
        (41, 20, (12, 8), (16, 8), (2, 0)),  # reduced, taller than wanted
        (6, 6, (12, 24), (24, 24), (6, 0)),  # enlarged
        (16, 16, (8, 8), (8, 8), (0, 0)),
    ],
)
def test_fit_is_pillows_bicubic_and_a_centre_crop(
    height: int,
    width: int,
    size: tuple[int, int],
    scaled: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    image = _image(height, width)
    page = Image.fromarray(image.permute(1, 2, 0).numpy())
    page = page.resize(scaled[::-1], Image.Resampling.BICUBIC)
    page = page.crop((corner[1], corner[0], corner[1] + size[1], corner[0] + size[0]))
    truth = np.asarray(page).transpose(2, 0, 1).astype(int)
    fitted = fit(image, size)
    assert fitted.dtype == torch.uint8
    assert np.abs(fitted.numpy().astype(int) - truth).max() <= 1


def test_fit_leaves_an_image_of_the_right_size_alone() -> None:
    image = _image(6, 5)
    assert fit(image, (6, 5)) is image


@settings(max_examples=60)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    channels=st.integers(1, 5),
    as_bytes=st.booleans(),
)
def test_fit_of_any_image(
    source: tuple[int, int], size: tuple[int, int], channels: int, as_bytes: bool
) -> None:
    image = _image(*source, channels)
    image = image if as_bytes else image.float() / 255
    fitted = fit(image, size)
    assert fitted.shape == (channels, *size)
    assert fitted.dtype == image.dtype
    assert fitted.min() >= image.min() or as_bytes
    assert fitted.max() <= image.max() or as_bytes
    assert torch.equal(fitted, fit(image, size))


SMALL = (1, 2, 3, 5, 8)


def _layouts(image: Tensor) -> Iterator[Tensor]:
    """The same image (C, H, W) as it can lie in memory."""
    channels, height, width = image.shape
    yield image.contiguous()
    yield image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as a decoder gives it
    room = torch.zeros(channels + 1, height + 2, width + 2, dtype=image.dtype)
    inside = room[:channels, 1:-1, 1:-1]  # a window on a larger image
    inside.copy_(image)
    yield inside


def _assert_resized(found: Tensor, truth: Tensor, image: Tensor) -> None:
    """Bytes may be two levels off, as torch rounds its weights too; floats stay in their range."""
    assert found.shape == truth.shape
    assert found.dtype == image.dtype
    if image.dtype != torch.uint8:
        truth = truth.clamp(image.double().min(), image.double().max())
    atol = {torch.uint8: 2.0, torch.float32: 1e-5, torch.float64: 1e-12}[image.dtype]
    torch.testing.assert_close(found.double(), truth, atol=atol, rtol=0)


def test_a_colour_image_of_four_pixels_fits_into_one() -> None:
    image = _image(2, 2)
    _assert_resized(fit(image, (1, 1)), bicubic(image, (1, 1)), image)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_fit_of_small_images_is_the_bicubic_kernel(channels: int, dtype: torch.dtype) -> None:
    for (height, width), size in itertools.product(
        itertools.product(SMALL, SMALL), [(1, 1), (2, 1), (7, 1), (1, 2), (1, 7), (3, 3)]
    ):
        image = _image(height, width, channels)
        image = image if dtype == torch.uint8 else image.to(dtype) / 255
        scale = max(size[0] / height, size[1] / width)
        scaled = max(size[0], round(height * scale)), max(size[1], round(width * scale))
        # As torchvision does it: the middle, to the nearest even number of pixels cut off before.
        top, left = (round((s - t) / 2) for s, t in zip(scaled, size, strict=True))
        truth = bicubic(image, scaled)[:, top : top + size[0], left : left + size[1]]
        for laid_out in _layouts(image):
            _assert_resized(fit(laid_out, size), truth, image)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_random_crops_of_small_images_are_the_bicubic_kernel(
    channels: int, dtype: torch.dtype
) -> None:
    for (height, width), size in itertools.product(
        itertools.product(SMALL, SMALL), [(1, 1), (4, 1), (1, 4), (3, 3)]
    ):
        image = _image(height, width, channels)
        image = image if dtype == torch.uint8 else image.to(dtype) / 255
        torch.manual_seed(height * width)
        drawn = v2.RandomResizedCrop(size, scale=(0.2, 1.0)).make_params([image])
        top, left = drawn["top"], drawn["left"]
        part = image[:, top : top + drawn["height"], left : left + drawn["width"]]
        transform = training_transform(Augment(min_scale=0.2, flip=False), size)
        for laid_out in _layouts(image):
            torch.manual_seed(height * width)
            changed = transform(laid_out)
            _assert_resized(changed, bicubic(part, size), image)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_random_crops_are_those_of_torchvision(as_bytes: bool) -> None:
    image = _image(31, 23) if as_bytes else _image(31, 23).float() / 255
    ours = training_transform(Augment(min_scale=0.3, flip=False), (9, 8))
    theirs = v2.RandomResizedCrop(
        (9, 8), scale=(0.3, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    for seed in range(20):
        torch.manual_seed(seed)
        changed, following = ours(image), torch.rand(1)
        torch.manual_seed(seed)
        expected = theirs(image)
        if not as_bytes:
            expected = expected.clamp(float(image.min()), float(image.max()))
        assert torch.equal(changed, expected)
        assert torch.equal(following, torch.rand(1))


def test_fit_keeps_the_aspect_ratio() -> None:
    image = torch.zeros(1, 40, 80)
    image[:, 10:30, 30:50] = 1  # a square
    fitted = fit(image, (20, 20))[0] > 0.5
    rows, columns = fitted.any(dim=1).sum(), fitted.any(dim=0).sum()
    assert (int(rows), int(columns)) == (10, 10)


@pytest.mark.parametrize("kind", ["resized_crop", "pad_crop", "none"])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_random_changes_keep_type_channels_and_range(
    kind: AugmentKind, channels: int, as_bytes: bool
) -> None:
    transform = pickle.loads(pickle.dumps(training_transform(Augment(kind=kind), (8, 12))))
    # Hard edges make bicubic overshoot.
    image = (_image(15, 11, channels) > 127).to(torch.uint8)
    image = image * 255 if as_bytes else image.float()
    torch.manual_seed(0)
    for _ in range(10):
        changed = transform(image)
        assert changed.shape == (channels, 8, 12)
        assert changed.dtype == image.dtype
        assert changed.min() >= image.min()
        assert changed.max() <= image.max()


def test_pad_crop_takes_windows_of_the_reflected_image() -> None:
    image = _image(8, 6)
    transform = training_transform(Augment(kind="pad_crop", padding=2, flip=False), (8, 6))
    padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    windows = {
        padded[:, top : top + 8, left : left + 6].tobytes() for top in range(5) for left in range(5)
    }
    torch.manual_seed(0)
    drawn = {transform(image).numpy().tobytes() for _ in range(300)}
    assert drawn == windows


def test_padding_larger_than_the_image_is_cut() -> None:
    transform = training_transform(Augment(kind="pad_crop", padding=9), (4, 3))
    assert transform(_image(4, 3)).shape == (3, 4, 3)


def test_none_is_the_fixed_fit_and_half_are_mirrored() -> None:
    image = _image(16, 16)
    plain = training_transform(Augment(kind="none", flip=False), (8, 8))
    assert torch.equal(plain(image), fit(image, (8, 8)))
    mirrored = training_transform(Augment(kind="none"), (8, 8))
    torch.manual_seed(0)
    drawn = [mirrored(image) for _ in range(200)]
    flips = sum(torch.equal(d, fit(image, (8, 8)).flip(-1)) for d in drawn)
    assert flips + sum(torch.equal(d, fit(image, (8, 8))) for d in drawn) == 200
    assert 70 < flips < 130


def test_the_smallest_scale_of_a_resized_crop_is_kept() -> None:
    ramp = torch.arange(64.0).expand(1, 64, 64) / 63
    whole = training_transform(Augment(min_scale=1.0, flip=False), (8, 8))
    small = training_transform(Augment(min_scale=0.05, flip=False), (8, 8))
    torch.manual_seed(0)
    spans = [[float(t(ramp).max() - t(ramp).min()) for _ in range(40)] for t in (whole, small)]
    assert min(spans[0]) > 0.7
    assert min(spans[1]) < 0.5


def test_prepare_takes_images_of_any_size_and_type() -> None:
    preprocess = _facts(3, size=(8, 8))
    light = torch.full((3, 10, 20), 255, dtype=torch.uint8)
    batch = prepare([light, light.float() / 255, _image(8, 8)], preprocess)
    assert batch.shape == (3, 3, 8, 8)
    torch.testing.assert_close(batch[0], batch[1])
    assert torch.equal(batch[2:], prepare([_image(8, 8)], preprocess))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "crop"}, "augment.kind must be one of resized_crop, pad_crop, none"),
        ({"min_scale": 0.0}, "augment.min_scale"),
        ({"min_scale": 1.1}, "augment.min_scale"),
        ({"padding": -1}, "augment.padding"),
    ],
)
def test_wrong_augmentation_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**wrong)
