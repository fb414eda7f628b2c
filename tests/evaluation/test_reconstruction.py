"""Reconstructions against loops over pixels; nothing honest depends on removed pixels."""

import logging
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crate_mae.batches.transforms import normalise
from crate_mae.common.randomness import keyed_generator
from crate_mae.evaluation.reconstruction import (
    PixelMode,
    fill_from_visible,
    patch_statistics,
    psnr,
    reconstruct,
    reconstruct_source,
)
from crate_mae.models.autoencoder import CrateMAE, build_model
from crate_mae.models.config import Preprocess
from crate_mae.models.loss import BaselineSums
from crate_mae.models.masks import draw_mask
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource, subset
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage

MEAN, STD = (0.4, 0.5), (0.2, 0.3)


def make_model(*, norm_pix_loss: bool) -> CrateMAE:
    torch.manual_seed(0)
    model = build_model(
        "debug", image_size=(8, 12), patch_size=(2, 3), channels=2, norm_pix_loss=norm_pix_loss
    )
    model.preprocess = Preprocess(size=(8, 12), channels=2, mean=MEAN, std=STD)
    return model


def make_images(n: int = 3) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1] and the same prepared."""
    pixels = torch.rand(n, 2, 8, 12, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return pixels, (pixels - mean) / std


def make_mask(n: int = 3) -> Tensor:
    return draw_mask("random", (4, 4), 0.75, torch.Generator().manual_seed(2), batch=n)


def pixels_by_loops(
    model: CrateMAE, images: Tensor, mask: Tensor, mode: PixelMode
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted pixels (B, C, H, W), unclipped, and which pixels are removed (B, H, W)."""
    with torch.no_grad():
        prediction = model.eval()(images, mask).prediction.double().numpy()
    x = images.double().numpy()
    batch = len(x)
    out, removed = np.zeros((batch, 2, 8, 12)), np.zeros((batch, 8, 12), dtype=bool)
    for b in range(batch):
        patches = {
            (r, c): x[b, :, 2 * r : 2 * r + 2, 3 * c : 3 * c + 3].flatten()
            for r in range(4)
            for c in range(4)
        }
        own = {at: (v.mean(), math.sqrt(v.var(ddof=1) + 1e-6)) for at, v in patches.items()}
        visible = [at for at in patches if not mask[b, 4 * at[0] + at[1]]]
        for r, c in patches:
            mean, spread = own[r, c]
            gone = bool(mask[b, 4 * r + c])
            if mode == "visible" and gone:
                weights = [1 / ((2 * (r - i)) ** 2 + (3 * (c - j)) ** 2) for i, j in visible]
                mean = np.average([own[at][0] for at in visible], weights=weights)
                spread = np.average([own[at][1] for at in visible], weights=weights)
            if mode == "raw":
                mean, spread = 0.0, 1.0
            values = iter(prediction[b, 4 * r + c])
            for i in range(2):
                for j in range(3):
                    removed[b, 2 * r + i, 3 * c + j] = gone
                    for k in range(2):
                        value = next(values) * spread + mean
                        out[b, k, 2 * r + i, 3 * c + j] = value * STD[k] + MEAN[k]
    return out, removed


@pytest.mark.parametrize(
    ("norm_pix_loss", "mode"), [(True, "visible"), (True, "oracle"), (False, "raw")]
)
def test_every_panel_by_loops(norm_pix_loss: bool, mode: PixelMode) -> None:
    model, (pixels, images), mask = (
        make_model(norm_pix_loss=norm_pix_loss),
        make_images(),
        make_mask(),
    )
    result = reconstruct(model, images, mask, mode=mode)
    unclipped, removed = pixels_by_loops(model, images, mask, mode)
    expected, original = unclipped.clip(0, 1), pixels.double().numpy()
    gone = removed[:, None]
    for found, wanted in (
        (result.original, original),
        (result.prediction, expected),
        (result.masked, np.where(gone, 0.5, original)),
        (result.pasted, np.where(gone, expected, original)),
        (result.error, np.where(gone, abs(expected - original), 0).mean(1, keepdims=True)),
    ):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), wanted, atol=2e-5)
    for b in range(3):
        squares = [
            (expected[b, k, i, j] - original[b, k, i, j]) ** 2
            for k in range(2)
            for i, j in zip(*removed[b].nonzero(), strict=True)
        ]
        assert result.mse[b] == pytest.approx(np.mean(squares), rel=1e-4)
        assert result.psnr[b] == pytest.approx(10 * math.log10(1 / np.mean(squares)), rel=1e-4)
    assert torch.equal(result.mask, mask)
    assert result.mode == mode


