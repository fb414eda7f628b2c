"""The gradient of R^c as an operator: against the measure, stored numbers, and what it is for."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from model_cases import family_golden, gap, some
from torch import Tensor

from crate_mae.models.exact import ExactCompression, contracted
from crate_mae.whitebox.geometry import subspace_bases
from crate_mae.whitebox.measures import compression_gradient, subspace_coding_rate


def operator_of(dim: int, heads: int, eps_squared: float, seed: int = 0) -> ExactCompression:
    torch.manual_seed(seed)
    return ExactCompression(dim=dim, num_heads=heads, eps_squared=eps_squared).double()


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
def test_it_agrees_with_stored_gradients(precision: torch.dtype) -> None:
    golden, config = family_golden("aot_derived")
    U, tokens = golden["tied.in.U"], golden["layers.in.tokens"].to(precision)
    operator = operator_of(config["dim"], config["heads"], config["eps_squared"])
    with torch.no_grad():
        operator.subspaces.weight.copy_(U.transpose(1, 2).flatten(0, 1))
    operator.to(precision)
    a = (config["dim"] // config["heads"]) / (config["tokens"] * config["eps_squared"])
    limit = 1e-10 if precision == torch.float64 else 1e-5
    assert gap(-a * operator(tokens), golden["exact.gradient"]) <= limit


@given(
    heads=st.integers(1, 3),
    p=st.integers(1, 4),
    tokens=st.integers(1, 7),
    eps_squared=st.floats(0.01, 4),
)
@some
def test_it_is_the_gradient_of_the_rate(
    heads: int, p: int, tokens: int, eps_squared: float
) -> None:
    operator = operator_of(heads * p, heads, eps_squared)
    x = torch.randn(2, tokens, heads * p, dtype=torch.float64)
    a = p / (tokens * eps_squared)
    found = compression_gradient(x, subspace_bases(operator), eps_squared=eps_squared)
    assert gap(-a * operator(x), found) <= 1e-9 * max(1.0, float(found.abs().max()))


def test_the_gradient_is_that_of_automatic_differentiation() -> None:
    operator = operator_of(6, 2, 0.5)
    for tokens in (2, 9):  # fewer and more than the p = 3 dimensions of a head
        x = torch.randn(2, tokens, 6, dtype=torch.float64, requires_grad=True)
        rate = subspace_coding_rate(operator.project(x), eps_squared=0.5, normalize=False).sum()
        (gradient,) = torch.autograd.grad(rate, x)
        assert gap(-(3 / (tokens * 0.5)) * operator(x), gradient) <= 1e-12


def test_gradients_of_the_operator_are_exact() -> None:
    operator = operator_of(4, 2, 0.7)
    for tokens in (1, 5):
        x = torch.randn(1, tokens, 4, dtype=torch.float64, requires_grad=True)

        def run(x: Tensor, U: Tensor) -> Tensor:
            made: Tensor = torch.func.functional_call(operator, {"subspaces.weight": U}, (x,))
            return made

        assert torch.autograd.gradcheck(run, (x, operator.subspaces.weight))


def test_a_step_lowers_the_rate() -> None:
    operator = operator_of(12, 3, 1.0)
    x = torch.randn(4, 20, 12, dtype=torch.float64)
    rates = [
        subspace_coding_rate(operator.project(x + c * operator(x)), eps_squared=1, normalize=False)
        for c in (0.0, 0.1, 0.3)
    ]
    assert bool((rates[1] < rates[0]).all())
    assert bool((rates[2] < rates[1]).all())


def test_half_precision_is_widened() -> None:
    torch.manual_seed(0)
    w = torch.randn(2, 3, 10, 4)
    found = contracted(w.bfloat16(), 0.1)
    assert found.dtype == torch.bfloat16
    assert gap(found, contracted(w, 0.1)) < 0.02
    exact = contracted(w, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gap(contracted(w, 0.1), exact) == 0


def test_maps_are_refused_with_the_reason() -> None:
    operator = operator_of(4, 2, 1.0)
    with pytest.raises(ValueError, match=r"no attention maps.*either sign"):
        operator.attention(torch.randn(1, 3, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="no memberships"):
        operator.membership(torch.randn(1, 3, 4, dtype=torch.float64))
