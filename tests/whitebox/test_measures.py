"""Measures against definitions written as loops, closed forms, autograd and the golden file."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import golden, golden_model, some
from torch import Tensor

from crate_mae.whitebox.measures import (
    class_rate_reduction,
    coding_rate,
    compression_gradient,
    cosine,
    effective_rank,
    gini_sparsity,
    head_coding_rates,
    hoyer_sparsity,
    lasso_objective,
    relative_error,
    small_fraction,
    subspace_coding_rate,
    unit_rows,
    zero_fraction,
)

sizes = st.integers(1, 6)
seeds = st.integers(0, 10_000)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rate_by_loops(rows: list[list[float]], eps_squared: float, normalize: bool) -> float:
    """1/2 logdet(I + d / (N eps^2) Z^T Z), entry by entry, the determinant by numpy."""
    count, width = len(rows), len(rows[0])
    scaled = []
    for row in rows:
        length = math.sqrt(sum(x * x for x in row))
        scaled.append([x / length if normalize and length > 0 else x for x in row])
    inner = np.eye(width)
    for i in range(width):
        for j in range(width):
            for row in scaled:
                inner[i, j] += width / (count * eps_squared) * row[i] * row[j]
    sign, logdet = np.linalg.slogdet(inner)
    assert sign == 1
    return float(logdet) / 2


@some
@given(batch=sizes, tokens=sizes, width=sizes, seed=seeds, normalize=st.booleans())
def test_coding_rate_is_its_definition(
    batch: int, tokens: int, width: int, seed: int, normalize: bool
) -> None:
    Z = normal(batch, tokens, width, seed=seed)
    found = coding_rate(Z, eps_squared=0.3, normalize=normalize)
    expected = [rate_by_loops(z.tolist(), 0.3, normalize) for z in Z]
    assert found.shape == (batch,)
    assert found.tolist() == pytest.approx(expected, abs=1e-10)


@some
@given(heads=sizes, tokens=sizes, width=sizes, seed=seeds, normalize=st.booleans())
def test_subspace_coding_rate_is_its_definition(
    heads: int, tokens: int, width: int, seed: int, normalize: bool
) -> None:
    w = normal(2, heads, tokens, width, seed=seed)
    parts = [[rate_by_loops(head.tolist(), 0.01, normalize) for head in image] for image in w]
    found = head_coding_rates(w, normalize=normalize)
    assert torch.allclose(found, torch.tensor(parts, dtype=torch.float64), atol=1e-9)
    whole = subspace_coding_rate(w, normalize=normalize)
    assert whole.tolist() == pytest.approx([sum(part) for part in parts], abs=1e-9)


def test_rates_of_the_golden_file() -> None:
    model = golden_model().eval()
    with torch.no_grad():
        tokens = model.encoder.embed(golden()["images"])
        for index, layer in enumerate(model.encoder.layers):
            w = layer.mssa.project(layer.norm1(tokens))
            stored = golden()[f"full.subspace.{index}"]  # concat_k w_k
            assert torch.allclose(w.transpose(1, 2).flatten(2), stored, atol=1e-5)
            rates = subspace_coding_rate(w)
            mean, std = golden()["full.coding_rate_mean_std"][index].tolist()
            assert float(rates.mean()) == pytest.approx(mean, rel=1e-5)
            assert float(rates.std()) == pytest.approx(std, rel=1e-4)
            attention = layer.mssa.attention(layer.norm1(tokens))
            assert torch.allclose(attention, golden()[f"full.attention.{index}"], atol=1e-5)
            tokens = layer(tokens)
            zeros = float(golden()["full.zero_fraction"][index])
            assert float(zero_fraction(tokens).mean()) == pytest.approx(zeros, abs=1e-6)


def test_closed_forms_of_the_rate() -> None:
    d, eps = 5, 0.04
    orthonormal = torch.eye(d)[None]  # N = d tokens, each its own direction
    assert float(coding_rate(orthonormal, eps_squared=eps)) == pytest.approx(
        d / 2 * math.log(1 + d / (d * eps))
    )
    identical = torch.ones(1, 7, d)  # rank one: a single eigenvalue N
    assert float(coding_rate(identical, eps_squared=eps)) == pytest.approx(
        math.log(1 + d / eps) / 2
    )
    wide = normal(1, 1, d)  # one token
    assert float(coding_rate(wide, eps_squared=eps, normalize=False)) == pytest.approx(
        math.log(1 + d / eps * float(wide.square().sum())) / 2
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_zero_and_repeated_tokens_have_a_rate(normalize: bool) -> None:
    tokens = torch.zeros(1, 4, 3)
    assert coding_rate(tokens, normalize=normalize).tolist() == [0.0]
    assert subspace_coding_rate(tokens[:, None], normalize=normalize).tolist() == [0.0]
    tokens[0, :3] = torch.tensor([1e-30, 2.0, -1.0])
    assert bool(coding_rate(tokens, normalize=normalize).isfinite().all())
    tiny = torch.full((1, 2, 3), 1e-42)  # its square is 0 in float32
    assert float(coding_rate(tiny)) == pytest.approx(math.log(1 + 3 / 0.01) / 2)


GOOD = torch.ones(1, 2, 3)


@pytest.mark.parametrize(
    ("tokens", "eps_squared", "message"),
    [
        (GOOD[0], 0.01, r"\(B, N, d\)"),
        (GOOD, 0.0, "eps_squared must be"),
        (GOOD, math.nan, "eps_squared must be"),
        (GOOD * math.nan, 0.01, "not finite"),
        (GOOD[:, :0], 0.01, "nothing to measure"),
    ],
)
def test_rates_refuse_what_cannot_be_measured(
    tokens: Tensor, eps_squared: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        coding_rate(tokens, eps_squared=eps_squared)


def test_subspace_rates_need_a_dimension_of_heads() -> None:
    with pytest.raises(ValueError, match=r"\(B, K, N, p\)"):
        subspace_coding_rate(GOOD)


@some
@given(heads=sizes, tokens=sizes, width=sizes, seed=seeds)
def test_the_compression_gradient_is_autograds(
    heads: int, tokens: int, width: int, seed: int
) -> None:
    dim = heads * width
    Z = normal(2, tokens, dim, seed=seed).requires_grad_()
    U = normal(heads, dim, width, seed=seed + 1)
    w = torch.stack([Z @ basis for basis in U], dim=1)
    rate = subspace_coding_rate(w, eps_squared=0.2, normalize=False)
    (expected,) = torch.autograd.grad(rate.sum(), Z)
    found = compression_gradient(Z.detach(), U, eps_squared=0.2)
    assert torch.allclose(found, expected, atol=1e-8, rtol=1e-8)


def test_the_compression_gradient_by_loops() -> None:
    Z, U, eps = normal(1, 4, 6)[0], normal(2, 6, 3, seed=1), 0.5
    a = 3 / (4 * eps)
    expected = torch.zeros_like(Z)
    for basis in U:
        w = Z @ basis
        inverse = torch.linalg.inv(torch.eye(4, dtype=torch.float64) + a * w @ w.T)
        expected += a * inverse @ w @ basis.T
    assert torch.allclose(compression_gradient(Z[None], U, eps_squared=eps)[0], expected)


def test_the_gradient_of_orthonormal_tokens() -> None:
    """Z = U = I: every direction shrinks by a / (1 + a)."""
    identity = torch.eye(4, dtype=torch.float64)
    a = 4 / (4 * 0.5)
    found = compression_gradient(identity[None], identity[None], eps_squared=0.5)
    assert torch.allclose(found[0], a / (1 + a) * identity)


def test_class_rate_reduction_is_its_definition() -> None:
    features = unit_rows(normal(30, 4))
    labels = torch.arange(30) % 3
    moments = torch.zeros(4, 4, 4, dtype=torch.float64)  # one class more than there are images of
    counts = torch.zeros(4)
    for row, label in zip(features, labels.tolist(), strict=True):
        moments[label] += torch.outer(row, row)
        counts[label] += 1
    gap, whole, within = class_rate_reduction(moments, counts, eps_squared=0.1)
    expected = rate_by_loops(features.tolist(), 0.1, False)
    parts = [rate_by_loops(features[labels == c].tolist(), 0.1, False) for c in range(3)]
    assert whole == pytest.approx(expected)
    assert within == pytest.approx(sum(parts) / 3)
    assert gap == pytest.approx(expected - sum(parts) / 3)
    with pytest.raises(ValueError, match="no features"):
        class_rate_reduction(moments, torch.zeros(4))


def test_class_rate_reduction_of_separate_and_of_equal_classes() -> None:
    """Three classes on an axis each, and three that are all on the same one."""
    axes = torch.diag_embed(torch.eye(3)) * 10  # ten features along axis c
    counts = torch.full((3,), 10)
    eps = 0.01
    gap, whole, within = class_rate_reduction(axes, counts, eps_squared=eps)
    assert whole == pytest.approx(3 / 2 * math.log(1 + 3 / (30 * eps) * 10))
    assert within == pytest.approx(math.log(1 + 3 / (10 * eps) * 10) / 2)
    assert gap == pytest.approx(whole - within)
    same = axes[:1].expand(3, -1, -1)
    assert class_rate_reduction(same, counts)[0] == pytest.approx(0, abs=1e-12)


@some
@given(tokens=sizes, width=sizes, seed=seeds)
def test_effective_rank_is_its_definition(tokens: int, width: int, seed: int) -> None:
    X = normal(tokens, width, seed=seed)
    values = np.linalg.svd(X.numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = math.exp(-sum(share * math.log(share) for share in shares if share > 0))
    assert float(effective_rank(X)) == pytest.approx(expected, rel=1e-6)


def test_effective_rank_of_known_matrices() -> None:
    assert float(effective_rank(torch.eye(5))) == pytest.approx(5)
    assert float(effective_rank(torch.ones(4, 7))) == pytest.approx(1, abs=1e-5)
    assert float(effective_rank(torch.zeros(4, 7))) == 0
    assert float(effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0])))) == pytest.approx(2)
    assert effective_rank(normal(2, 3, 4, 5)).shape == (2, 3)


def test_sparsity_of_known_vectors() -> None:
    one, equal, zero = torch.tensor([0.0, 0, -3, 0]), torch.full((4,), -2.0), torch.zeros(4)
    assert hoyer_sparsity(torch.stack([one, equal, zero])).tolist() == pytest.approx([1, 0, 1])
    assert gini_sparsity(torch.stack([one, equal, zero])).tolist() == pytest.approx([0.75, 0, 0.75])
    tiny = one * 1e-200
    assert float(hoyer_sparsity(tiny.double() * 1e-100)) == pytest.approx(1)


@some
@given(width=st.integers(2, 8), seed=seeds)
def test_sparsity_is_its_definition(width: int, seed: int) -> None:
    x = normal(width, seed=seed)
    sizes = [abs(v) for v in x.tolist()]
    norms = sum(sizes), math.sqrt(sum(v * v for v in sizes))
    root = math.sqrt(width)
    hoyer = (root - norms[0] / norms[1]) / (root - 1)
    assert float(hoyer_sparsity(x)) == pytest.approx(hoyer)
    # Gini's other definition: the mean absolute difference over twice the mean.
    pairs = sum(abs(a - b) for a in sizes for b in sizes) / width**2
    assert float(gini_sparsity(x)) == pytest.approx(pairs / (2 * norms[0] / width), abs=1e-12)
    assert torch.allclose(gini_sparsity(x * 7), gini_sparsity(x))


def test_zero_and_small_fractions_by_hand() -> None:
    tokens = torch.tensor([[[0.0, 1.0], [0.0, -0.0]], [[100.0, 1.0], [100.0, 1.1]]])
    assert zero_fraction(tokens).tolist() == [0.75, 0]
    assert small_fraction(tokens).tolist() == [0.75, 0.25]


def test_the_lasso_objective_by_loops() -> None:
    codes, tokens, D = normal(2, 3, 4), normal(2, 3, 4, seed=1), normal(4, 4, seed=2)
    found = lasso_objective(codes, tokens, D, 0.3)
    for image in range(2):
        total = 0.0
        for z, x in zip(codes[image].tolist(), tokens[image].tolist(), strict=True):
            for i in range(4):
                coded = sum(float(D[i, j]) * z[j] for j in range(4))
                total += (x[i] - coded) ** 2 / 2
            total += 0.3 * sum(abs(v) for v in z)
        assert float(found[image]) == pytest.approx(total / 3)


@given(atoms=st.sampled_from([3, 6, 24]), seed=st.integers(0, 1000), weight=st.floats(0, 2))
@some
def test_an_ista_step_cannot_raise_the_objective_up_to_its_bound(
    atoms: int, seed: int, weight: float
) -> None:
    """F(z') <= F(z) - (1 / eta - |D|^2 / 2) |z' - z|^2 from feasible codes z, token by token."""
    D = normal(6, atoms, seed=seed)
    eta = 2 / float(torch.linalg.matrix_norm(D, ord=2)) ** 2
    x, codes = normal(50, 1, 6, seed=seed + 1), normal(50, 1, atoms, seed=seed + 2).relu()
    step = (codes + eta * (x - codes @ D.T) @ D - eta * weight).relu()
    before, after = (lasso_objective(z, x, D, weight) for z in (codes, step))
    assert bool((after <= before + 1e-9 * (1 + before)).all())


def test_beyond_its_bound_an_ista_step_can_raise_the_objective() -> None:
    D, x, z = torch.ones(1, 1), torch.ones(1, 1, 1), torch.full((1, 1, 1), 1.5)
    before = float(lasso_objective(z, x, D, 0.0))
    for eta, lower in ((1.9, True), (2.1, False)):
        step = (z + eta * (x - z @ D.T) @ D).relu()
        assert (float(lasso_objective(step, x, D, 0.0)) < before) == lower


def test_cosine_and_relative_error_by_hand() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[6.0, 8.0], [1.0, 0.0], [-1.0, 0.0]])
    assert cosine(a, b).tolist() == pytest.approx([1, 0, -1])
    assert relative_error(a, b).tolist() == pytest.approx([0.5, 1, 2])
    assert relative_error(torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [0]
    assert relative_error(torch.ones(1, 2), torch.zeros(1, 2)).tolist() == [math.inf]
