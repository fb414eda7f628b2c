"""Whitening against the estimate as Ledoit and Wolf wrote it, and what it must keep and bring."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crate_mae.evaluation.whitening import whitening


def drawn(n: int, d: int, seed: int) -> torch.Tensor:
    """Features of unequal spread that depend on each other, with a mean far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(d) + 0.3 * torch.randn(d, d, generator=generator)
    mixing *= torch.logspace(-1, 1, d)
    return torch.randn(n, d, generator=generator) @ mixing + 5 * torch.randn(d, generator=generator)


def shrunk_covariance(values: np.ndarray) -> np.ndarray:
    """Lemmas 3.2 to 3.4 of the paper, image by image, of centred values (n, d)."""
    n, d = values.shape
    sample = sum(np.outer(row, row) for row in values) / n
    mean = np.trace(sample) / d
    distance = np.sum((sample - mean * np.eye(d)) ** 2) / d
    spread = sum(np.sum((np.outer(row, row) - sample) ** 2) for row in values) / (d * n**2)
    share = min(spread, distance) / distance
    shrunk: np.ndarray = share * mean * np.eye(d) + (1 - share) * sample
    return shrunk


@given(n=st.integers(3, 40), d=st.integers(2, 12), seed=st.integers(0, 1000))
def test_the_map_is_the_inverse_root_of_the_shrunk_covariance(n: int, d: int, seed: int) -> None:
    values = drawn(n, d, seed)
    mean, W = (each.double().numpy() for each in whitening(values))
    plain = values.double().numpy()
    np.testing.assert_allclose(mean, plain.mean(axis=0), rtol=1e-5, atol=1e-5)
    scale = 1 / plain.std(axis=0)
    C = shrunk_covariance((plain - plain.mean(axis=0)) * scale)
    # W = S C^(-1/2), so that W W^T = S C^(-1) S.
    expected = scale[:, None] * np.linalg.inv(C) * scale
    np.testing.assert_allclose(W @ W.T, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_many_images_have_the_unit_covariance_after_it() -> None:
    values = drawn(20_000, 6, 0)
    mean, W = whitening(values)
    covariance = torch.cov(((values - mean) @ W).T)
    torch.testing.assert_close(covariance, torch.eye(6), atol=0.02, rtol=0)


def test_scales_of_the_features_do_not_matter() -> None:
    values, scales = drawn(50, 5, 1), torch.tensor([1e-3, 1.0, 7.0, 300.0, 0.2])
    mean, W = whitening(values)
    mean_scaled, W_scaled = whitening(values * scales)
    torch.testing.assert_close(
        (values - mean) @ W, (values * scales - mean_scaled) @ W_scaled, atol=1e-3, rtol=1e-3
    )


def test_features_that_never_change_are_taken_out() -> None:
    values = drawn(30, 4, 2)
    still = torch.cat([values[:, :2], torch.full((30, 1), 3.0), values[:, 2:]], dim=1)
    _, W = whitening(still)
    assert torch.equal(W[2], torch.zeros(5))
    assert torch.equal(W[:, 2], torch.zeros(5))
    kept = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(W[kept[:, None], kept], whitening(values)[1])
    assert torch.equal(whitening(torch.full((4, 3), 2.0))[1], torch.zeros(3, 3))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_fewer_images_than_features_stay_finite(n: int) -> None:
    values = drawn(n, 30, 3)
    mean, W = whitening(values)
    white = (values - mean) @ W
    assert bool(white.isfinite().all())
    assert float(white.abs().max()) <= 10 * math.sqrt(30)


def test_features_that_are_copies_of_each_other() -> None:
    values = drawn(40, 3, 4)
    mean, W = whitening(torch.cat([values, values], dim=1))
    assert bool(W.isfinite().all())
    white = (torch.cat([values, values], dim=1) - mean) @ W
    assert bool(white.isfinite().all())
