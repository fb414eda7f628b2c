"""The coding-rate term against loops in float64, autograd, closed forms and finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crate_mae.models.coding_rate import largest_rate, rate_share
from crate_mae.whitebox.measures import coding_rate

SIZES = st.integers(1, 9)
ERRORS = st.sampled_from([1e-3, 0.05, 0.25, 1.0, 20.0])


def features_of(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rate_by_loops(features: Tensor, eps_squared: float) -> float:
    """1/2 logdet(I + d / (n eps^2) sum_i f_i f_i^T), by loops and a determinant."""
    n, d = features.shape
    gram = [[0.0] * d for _ in range(d)]
    for row in features.tolist():
        length = math.sqrt(sum(value * value for value in row))
        for i in range(d):
            for j in range(d):
                gram[i][j] += row[i] * row[j] / length**2
    whole = [[(i == j) + d / (n * eps_squared) * gram[i][j] for j in range(d)] for i in range(d)]
    return 0.5 * math.log(float(torch.tensor(whole, dtype=torch.float64).det()))


@given(SIZES, SIZES, ERRORS, st.integers(0, 99))
def test_the_rate_is_its_definition(n: int, d: int, eps_squared: float, seed: int) -> None:
    features = features_of(n, d, seed)
    rate, share = rate_share(features, eps_squared=eps_squared)
    assert float(rate) == pytest.approx(rate_by_loops(features, eps_squared), rel=1e-9, abs=1e-9)
    assert 0 < float(share) <= 1 + 1e-9


def test_it_is_the_rate_that_is_measured() -> None:
    features = features_of(12, 5)
    rate, _ = rate_share(features, eps_squared=0.01)
    assert float(rate) == pytest.approx(float(coding_rate(features[None])), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(4, 4), (8, 4), (3, 7)])
def test_orthogonal_features_have_the_largest_rate(n: int, d: int) -> None:
    """Each direction as often as any other: the whole room is filled."""
    rows = torch.eye(max(n, d), dtype=torch.float64)[:n, :]
    features = torch.eye(d, dtype=torch.float64).repeat(n // d, 1) if n > d else rows[:, :d]
    rate, share = rate_share(5 * features, eps_squared=0.25)
    assert float(share) == pytest.approx(1.0, abs=1e-12)
    assert float(rate) == pytest.approx(largest_rate(n, d, eps_squared=0.25), rel=1e-12)


def test_equal_features_have_the_rate_of_one_direction() -> None:
    """All of the energy in one eigenvalue: 1/2 log(1 + d / eps^2)."""
    features = torch.ones(6, 4, dtype=torch.float64)
    rate, share = rate_share(features, eps_squared=0.5)
    assert float(rate) == pytest.approx(0.5 * math.log(1 + 4 / 0.5), rel=1e-12)
    assert float(share) < 0.6


@given(SIZES, SIZES, ERRORS)
def test_the_gradient_is_that_of_autograd_and_of_differences(
    n: int, d: int, eps_squared: float
) -> None:
    features = features_of(n, d).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f: rate_share(f, eps_squared=eps_squared)[0], (features,), atol=1e-4, rtol=1e-3
    )


def test_the_gradient_is_the_closed_form() -> None:
    """dR/dF = a (I + a F F^T)^-1 F for features of length 1, and its part along each is lost."""
    features = torch.nn.functional.normalize(features_of(7, 4)).requires_grad_()
    rate, _ = rate_share(features, eps_squared=0.3)
    (found,) = torch.autograd.grad(rate, features)
    f, a = features.detach(), 4 / (7 * 0.3)
    whole = a * torch.linalg.inv(torch.eye(7).double() + a * f @ f.T) @ f
    expected = whole - (whole * f).sum(dim=1, keepdim=True) * f
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_its_second_order_is_the_pairwise_term() -> None:
    """R = a n / 2 - a^2 / 4 sum (f_i . f_j)^2 + O(a^3): U-MAE's term is its second order."""
    f = torch.nn.functional.normalize(features_of(6, 5))
    pairs = float((f @ f.T).square().sum())
    errors = []
    for eps_squared in (1e3, 1e2):
        a = 5 / (6 * eps_squared)
        rate = float(rate_share(f, eps_squared=eps_squared)[0])
        errors.append(abs(rate - (a * 6 / 2 - a**2 / 4 * pairs)))
    assert errors[1] / errors[0] == pytest.approx(1e3, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["zero", "equal", "tiny", "one zero"])
def test_it_is_finite_for_any_features(dtype: torch.dtype, kind: str) -> None:
    features = torch.ones(64, 96, dtype=dtype)
    if kind == "zero":
        features = torch.zeros_like(features)
    elif kind == "tiny":
        features = features * 1e-7
    elif kind == "one zero":
        features = torch.randn(64, 96).to(dtype)
        features[3] = 0
    features.requires_grad_()
    rate, share = rate_share(features, eps_squared=1e-3)
    torch.autograd.backward(share)
    assert features.grad is not None
    assert torch.isfinite(rate)
    assert torch.isfinite(features.grad).all()
    if kind == "zero":
        assert float(rate.detach()) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_have_no_rate(value: float) -> None:
    """And are no error here: every process of a run comes to where it looks for them."""
    features = torch.randn(2, 8, 3)
    features[1, 3, 1] = value
    rate, share = rate_share(features, eps_squared=0.25)
    assert torch.isnan(rate).tolist() == torch.isnan(share).tolist() == [False, True]
    assert float(rate[0]) == float(rate_share(features[0], eps_squared=0.25)[0])


@pytest.mark.parametrize(("n", "d", "eps_squared"), [(1024, 768, 1e-3), (64, 256, 1e-6)])
def test_a_small_error_does_not_turn_rounding_into_room(n: int, d: int, eps_squared: float) -> None:
    features = features_of(1, d).float().repeat(n, 1)
    rate, _ = rate_share(features, eps_squared=eps_squared)
    assert float(rate) == pytest.approx(0.5 * math.log1p(d / eps_squared), rel=1e-5)


def test_half_precision_and_autocast_do_not_round_the_rate() -> None:
    features = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    exact = float(rate_share(features.double(), eps_squared=0.25)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rate, _ = rate_share(features, eps_squared=0.25)
    assert rate.dtype == torch.float32
    assert float(rate) == pytest.approx(exact, rel=1e-5)
    wide, _ = rate_share(features, eps_squared=0.25, dtype=torch.float64)
    assert wide.dtype == torch.float64


def test_images_are_measured_apart() -> None:
    tokens = torch.randn(3, 5, 4, dtype=torch.float64)
    rate, share = rate_share(tokens, eps_squared=0.25)
    assert rate.shape == share.shape == (3,)
    for index in range(3):
        assert float(rate[index]) == pytest.approx(
            float(rate_share(tokens[index], eps_squared=0.25)[0]), rel=1e-12
        )


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 0)])
def test_what_is_no_set_of_features_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features must be \(\.\.\., n, d\)"):
        rate_share(torch.zeros(shape), eps_squared=0.25)


@pytest.mark.parametrize("eps_squared", [0.0, -1.0, math.inf, math.nan])
def test_an_error_that_is_none_is_refused(eps_squared: float) -> None:
    with pytest.raises(ValueError, match="eps_squared must be a finite number above 0"):
        rate_share(torch.ones(2, 2), eps_squared=eps_squared)
