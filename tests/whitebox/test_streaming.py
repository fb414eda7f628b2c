"""Streamed statistics against the same computed in one go, however the batches are cut."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import some

from crate_mae.whitebox.streaming import Agreement, ClassMoments, RunningMean


@some
@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=6), offset=st.sampled_from([0, 1e9]))
def test_running_mean_and_std(cuts: list[int], offset: float) -> None:
    values = torch.randn(sum(cuts), 3, generator=torch.Generator().manual_seed(0)).double() + offset
    running = RunningMean()
    for part in torch.split(values, cuts):
        running.update(part)
    assert running.count == len(values)
    assert torch.allclose(running.mean, values.mean(dim=0), rtol=1e-12)
    if len(values) == 1:
        assert running.std is None
    else:
        assert running.std is not None
        assert torch.allclose(running.std, values.std(dim=0), rtol=1e-5)


def cka_by_definition(X: torch.Tensor, Y: torch.Tensor) -> float:
    """HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with the n x n kernels and the centring matrix."""
    n = len(X)
    H = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(A: torch.Tensor, B: torch.Tensor) -> float:
        return float(torch.trace(A @ A.T @ H @ B @ B.T @ H))

    return hsic(X, Y) / math.sqrt(hsic(X, X) * hsic(Y, Y))


def test_agreement_in_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(12, 5, 4, generator=generator, dtype=torch.float64) + 3
    Y = X @ torch.randn(4, 4, generator=generator, dtype=torch.float64) + 1
    agreement = Agreement(4)
    for x, y in zip(torch.split(X, 5), torch.split(Y, 5), strict=True):
        agreement.update(x, y)
    flat = X.flatten(0, 1), Y.flatten(0, 1)
    assert agreement.count == 60
    assert agreement.linear_cka() == pytest.approx(cka_by_definition(*flat))
    assert agreement.relative_error() == pytest.approx(float((X - Y).norm() / Y.norm()))
    best = float((X * Y).sum() / X.square().sum())
    assert agreement.scaled_error() == pytest.approx(float((best * X - Y).norm() / Y.norm()))


def test_agreement_of_rotated_equal_constant_and_zero_tokens() -> None:
    X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q

    def agree(found: torch.Tensor, expected: torch.Tensor) -> Agreement:
        agreement = Agreement(3)
        agreement.update(found, expected)
        return agreement

    assert agree(5 * X @ rotation + 2, X).linear_cka() == pytest.approx(1)
    same = agree(X, X)
    assert (same.relative_error(), same.scaled_error()) == pytest.approx((0, 0), abs=1e-7)
    doubled = agree(2 * X, X)
    assert doubled.relative_error() == pytest.approx(1)
    assert doubled.scaled_error() == pytest.approx(0, abs=1e-7)
    assert agree(torch.ones(40, 3), X).linear_cka() == 0
    zero = agree(X, torch.zeros(40, 3))
    assert zero.relative_error() == math.inf
    assert zero.scaled_error() == 1


def test_class_moments_by_hand() -> None:
    sums = ClassMoments(3, 2)
    sums.update(torch.tensor([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]), torch.tensor([2, 2, -1]))
    sums.update(torch.tensor([[1.0, 1.0]]), torch.tensor([0]))
    assert sums.counts.tolist() == [1, 0, 2]
    assert sums.moments[2].tolist() == [[1, 0], [0, 4]]
    assert sums.moments[0].tolist() == [[1, 1], [1, 1]]
    assert ClassMoments.bytes_for(3, 2) == 8 * (3 * 4 + 3)
