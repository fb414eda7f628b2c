"""Attention of subspace coordinates with themselves, against its definition and fused kernels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crate_mae.models import attention
from crate_mae.models.attention import SHORT, attend


def by_definition(w: Tensor) -> Tensor:
    """softmax(w w^T / sqrt(p)) w with nothing but sums, token by token."""
    images, heads, tokens, p = w.shape
    y = torch.zeros_like(w)
    for b in range(images):
        for k in range(heads):
            for i in range(tokens):
                scores = [
                    sum(float(w[b, k, i, c]) * float(w[b, k, j, c]) for c in range(p))
                    for j in range(tokens)
                ]
                shares = [math.exp((s - max(scores)) / math.sqrt(p)) for s in scores]
                for j in range(tokens):
                    y[b, k, i] += shares[j] / sum(shares) * w[b, k, j]
    return y


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*(st.integers(1, high) for high in (2, 3, 6, 5))),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.0, 1.0, 8.0]),
)
def test_it_is_its_definition(shape: tuple[int, ...], seed: int, scale: float) -> None:
    w = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()
    torch.testing.assert_close(attend(w), by_definition(w), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own use
def test_derivatives_of_both_orders_and_directions_are_right() -> None:
    torch.manual_seed(0)
    w = torch.randn(2, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attend, w, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(attend, w)
    torch.testing.assert_close(
        torch.func.vmap(attend)(torch.stack([w, 2 * w])), torch.stack([attend(w), attend(2 * w)])
    )


@pytest.mark.parametrize("tokens", [1, 65, SHORT, SHORT + 1])
def test_short_and_fused_agree(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    views = torch.randn(2, tokens, 2, 8).transpose(1, 2)  # not contiguous, as in the model
    weight = torch.randn(2, 2, tokens, 8)
    found = []
    for bound in (0, tokens):
        monkeypatch.setattr(attention, "SHORT", bound)
        w = views.detach().requires_grad_()
        y = attend(w)
        torch.autograd.backward(y, weight)
        assert w.grad is not None
        found.append((y.detach(), w.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_only_short_sequences_get_all_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = attention._weights

    def watched(w: Tensor) -> Tensor:
        made.append(w.shape[-2])
        return plain(w)

    monkeypatch.setattr(attention, "_weights", watched)
    for tokens in (SHORT, SHORT + 1):
        attend(torch.randn(1, 1, tokens, 4))
    assert made == [SHORT]


def test_no_gradient_is_needed_where_none_is_asked_for() -> None:
    w = torch.randn(1, 2, 4, 3)
    assert not attend(w).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(attend(w), attend(w.clone()))
