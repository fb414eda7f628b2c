"""Patches and back, and the fixed positions."""

import copy
import logging
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from model_cases import gap, images_for, make, positions_by_loops, some, tiny
from torch import Tensor

from crate_mae.models.embedding import filtered_patches
from crate_mae.models.patches import grid_of, patchify, sincos_positions, unpatchify

small = st.integers(1, 5)


@given(
    batch=st.integers(0, 3),
    channels=small,
    grid=st.tuples(small, small),
    patch=st.tuples(small, small),
)
@some
def test_patches_turn_back_into_images(
    batch: int, channels: int, grid: tuple[int, int], patch: tuple[int, int]
) -> None:
    images = torch.randn(batch, channels, grid[0] * patch[0], grid[1] * patch[1])
    patches = patchify(images, patch)
    assert grid_of(images, patch) == grid
    assert patches.shape == (batch, grid[0] * grid[1], patch[0] * patch[1] * channels)
    assert torch.equal(unpatchify(patches, patch, grid, channels), images)


@given(channels=small, grid=st.tuples(small, small), patch=st.tuples(small, small))
@some
def test_pixel_order_is_row_column_channel(
    channels: int, grid: tuple[int, int], patch: tuple[int, int]
) -> None:
    (rows, columns), (height, width) = grid, patch
    images = torch.randn(1, channels, rows * height, columns * width)
    patches = patchify(images, patch)
    for row in range(rows):
        for column in range(columns):
            values = [
                float(images[0, channel, row * height + i, column * width + j])
                for i in range(height)
                for j in range(width)
                for channel in range(channels)
            ]
            assert patches[0, row * columns + column].tolist() == values


def test_patches_follow_images_that_are_not_contiguous() -> None:
    images = torch.randn(2, 6, 4, 3).permute(0, 3, 1, 2)
    assert torch.equal(patchify(images, (3, 2)), patchify(images.contiguous(), (3, 2)))


@pytest.mark.parametrize("shape", [(2, 5, 12), (2, 6, 11), (2, 12), (2, 6, 12, 1)])
def test_patches_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit a 2x3 grid of 2x2 patches with 3 channels"):
        unpatchify(torch.zeros(shape), (2, 2), (2, 3), 3)


@given(quarter=st.integers(1, 16), rows=st.integers(1, 7), columns=st.integers(1, 7))
@some
def test_positions_equal_their_definition(quarter: int, rows: int, columns: int) -> None:
    table = sincos_positions(4 * quarter, (rows, columns))
    assert table.dtype == torch.float32
    # To the last bit of float32: the angles are computed in float64.
    assert gap(table, positions_by_loops(4 * quarter, rows, columns)) <= 6.1e-8


def test_positions_are_column_first_then_row() -> None:
    table = sincos_positions(8, (3, 5))
    patches = table[1:].view(3, 5, 8)
    assert bool((table[0] == 0).all())
    for row in range(3):
        assert torch.equal(patches[row, :, :4], patches[0, :, :4])  # first half: the column alone
    for column in range(5):
        assert torch.equal(patches[:, column, 4:], patches[:, 0, 4:])  # second half: the row alone
    assert patches[1, 2].tolist() == pytest.approx(
        [f(place / scale) for place in (2, 1) for f in (math.sin, math.cos) for scale in (1, 100)]
    )
    assert torch.unique(table, dim=0).shape[0] == 16  # no two tokens alike


@given(grid=st.tuples(st.integers(1, 6), st.integers(1, 6)))
@some
def test_positions_of_the_same_grid_are_identical(grid: tuple[int, int]) -> None:
    table = sincos_positions(12, grid)
    assert torch.equal(sincos_positions(12, grid, reference_grid=grid), table)