def test_the_default_mode_follows_the_model() -> None:
    images, mask = make_images()[1], make_mask()
    assert reconstruct(make_model(norm_pix_loss=True), images, mask).mode == "visible"
    assert reconstruct(make_model(norm_pix_loss=False), images, mask).mode == "raw"


@pytest.mark.parametrize(
    ("norm_pix_loss", "mode", "honest"),
    [
        (True, "visible", True),
        (True, "raw", True),
        (True, "oracle", False),
        (False, "raw", True),
    ],
)
@pytest.mark.parametrize("rubbish", [0.0, 7.0, torch.nan])
def test_what_is_shown_does_not_depend_on_removed_pixels(
    norm_pix_loss: bool, mode: PixelMode, honest: bool, rubbish: float
) -> None:
    model, (_, images), mask = make_model(norm_pix_loss=norm_pix_loss), make_images(), make_mask()
    removed = mask.view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(3, 3)
    changed = torch.where(removed, rubbish, images)
    first = reconstruct(model, images, mask, mode=mode)
    second = reconstruct(model, changed, mask, mode=mode)
    removed = removed.expand_as(images)
    same = torch.equal(first.prediction[removed], second.prediction[removed])
    assert same == honest
    if honest:
        assert torch.equal(first.pasted, second.pasted)
        assert torch.equal(first.masked, second.masked)


def test_captions_say_where_the_statistics_come_from() -> None:
    model, (_, images), mask = make_model(norm_pix_loss=True), make_images(), make_mask()
    caption = {
        mode: reconstruct(model, images, mask, mode=mode).caption
        for mode in ("visible", "oracle", "raw")
    }
    assert "visible patches only" in caption["visible"]
    assert "removed pixels themselves" in caption["oracle"]
    assert "Normalised predictions, rescaled" in caption["raw"]
    plain = reconstruct(make_model(norm_pix_loss=False), images, mask)
    assert "directly" in plain.caption


def test_normalised_units_have_no_pixel_errors() -> None:
    model, (_, images), mask = make_model(norm_pix_loss=True), make_images(), make_mask()
    result = reconstruct(model, images, mask, mode="raw")
    assert result.mse.isnan().all()
    assert result.psnr.isnan().all()
    with torch.no_grad():
        predicted = model.eval()(images, mask).prediction
    # Standard deviations of -2.5 to 2.5 are shown as 0 to 1.
    expected = (0.5 + predicted[0, 0].view(2, 3, 2).permute(2, 0, 1) / 5).clamp(0, 1)
    torch.testing.assert_close(result.prediction[0, :, :2, :3], expected)


def test_modes_that_do_not_exist() -> None:
    images, mask = make_images()[1], make_mask()
    plain, modes = make_model(norm_pix_loss=False), get_args(PixelMode)
    for mode in set(modes) - {"raw"}:
        with pytest.raises(ValueError, match="without norm_pix_loss"):
            reconstruct(plain, images, mask, mode=mode)
    with pytest.raises(ValueError, match="mode must be one of visible, oracle, raw"):
        reconstruct(make_model(norm_pix_loss=True), images, mask, mode="best")  # type: ignore[arg-type]


def test_an_image_without_visible_patches() -> None:
    model, images = make_model(norm_pix_loss=True), make_images()[1]
    mask = make_mask()
    mask[1] = True
    with pytest.raises(ValueError, match="no visible patch"):
        reconstruct(model, images, mask)
    assert reconstruct(model, images, mask, mode="oracle").psnr.isfinite().all()


def test_the_model_is_left_as_it_was() -> None:
    model = make_model(norm_pix_loss=True).train()
    result = reconstruct(model, make_images()[1], make_mask())
    assert all(module.training for module in model.modules())
    for panel in (result.prediction, result.pasted, result.error, result.mse):
        assert not panel.is_inference()
        assert not panel.requires_grad


def test_another_image_size() -> None:
    model = make_model(norm_pix_loss=True)
    mask = draw_mask("random", (6, 3), 0.5, torch.Generator().manual_seed(0), batch=2)
    result = reconstruct(model, torch.randn(2, 2, 12, 9), mask)
    assert result.pasted.shape == (2, 2, 12, 9)
    assert result.error.shape == (2, 1, 12, 9)


def test_true_statistics_undo_the_target() -> None:
    images = make_images()[1]
    model = make_model(norm_pix_loss=True)
    mean, spread = patch_statistics(images, (2, 3))
    plain = make_model(norm_pix_loss=False).target(images)
    torch.testing.assert_close(model.target(images) * spread + mean, plain)


