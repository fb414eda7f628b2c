"""Foreground as one of two Gaussians of an image's tokens: what it finds, and what it ignores."""

import pytest
import torch
from torch import Tensor

from crate_mae.dense.mixture import CERTAINTY, foreground_shares, place_prior
from crate_mae.dense.segmentation import centred_ellipse, intersection_over_union

GRID = 16


def disc(row: float, column: float, radius: float) -> Tensor:
    """A true mask (GRID, GRID): a disc that lies off the centre."""
    places = torch.arange(GRID) + 0.5
    return (places[:, None] - row).square() + (places - column).square() <= radius**2


def scene(truth: Tensor, apart: float = 8.0, width: int = 4) -> Tensor:
    """Tokens (1, GRID, GRID, width): noise, with another mean in the truth."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, GRID, GRID, width, generator=generator)
    mean = torch.randn(width, generator=generator)
    tokens: Tensor = noise + apart * mean / mean.norm() * truth[None, ..., None]
    return tokens


@pytest.mark.parametrize(("row", "column", "radius"), [(9, 6, 5), (6, 6, 4)])
def test_an_object_off_the_centre_is_found(row: float, column: float, radius: float) -> None:
    truth = disc(row, column, radius)
    shares = foreground_shares(scene(truth))
    assert shares.dtype == torch.float64
    assert 0 <= float(shares.min()) <= float(shares.max()) <= 1
    found = float(intersection_over_union(shares > 0.5, truth[None]))
    start = float(intersection_over_union(centred_ellipse((GRID, GRID))[None], truth[None]))
    assert found > max(0.75, start + 0.3)


def test_images_do_not_depend_on_each_other_nor_on_rotation_and_scale() -> None:
    first, second = scene(disc(7, 9, 3)), scene(disc(9, 6, 5), apart=9)
    both = foreground_shares(torch.cat([first, second]))
    torch.testing.assert_close(both[1:], foreground_shares(second))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    turned = foreground_shares(7 * first @ turn + 2)
    torch.testing.assert_close(turned, both[:1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (8, 8)])
def test_equal_tokens_keep_the_prior(grid: tuple[int, int]) -> None:
    shares = foreground_shares(torch.full((1, *grid, 5), 0.1))
    torch.testing.assert_close(shares[0], place_prior(grid))


def test_the_prior_is_the_ellipse_and_leaves_a_chance_to_every_place() -> None:
    prior = place_prior((40, 60))
    assert torch.equal(prior > 0.5, centred_ellipse((40, 60)))
    assert float(prior.min()) >= 0.5 - CERTAINTY / 2
    assert float(prior.max()) <= 0.5 + CERTAINTY / 2


def test_tokens_that_are_not_finite_are_refused() -> None:
    tokens = torch.zeros(1, 4, 4, 3)
    tokens[0, 1, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        foreground_shares(tokens)