def coordinates(table: Tensor, grid: tuple[int, int], column: int, row: int) -> tuple[float, float]:
    """The (column, row) that a patch's fastest sine and cosine stand for, within half a turn."""
    dim = table.shape[1]
    token = table[1 + row * grid[1] + column].double()
    quarter = dim // 4
    return (
        float(torch.atan2(token[0], token[quarter])),
        float(torch.atan2(token[2 * quarter], token[3 * quarter])),
    )


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    reference=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
@some
def test_other_grids_are_spread_over_the_same_extent(
    grid: tuple[int, int], reference: tuple[int, int]
) -> None:
    """Pixel centres aligned: patch i of n lies at (i + 1/2) m/n - 1/2 on a grid of m."""
    table = sincos_positions(8, grid, reference_grid=reference)
    for row in range(grid[0]):
        for column in range(grid[1]):
            found = coordinates(table, grid, column, row)
            expected = (
                (column + 0.5) * reference[1] / grid[1] - 0.5,
                (row + 0.5) * reference[0] / grid[0] - 0.5,
            )
            assert found == pytest.approx(expected, abs=1e-5)
            # Centred: mirrored patches lie mirrored about the middle of the trained grid.
            mirrored = coordinates(table, grid, grid[1] - 1 - column, grid[0] - 1 - row)
            assert found[0] + mirrored[0] == pytest.approx(reference[1] - 1, abs=1e-5)
            assert found[1] + mirrored[1] == pytest.approx(reference[0] - 1, abs=1e-5)


def test_twice_the_size_averages_to_the_trained_coordinates() -> None:
    fine = sincos_positions(8, (4, 6), reference_grid=(2, 3))
    for row in range(2):
        for column in range(3):
            pair = [coordinates(fine, (4, 6), 2 * column + i, 2 * row + i) for i in (0, 1)]
            assert (pair[0][0] + pair[1][0]) / 2 == pytest.approx(column, abs=1e-5)
            assert (pair[0][1] + pair[1][1]) / 2 == pytest.approx(row, abs=1e-5)


# --- other image sizes through the model ------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_another_image_size_is_told_once_per_size(caplog: pytest.LogCaptureFixture) -> None:
    config = tiny()
    model = make(config).eval()
    with torch.no_grad():
        for _ in range(3):
            model.encode(images_for(config))
        assert warnings_of(caplog) == []
        for _ in range(3):
            model.encode(torch.randn(1, 3, 16, 20))
            model(torch.randn(1, 3, 16, 20))
        told = warnings_of(caplog)
        assert len(told) == 1
        assert "2x3 -> 4x5" in told[0]
        for _ in range(2):
            model.encode(torch.randn(1, 3, 20, 16))
        assert len(warnings_of(caplog)) == 2
        assert "2x3 -> 5x4" in warnings_of(caplog)[1]
        copy.deepcopy(model).encode(torch.randn(1, 3, 16, 20))
        assert len(warnings_of(caplog)) == 2


@pytest.mark.parametrize("size", [(4, 4), (4, 24), (24, 4), (16, 24), (8, 8), (36, 8)])
@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_any_other_size_goes_through_the_whole_model(size: tuple[int, int], where: str) -> None:
    config = tiny(mask_tokens=where)
    model = make(config).eval()
    images = torch.randn(2, 3, *size)
    num_patches = size[0] * size[1] // 16
    with torch.no_grad():
        assert model.encode(images).shape == (2, 1 + num_patches, 12)
        for side in ("encoder", "decoder"):
            (weights,) = model.attention(images, side=side).values()
            assert weights.shape[2:] == (1 + num_patches, 1 + num_patches)
        if num_patches > 1:
            out = model(images, mask_ratio=0.5)
            assert out.prediction.shape == (2, num_patches, 48)
            assert bool(out.loss.isfinite())


def test_positions_added_for_another_size_are_the_rescaled_table() -> None:
    model = make(tiny()).double()
    images = torch.randn(1, 3, 16, 20, dtype=torch.float64)
    added = model.encoder.embed(images)[:, 1:] - model.encoder.patch_tokens(images)
    expected = sincos_positions(12, (4, 5), reference_grid=(2, 3))[1:]
    assert gap(added[0], expected) <= 1e-12


@given(
    channels=st.integers(1, 3),
    patch=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 99),
)
@some
def test_filtered_patches_are_the_convolution(
    channels: int, patch: tuple[int, int], grid: tuple[int, int], seed: int
) -> None:
    """What accelerators compute in place of the convolution, against it, in float64."""
    torch.manual_seed(seed)
    filters = torch.nn.Conv2d(channels, 5, patch, patch, dtype=torch.float64)
    size = [a * b for a, b in zip(patch, grid, strict=True)]
    images = torch.randn(2, channels, size[1], size[0], dtype=torch.float64).mT
    expected = filters(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(filtered_patches(images, filters), expected, atol=1e-12, rtol=0)