@settings(max_examples=30)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(2, 6)),
    patch_hw=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 100),
)
def test_estimates_stay_between_what_is_visible(
    grid: tuple[int, int], patch_hw: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = draw_mask("random", grid, 0.5, generator, batch=2)
    values = torch.randn(2, grid[0] * grid[1], 1, generator=generator)
    filled = fill_from_visible(values, mask, grid, patch_hw)
    assert torch.equal(filled[~mask], values[~mask])
    for b in range(2):
        seen = values[b][~mask[b]]
        assert filled[b].min() >= seen.min() - 1e-6
        assert filled[b].max() <= seen.max() + 1e-6


def test_psnr_of_known_errors() -> None:
    assert psnr(torch.tensor([1.0, 0.1, 0.0])).tolist() == pytest.approx([0.0, 10.0, math.inf])


# -- a whole source ---------------------------------------------------------------------------


class SecondBroken(ImageSource):
    """Handwritten digits of which the second cannot be read."""

    def __init__(self, count: int) -> None:
        digits = open_source("digits", limit=count)
        assert isinstance(digits, ImageSource)
        self.inner, self.address, self.split = digits, "broken", None
        self.class_names = digits.class_names

    def __len__(self) -> int:
        return len(self.inner)

    def load(self, index: int) -> Sample:
        if index == 1:
            raise UnreadableImage(self.name(index), "made to break")
        return self.inner.load(index)

    def name(self, index: int) -> str:
        return self.inner.name(index)

    def label(self, index: int) -> int | None:
        return self.inner.label(index)

    def facts(self, index: int) -> ImageFacts:
        return self.inner.facts(index)


def digits_model() -> CrateMAE:
    torch.manual_seed(0)
    return build_model("debug", image_size=8, patch_size=2, channels=1, norm_pix_loss=True)


def test_a_source_image_by_image(caplog: pytest.LogCaptureFixture) -> None:
    model, source = digits_model(), SecondBroken(6)
    with caplog.at_level(logging.WARNING):
        result, names = reconstruct_source(model, source, seed=3, batch_size=2)
    assert names == [source.name(i) for i in (0, 2, 3, 4, 5)]
    assert f"{source.name(1)}: made to break" in caplog.text
    for row, index in enumerate((0, 2, 3, 4, 5)):
        image = normalise(source.load(index).image[None], model.preprocess)
        mask = draw_mask("random", (4, 4), 0.75, keyed_generator(3, index))
        alone = reconstruct(model, image, mask)
        assert torch.equal(result.mask[row], mask[0])
        for name in ("original", "masked", "prediction", "pasted", "error", "mse", "psnr"):
            found, expected = getattr(result, name)[row], getattr(alone, name)[0]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_source_with_limit_and_given_mask() -> None:
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    result, names = reconstruct_source(digits_model(), SecondBroken(6), mask=mask, limit=3)
    assert len(names) == 2
    assert torch.equal(result.mask, mask.expand(2, -1))
    with pytest.raises(ValueError, match="removes no patch"):
        reconstruct_source(digits_model(), SecondBroken(2), mask=torch.zeros_like(mask))


def test_a_source_that_cannot_be_read() -> None:
    source = subset(SecondBroken(3), [1])
    with pytest.raises(ValueError, match="none of the 1 images of broken can be read"):
        reconstruct_source(digits_model(), source)


# -- the trivial predictors -------------------------------------------------------------------


def baselines_by_loops(targets: Tensor, mask: Tensor, channels: int) -> tuple[float, float]:
    t = targets.double().numpy()
    patches = [t[b, i] for b, i in zip(*mask.numpy().nonzero(), strict=True)]
    colour = [np.mean([p[k::channels].mean() for p in patches]) for k in range(channels)]
    by_colour = [(v - colour[i % channels]) ** 2 for p in patches for i, v in enumerate(p)]
    by_patch = [(v - p.mean()) ** 2 for p in patches for v in p]
    return float(np.mean(by_colour)), float(np.mean(by_patch))


@settings(max_examples=30)
@given(
    batch=st.integers(1, 4),
    pixels=st.integers(1, 6),
    channels=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_baselines_by_loops(batch: int, pixels: int, channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(batch, 6, pixels * channels, generator=generator) + 3
    mask = draw_mask("random", (2, 3), 0.5, generator, batch=batch)
    expected = baselines_by_loops(targets, mask, channels)

    whole = BaselineSums(channels)
    whole.update(targets, mask)
    assert (whole.mean_colour(), whole.patch_mean()) == pytest.approx(expected, abs=1e-9)

    parts = [BaselineSums(channels) for _ in range(batch)]
    for part, target, removed in zip(parts, targets, mask, strict=True):
        part.update(target[None], removed[None])
    for part in parts[1:]:
        parts[0].sums += part.sums
    torch.testing.assert_close(parts[0].sums, whole.sums)


def test_the_best_colour_is_the_best() -> None:
    targets, mask = torch.rand(2, 16, 12), make_mask(2)
    sums = BaselineSums(2)
    sums.update(targets, mask)
    removed = targets[mask].double().reshape(-1, 2)
    best = removed.mean(dim=0)
    assert sums.mean_colour() == pytest.approx(float((removed - best).square().mean()))
    for shift in (-0.01, 0.01):
        worse = (removed - best - torch.tensor([shift, 0])).square().mean()
        assert sums.mean_colour() < float(worse)


def test_the_patch_mean_of_normalised_targets_is_zero() -> None:
    model, images, mask = make_model(norm_pix_loss=True), make_images()[1], make_mask()
    target = model.target(images)
    sums = BaselineSums(2)
    sums.update(target, mask)
    assert sums.patch_mean() == pytest.approx(float(model.loss(images, 0 * target, mask)), rel=1e-5)
    assert sums.patch_mean() == pytest.approx(11 / 12, abs=1e-3)  # the variance is unbiased


def test_baselines_of_nothing() -> None:
    sums = BaselineSums(3)
    for measure in (sums.mean_colour, sums.patch_mean):
        with pytest.raises(ValueError, match="no removed patch"):
            measure()


def test_visible_patches_do_not_count() -> None:
    targets, mask = torch.rand(2, 16, 12), make_mask(2)
    first, second = BaselineSums(3), BaselineSums(3)
    first.update(targets, mask)
    second.update(torch.where(mask[..., None], targets, torch.nan), mask)
    assert torch.equal(first.sums, second.sums)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_data_of_any_range_have_the_picture_of_the_same_data_from_0_to_1(
    norm_pix_loss: bool,
) -> None:
    """MSE in the data's units, checked by a loop over them; picture and PSNR do not change."""
    model, mask = make_model(norm_pix_loss=norm_pix_loss), make_mask()
    pixels, images = make_images()
    low, high = float(pixels.min()), float(pixels.max())
    facts = {"size": (8, 12), "channels": 2}
    results = []
    for factor in (1.0, 255.0, 1e-10):
        model.preprocess = Preprocess(
            **facts,  # type: ignore[arg-type]
            mean=tuple(factor * m for m in MEAN),
            std=tuple(factor * s for s in STD),
            low=(factor * low,) * 2,
            high=(factor * high,) * 2,
        )
        results.append((factor, reconstruct(model, images, mask)))
    first = results[0][1]
    for factor, result in results:
        for name in ("original", "prediction", "pasted", "error"):
            torch.testing.assert_close(
                getattr(result, name), getattr(first, name), rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(result.psnr, first.psnr, rtol=1e-4, atol=1e-3)
        span = factor * (high - low)
        removed = (result.pasted != result.original).any(dim=1).numpy()
        for b in range(3):
            squares = [
                (span * float(result.prediction[b, c, y, x] - result.original[b, c, y, x])) ** 2
                for c in range(2) for y in range(8) for x in range(12) if removed[b, y, x]
            ]  # fmt: skip
            assert float(result.mse[b]) == pytest.approx(np.mean(squares), rel=1e-3)


def test_images_beyond_the_range_are_neither_clipped_nor_scored_as_if_they_were() -> None:
    """A model of 8-bit images, given floats from 0 to 255."""
    model, mask = make_model(norm_pix_loss=False), make_mask()
    pixels, _ = make_images()
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    result = reconstruct(model, (255 * pixels - mean) / std, mask)
    assert result.high[0] > 200
    assert "values from 0 to" in result.units or "each channel" in result.units
    spans = torch.tensor(result.high).view(2, 1, 1)
    removed = mask.view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(3, 3)
    inside = (255 * pixels / spans <= 1) & ~removed
    torch.testing.assert_close(result.original[inside], (255 * pixels / spans)[inside])
    beyond = pixels.clone()
    beyond[removed.expand_as(beyond)] *= 300  # only where nobody looks before the score
    far = reconstruct(model, (beyond - mean) / std, mask)
    assert far.high == (1.0, 1.0)
    assert "lie outside the range that is drawn" in far.caption
    truth = np.where(removed.expand_as(beyond).numpy(), beyond.numpy(), np.nan)
    expected = np.nanmean((far.prediction.numpy() - truth) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(far.mse.numpy(), expected, rtol=1e-3)
