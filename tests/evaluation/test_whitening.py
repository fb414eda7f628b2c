"""Whitening against its formula in float64, and what it must keep and bring."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crate_mae.evaluation.whitening import Whitening


def drawn(n: int, d: int, seed: int) -> torch.Tensor:
    """Features of unequal spread that depend on each other, with a mean far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(d) + 0.3 * torch.randn(d, d, generator=generator)
    mixing *= torch.logspace(-1, 1, d)
    return torch.randn(n, d, generator=generator) @ mixing + 5 * torch.randn(d, generator=generator)


@given(
    n=st.integers(3, 40), d=st.integers(1, 12), seed=st.integers(0, 1000),
    strength=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_the_map_is_that_of_the_formula(n: int, d: int, seed: int, strength: float) -> None:
    values = drawn(n, d, seed)
    found = Whitening(values)
    W, plain = found.map(strength).double().numpy(), values.double().numpy()
    scale = 1 / plain.std(axis=0)
    standard = (plain - plain.mean(axis=0)) * scale
    C = sum(np.outer(row, row) for row in standard) / n
    # W = S (I + s C)^(-1/2), so that W W^T = S (I + s C)^(-1) S.
    expected = scale[:, None] * np.linalg.inv(np.eye(d) + strength * C) * scale
    np.testing.assert_allclose(W @ W.T, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    white = found(values, strength).double().numpy()
    np.testing.assert_allclose(white, (plain - plain.mean(axis=0)) @ W, atol=1e-3)


def test_at_great_strength_many_images_have_like_spread_everywhere() -> None:
    values = drawn(20_000, 6, 0)
    white = Whitening(values)(values, 1e6) * 1e3  # the root of the strength
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6), atol=0.02, rtol=0)


def test_at_little_strength_features_are_standardised() -> None:
    values = drawn(50, 6, 0)
    standard = (values - values.mean(0)) / values.std(0, correction=0)
    torch.testing.assert_close(Whitening(values)(values, 1e-9), standard, atol=1e-4, rtol=1e-4)


def test_scales_of_the_features_do_not_matter() -> None:
    values, scales = drawn(50, 5, 1), torch.tensor([1e-3, 1.0, 7.0, 300.0, 0.2])
    plain, scaled = Whitening(values), Whitening(values * scales)
    torch.testing.assert_close(
        plain(values, 10.0), scaled(values * scales, 10.0), atol=1e-3, rtol=1e-3
    )


def test_features_that_never_change_are_taken_out() -> None:
    values = drawn(30, 4, 2)
    still = torch.cat([values[:, :2], torch.full((30, 1), 3.0), values[:, 2:]], dim=1)
    W = Whitening(still).map(10.0)
    assert torch.equal(W[2], torch.zeros(5))
    kept = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(W[kept[:, None], kept], Whitening(values).map(10.0))
    assert torch.equal(Whitening(torch.full((4, 3), 2.0)).map(1.0), torch.zeros(3, 3))


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("strength", [1.0, 1e3, 1e9])
def test_fewer_images_than_features_stay_finite(n: int, strength: float) -> None:
    values, others = drawn(n, 30, 3), drawn(5, 30, 4)
    found = Whitening(values)
    for each in (values, others, torch.cat([values, values])):
        assert bool(found(each, strength).isfinite().all())


def test_features_that_are_copies_of_each_other() -> None:
    values = drawn(40, 3, 4)
    twice = torch.cat([values, values], dim=1)
    white = Whitening(twice)(twice, 1e6)
    torch.testing.assert_close(white[:, :3], white[:, 3:], atol=1e-4, rtol=1e-3)


def test_blocks_do_not_change_the_directions() -> None:
    values = drawn(9_000, 3, 5)
    standard = ((values - values.mean(0)) / values.std(0, correction=0)).double()
    expected = torch.linalg.eigvalsh(standard.T @ standard / len(values))
    torch.testing.assert_close(Whitening(values).eigenvalues, expected, atol=1e-5, rtol=1e-5)
