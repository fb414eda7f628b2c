"""Masks: exact counts, the published rule, determinism, uniformity, masks drawn by hand."""

import hashlib
import math
import re
from fractions import Fraction
from itertools import combinations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given
from model_cases import some
from torch import Generator, Tensor

from crate_mae.common.randomness import keyed_generator
from crate_mae.models.masks import (
    MaskKind,
    block_mask,
    draw_mask,
    grid_mask,
    mask_from_pixels,
    num_kept,
    random_mask,
)

KINDS: tuple[MaskKind, ...] = ("random", "block", "grid")
kinds = st.sampled_from(KINDS)
sides = st.integers(1, 13)


@given(
    kind=kinds,
    rows=sides,
    columns=sides,
    ratio=st.floats(0.01, 0.99),
    batch=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
@some
def test_every_mask_keeps_exactly_the_published_number(
    kind: MaskKind, rows: int, columns: int, ratio: float, batch: int, seed: int
) -> None:
    kept = int(rows * columns * (1 - ratio))
    assume(kept > 0)
    mask = draw_mask(kind, (rows, columns), ratio, keyed_generator(seed), batch=batch)
    assert mask.dtype == torch.bool
    assert mask.shape == (batch, rows * columns)
    assert (~mask).sum(dim=1).tolist() == [kept] * batch


@given(kind=kinds, rows=sides, columns=sides, data=st.data())
@some
def test_every_count_is_possible_on_every_grid(
    kind: MaskKind, rows: int, columns: int, data: st.DataObject
) -> None:
    assume(rows * columns > 1)
    kept = data.draw(st.integers(1, rows * columns - 1))
    draw = {"random": random_mask, "block": block_mask, "grid": grid_mask}[kind]
    mask = draw((rows, columns), kept, keyed_generator(kept))
    assert int((~mask).sum()) == kept


@pytest.mark.parametrize(
    ("num_patches", "ratio", "kept"),
    [(196, 0.75, 49), (64, 0.75, 16), (196, 0.6, 78), (10, 0.7, 3), (17, 0.75, 4), (2, 0.5, 1)],
)
def test_number_of_kept_patches(num_patches: int, ratio: float, kept: int) -> None:
    assert num_kept(num_patches, ratio) == kept


@pytest.mark.parametrize(
    ("num_patches", "ratio", "problem"),
    [
        (16, 0.0, "mask ratio 0.0 removes no patch of 16"),
        (16, 1.0, "mask ratio 1.0 keeps no patch of 16"),
        (16, 0.99, "mask ratio 0.99 keeps no patch of 16"),
        (10, 0.9, "mask ratio 0.9 keeps no patch of 10"),  # int(10 * (1 - 0.9)) is 0
        (16, -0.1, "mask ratio -0.1 is not between 0 and 1 of 16"),
        (16, 1.5, "mask ratio 1.5 is not between 0 and 1"),
        (16, math.nan, "mask ratio nan is not between 0 and 1"),
        (1, 0.5, "an image of 1 patch cannot be masked in part"),
    ],
)
def test_ratios_without_a_mask_are_refused(num_patches: int, ratio: float, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        num_kept(num_patches, ratio)


@given(num_patches=st.integers(2, 10**6))
@some
def test_ratios_that_the_error_recommends_work(num_patches: int) -> None:
    with pytest.raises(ValueError, match="use one from") as caught:
        num_kept(num_patches, 1.0)
    match = re.search(r"from (\S+) to (\S+)$", str(caught.value))
    assert match is not None
    low, high = float(match[1]), float(match[2])
    assert low < high
    assert 0 < num_kept(num_patches, low) < num_patches
    assert 0 < num_kept(num_patches, high) < num_patches


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_state_gives_the_same_masks(kind: MaskKind) -> None:
    def draw(*key: int) -> Tensor:
        return draw_mask(kind, (14, 14), 0.75, keyed_generator(*key), batch=4)

    torch.manual_seed(0)
    first = draw(1, 2, 3)
    torch.manual_seed(1)
    assert torch.equal(first, draw(1, 2, 3))
    # One after another: a batch begins as a single draw does.
    assert torch.equal(first[:1], draw_mask(kind, (14, 14), 0.75, keyed_generator(1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_random_state_is_left_alone(kind: MaskKind) -> None:
    before = torch.get_rng_state()
    draw_mask(kind, (6, 7), 0.5, keyed_generator(0), batch=2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["random", "block"])
def test_masks_differ_between_seeds_epochs_and_samples(kind: MaskKind) -> None:
    drawn = {
        tuple(draw_mask(kind, (14, 14), 0.75, keyed_generator(seed, epoch, sample))[0].tolist())
        for seed in range(3)
        for epoch in range(5)
        for sample in range(20)
    }
    assert len(drawn) == 3 * 5 * 20


def test_keys_are_told_apart_by_value_order_and_length() -> None:
    keys = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (-1,), (2**40,), (2**63 - 1,), (-(2**63),)]
    seeds = [keyed_generator(*key).initial_seed() for key in keys]
    assert len(set(seeds)) == len(keys)


def test_seeds_of_keys_never_change() -> None:
    """Fixed numbers: the same masks in every later version, or old runs could not be resumed."""
    assert keyed_generator(0, 1, 2).initial_seed() == 1644437242
    digest = hashlib.blake2b(bytes([5, *[0] * 7, *[255] * 8]), digest_size=4).digest()
    assert keyed_generator(5, -1).initial_seed() == sum(b << 8 * i for i, b in enumerate(digest))


def test_random_masks_are_uniform() -> None:
    """Every subset of a small grid is drawn equally often."""
    generator, draws = Generator().manual_seed(0), 6000
    counts = dict.fromkeys(combinations(range(6), 2), 0)
    for mask in draw_mask("random", (2, 3), 2 / 3, generator, batch=draws):
        counts[tuple((~mask).nonzero().flatten().tolist())] += 1
    expected = draws / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 15
    assert chi_square < 36.1  # 99.9 % quantile for 14 degrees of freedom


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (8, 8), (14, 14), (4, 10), (6, 2), (16, 12)])
def test_grid_mask_keeps_one_patch_of_every_cell(shape: tuple[int, int]) -> None:
    places = set()
    for seed in range(20):
        mask = draw_mask("grid", shape, 0.75, keyed_generator(seed))[0].view(shape)
        for row in range(0, shape[0], 2):
            for column in range(0, shape[1], 2):
                cell = ~mask[row : row + 2, column : column + 2]
                assert int(cell.sum()) == 1
        places.add(int((~mask[:2, :2]).flatten().nonzero()))
    assert places == {0, 1, 2, 3}  # not always the same corner


@given(rows=st.integers(1, 7), columns=st.integers(1, 7), seed=st.integers(0, 1000))
@some
def test_patches_that_a_grid_mask_keeps_never_touch(rows: int, columns: int, seed: int) -> None:
    stay = ~grid_mask((2 * rows, 2 * columns), rows * columns, keyed_generator(seed))
    stay = stay.view(2 * rows, 2 * columns)
    for down, across in ((1, 0), (0, 1), (1, 1)):
        shifted = stay[down:, across:]
        assert not bool((shifted & stay[: len(shifted), : shifted.shape[1]]).any())
    assert not bool((stay[1:, :-1] & stay[:-1, 1:]).any())


def test_grid_mask_of_one_half_is_a_checkerboard() -> None:
    for seed in range(10):
        mask = draw_mask("grid", (6, 8), 0.5, keyed_generator(seed))[0].view(6, 8)
        assert bool((mask[1:] != mask[:-1]).all())
        assert bool((mask[:, 1:] != mask[:, :-1]).all())


def test_block_masks_hang_together_more_than_random_ones() -> None:
    def neighbours(kind: MaskKind) -> float:
        masks = draw_mask(kind, (14, 14), 0.5, keyed_generator(7), batch=60).view(60, 14, 14)
        same = (masks[:, :, 1:] == masks[:, :, :-1]).double().mean()
        return float(same)

    assert neighbours("random") == pytest.approx(0.5, abs=0.05)
    assert neighbours("block") > 0.75


def test_block_mask_of_few_patches_is_one_piece_of_a_rectangle() -> None:
    for seed in range(30):
        mask = block_mask((14, 14), 14 * 14 - 6, keyed_generator(seed)).view(14, 14)
        places = mask.nonzero()
        height, width = (places.max(dim=0).values - places.min(dim=0).values + 1).tolist()
        assert height <= 6
        assert width <= 14
        # Trimmed in raster order: every row but the last of the piece is full.
        assert int(mask.sum()) == 6
        assert (height - 1) * width < 6 <= height * width


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="one of random, block, grid, not 'checker'"):
        draw_mask("checker", (4, 4), 0.5, None)  # type: ignore[arg-type]


# --- masks from pixels ------------------------------------------------------------------------


@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    patch=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    covered=st.sampled_from([Fraction(1, 4), Fraction(1, 3), Fraction(1, 2), Fraction(1)]),
    seed=st.integers(0, 10**6),
)
@some
def test_pixel_masks_follow_the_covered_share(
    grid: tuple[int, int], patch: tuple[int, int], covered: Fraction, seed: int
) -> None:
    (rows, columns), (height, width) = grid, patch
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(rows * height, columns * width, generator=generator) < 0.5
    expected = []
    for row in range(rows):
        for column in range(columns):
            marked = sum(
                int(pixels[row * height + i, column * width + j])
                for i in range(height)
                for j in range(width)
            )
            expected.append(Fraction(marked, height * width) >= covered)
    if all(expected) or not any(expected):
        with pytest.raises(ValueError, match=f"removes {sum(expected)} of {len(expected)} patches"):
            mask_from_pixels(pixels, patch, covered=float(covered))
        return
    mask = mask_from_pixels(pixels, patch, covered=float(covered))
    assert mask.dtype == torch.bool
    assert mask.tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_any_non_zero_pixel_counts_as_marked(dtype: torch.dtype) -> None:
    pixels = torch.zeros(4, 4)
    pixels[:2, 2:] = 255
    mask = mask_from_pixels(pixels.to(dtype), (2, 2))
    assert mask.tolist() == [[False, True, False, False]]


def test_negative_pixels_count_as_marked() -> None:
    pixels = torch.zeros(4, 4)
    pixels[2:, :2] = -1
    assert mask_from_pixels(pixels, (2, 2)).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("shape", [(4, 5), (3, 4), (1, 4, 4), (4,)])
def test_pixel_masks_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"multiples of patch 2x2, not {shape}")):
        mask_from_pixels(torch.ones(shape), (2, 2))


@pytest.mark.parametrize("covered", [0.0, -0.5, 1.1, math.nan])
def test_impossible_shares_are_refused(covered: float) -> None:
    with pytest.raises(ValueError, match="covered must be above 0 and at most 1"):
        mask_from_pixels(torch.ones(4, 4), (2, 2), covered=covered)


@pytest.mark.parametrize(("value", "removed"), [(0, 0), (1, 4)])
def test_pixel_masks_of_nothing_or_everything_are_refused(value: int, removed: int) -> None:
    with pytest.raises(ValueError, match=f"removes {removed} of 4 patches; mark some pixels"):
        mask_from_pixels(torch.full((4, 4), value), (2, 2))
