"""Photographs of scikit-learn and squares of them."""

import pytest
import torch

from crate_mae.sources.photographs import PHOTOGRAPHS, photograph, square


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("share", [1.0, 0.6, 0.1])
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.4, 0.4), (0.0, 1.0), (1.0, 0.0)])
def test_squares_lie_inside_their_photograph(
    name: str, share: float, centre: tuple[float, float]
) -> None:
    picture = photograph(name)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 427, 640)
    assert square(picture, share, centre).shape == (3, int(427 * share), int(427 * share))


def test_a_square_is_cut_where_it_was_asked_for() -> None:
    picture = photograph("china")
    assert torch.equal(square(picture, 0.1, (1.0, 1.0)), picture[:, -42:, -42:])
    assert torch.equal(square(picture, 0.1, (0.0, 0.0)), picture[:, :42, :42])
    assert torch.equal(square(picture, 0.2, (0.5, 0.5)), picture[:, 171:256, 277:362])
