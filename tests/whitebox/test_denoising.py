"""Compression beside denoising: closed forms, independent densities, what the theory promises."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    MultivariateNormal,
)

from crate_mae.models.mssa import MSSA
from crate_mae.whitebox.denoising import (
    Mixture,
    attention_limit,
    compression_step,
    denoise_exact,
    matched_temperature,
    mixture_score,
    project,
    project_own,
    responsibilities,
    sample_tokens,
    subspace_attention,
    subspaces,
)
from crate_mae.whitebox.denoising_study import (
    MEASURES,
    METHODS,
    Setting,
    measure,
    study,
    study_table,
    sweeps,
    write_study,
)
from crate_mae.whitebox.measures import compression_gradient


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_mixture(
    dim: int = 6,
    size: int = 2,
    count: int = 3,
    *,
    coherence: float | None = 0.0,
    variance: float = 1.7,
    noise: float = 0.6,
) -> Mixture:
    U = subspaces(dim, size, count, coherence=coherence, generator=rng(1))
    return Mixture(bases=U, variance=variance, noise=noise)


def covariances(mixture: Mixture) -> Tensor:
    U = mixture.bases
    eye = torch.eye(U.shape[1], dtype=U.dtype)
    return mixture.variance * U @ U.mT + mixture.noise**2 * eye


def log_probability(density: Distribution, x: Tensor) -> Tensor:
    result: Tensor = density.log_prob(x)
    return result


# --- subspaces and tokens ---------------------------------------------------------------------


@settings(max_examples=25)
@given(
    size=st.integers(1, 4),
    count=st.integers(1, 5),
    spare=st.integers(0, 3),
    coherence=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_subspaces_are_orthonormal_and_exactly_as_coherent_as_asked(
    size: int, count: int, spare: int, coherence: float, seed: int
) -> None:
    U = subspaces(size * count + spare, size, count, coherence=coherence, generator=rng(seed))
    eye = torch.eye(size, dtype=torch.float64)
    for j in range(count):
        for k in range(count):
            cosines = torch.linalg.svdvals(U[j].T @ U[k])
            wanted = torch.full_like(cosines, 1.0 if j == k else coherence)
            torch.testing.assert_close(cosines, wanted, atol=1e-10, rtol=0)
        torch.testing.assert_close(U[j].T @ U[j], eye, atol=1e-10, rtol=0)


def test_random_subspaces_may_be_more_than_fit() -> None:
    U = subspaces(4, 3, 6, coherence=None, generator=rng())
    eye = torch.eye(3, dtype=torch.float64).expand(6, 3, 3)
    torch.testing.assert_close(U.mT @ U, eye)
    again = subspaces(4, 3, 6, coherence=None, generator=rng())
    assert torch.equal(U, again)
    assert not torch.equal(U, subspaces(4, 3, 6, coherence=None, generator=rng(1)))


@pytest.mark.parametrize(
    ("sizes", "coherence", "says"),
    [
        ((4, 5, 1), 0.0, "no larger than the space"),
        ((4, 0, 1), None, "at least 1"),
        ((4, 2, 3), 0.0, "need 6 dimensions, not 4"),
        ((8, 2, 3), 1.0, "not 1.0"),
        ((8, 2, 3), -0.1, "not -0.1"),
    ],
)
def test_subspaces_that_cannot_be(
    sizes: tuple[int, int, int], coherence: float | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        subspaces(*sizes, coherence=coherence, generator=rng())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"noise": 0.0}, "noise must be"),
        ({"variance": math.nan}, "variance must be"),
        ({"bases": torch.ones(2, 4, 2)}, "orthonormal"),
        ({"bases": torch.ones(4, 2)}, r"\(K, d, p\)"),
    ],
)
def test_mixtures_that_cannot_be(changed: dict[str, float | Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(a_mixture(), **changed)  # type: ignore[arg-type]


def test_tokens_have_the_moments_that_were_asked_for() -> None:
    mixture = a_mixture()
    tokens = sample_tokens(mixture, 4, 20_000, generator=rng())
    assert (
        tokens.clean - project_own(tokens.clean, mixture.bases, tokens.labels)
    ).abs().max() < 1e-12
    shares = tokens.labels.flatten().bincount() / tokens.labels.numel()
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.01, rtol=0)
    for k, covariance in enumerate(covariances(mixture)):
        x = tokens.noisy[tokens.labels == k]
        torch.testing.assert_close(x.T @ x / len(x), covariance, atol=0.08, rtol=0)
    same = sample_tokens(mixture, 4, 20_000, generator=rng())
    assert all(torch.equal(a, b) for a, b in zip(tokens, same, strict=True))


def test_projection_onto_the_own_subspace_by_loops() -> None:
    mixture = a_mixture(coherence=None)
    tokens = sample_tokens(mixture, 2, 5, generator=rng())
    found = project_own(tokens.noisy, mixture.bases, tokens.labels)
    for b in range(2):
        for n in range(5):
            U = mixture.bases[tokens.labels[b, n]]
            torch.testing.assert_close(found[b, n], U @ (U.T @ tokens.noisy[b, n]))


# --- the exact denoiser -----------------------------------------------------------------------


def test_responsibilities_at_hand_made_points() -> None:
    axes = torch.eye(2, dtype=torch.float64)[:, :, None]  # the two axes of the plane
    mixture = Mixture(bases=axes, variance=1.0, noise=1.0)
    points = torch.tensor([[[2.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1e6, 0.0], [0.0, -2.0]]])
    # Both Gaussians have determinant 2, so only exp(x^2 / 4) of the own coordinate differs.
    first = [1 / (1 + math.exp(-1)), 0.5, 0.5, 1.0, 1 / (1 + math.exp(1))]
    expected = torch.tensor([first], dtype=torch.float64)
    found = responsibilities(points, mixture)
    torch.testing.assert_close(found[..., 0], expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 5, dtype=torch.float64))


@pytest.mark.parametrize("coherence", [0.0, 0.5, None])
def test_the_score_is_the_gradient_of_an_independent_log_density(coherence: float | None) -> None:
    mixture = a_mixture(coherence=coherence)
    density = MixtureSameFamily(
        Categorical(logits=torch.zeros(3, dtype=torch.float64)),
        MultivariateNormal(torch.zeros(3, 6, dtype=torch.float64), covariances(mixture)),
    )
    x = sample_tokens(mixture, 2, 10, generator=rng()).noisy.requires_grad_()
    (expected,) = torch.autograd.grad(log_probability(density, x).sum(), x)
    torch.testing.assert_close(mixture_score(x.detach(), mixture), expected)


def test_one_subspace_gives_the_wiener_filter() -> None:
    mixture = a_mixture(5, 2, 1)
    signal = mixture.variance * mixture.bases[0] @ mixture.bases[0].T
    x = sample_tokens(mixture, 1, 7, generator=rng()).noisy
    wiener = signal @ torch.linalg.inv(covariances(mixture)[0])
    torch.testing.assert_close(denoise_exact(x, mixture), x @ wiener.T)


def test_the_posterior_mean_is_the_integral_over_the_lines() -> None:
    mixture = a_mixture(3, 1, 2, coherence=0.5)
    x = torch.tensor([[[0.7, -0.2, 0.4], [-1.5, 0.3, 0.9]]], dtype=torch.float64)
    a = torch.linspace(-15, 15, 20_001, dtype=torch.float64)
    for n in range(2):
        mass, moment = torch.zeros(()).double(), torch.zeros(3).double()
        for k in range(2):
            z = a[:, None] * mixture.bases[k, :, 0]
            gap = (x[0, n] - z).square().sum(-1)
            weight = torch.exp(-a.square() / (2 * mixture.variance) - gap / (2 * mixture.noise**2))
            mass, moment = mass + weight.sum(), moment + weight @ z
        torch.testing.assert_close(denoise_exact(x, mixture)[0, n], moment / mass)


# --- the compression steps --------------------------------------------------------------------


def test_the_rates_gradient_is_the_score_of_a_product_of_gaussians() -> None:
    mixture = a_mixture(coherence=None)
    x = sample_tokens(mixture, 1, 9, generator=rng()).noisy
    eps_squared, size = 0.3, 2
    y = x.clone().requires_grad_()
    log_density = torch.zeros((), dtype=torch.float64)
    for U in mixture.bases:
        w = x[0] @ U
        fitted = w.T @ w / 9 + eps_squared / size * torch.eye(size)
        gaussian = MultivariateNormal(torch.zeros(size, dtype=torch.float64), fitted)
        log_density = log_density + log_probability(gaussian, y[0] @ U).sum()
    (score,) = torch.autograd.grad(log_density, y)
    gradient = compression_gradient(x, mixture.bases, eps_squared=eps_squared)
    torch.testing.assert_close(-9 * gradient, score)


def test_the_default_step_is_a_wiener_filter_in_every_head() -> None:
    mixture = a_mixture()
    x = sample_tokens(mixture, 2, 9, generator=rng()).noisy
    found = compression_step(x, mixture.bases, eps_squared=0.4)
    for b in range(2):
        expected = torch.zeros(9, 6, dtype=torch.float64)
        for U in mixture.bases:
            C = U.T @ x[b].T @ x[b] @ U / 9
            filter_ = C @ torch.linalg.inv(C + 0.4 / 2 * torch.eye(2))
            expected += x[b] @ U @ filter_.T @ U.T
        torch.testing.assert_close(found[b], expected)
    half = compression_step(x, mixture.bases, eps_squared=0.4, step=0.5 * 9 * 0.4 / 2)
    torch.testing.assert_close(half, (x + found) / 2)


@pytest.mark.parametrize(("dim", "count"), [(8, 2), (8, 8)])
def test_mssa_here_is_the_models_own_tied_layer(dim: int, count: int) -> None:
    size = dim // count
    U = subspaces(dim, size, count, coherence=None, generator=rng())
    layer = MSSA(dim=dim, num_heads=count, output_projection="tied").double()
    with torch.no_grad():
        layer.subspaces.weight.copy_(U.mT.reshape(dim, dim))
        x = torch.randn(2, 5, dim, generator=rng(), dtype=torch.float64)
        expected = layer(x)
    torch.testing.assert_close(subspace_attention(x, U, temperature=math.sqrt(size)), expected)


def test_a_temperature_must_be_above_zero() -> None:
    mixture = a_mixture()
    with pytest.raises(ValueError, match="not 0"):
        subspace_attention(torch.ones(1, 2, 6), mixture.bases, temperature=0)


@pytest.mark.parametrize("coherence", [0.0, 0.6])
def test_a_softmax_head_tends_to_its_limit(coherence: float) -> None:
    mixture = a_mixture(4, 2, 2, coherence=coherence)
    keys = project(sample_tokens(mixture, 1, 400_000, generator=rng()).noisy, mixture.bases)[0]
    query = torch.tensor([[[0.8, -0.5, 0.3, 1.0]]], dtype=torch.float64)
    expected = torch.zeros(4, dtype=torch.float64)
    for U, w in zip(mixture.bases, keys, strict=True):
        weights = (w @ (U.T @ query[0, 0]) / 1.5).softmax(0)
        expected += U @ (weights @ w)
    found = attention_limit(query, mixture, temperature=1.5)[0, 0]
    # Entries are near 1, and 400,000 tokens leave a few thousandths of sampling noise.
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_at_the_matched_temperature_an_open_head_is_the_exact_denoiser() -> None:
    mixture = a_mixture(5, 2, 1)  # one subspace: nothing to choose, the gate is open
    x = sample_tokens(mixture, 1, 6, generator=rng()).noisy
    limit = attention_limit(x, mixture, temperature=matched_temperature(mixture))
    torch.testing.assert_close(limit, denoise_exact(x, mixture))


# --- what the theory promises, and where it must fail -------------------------------------------

FEW_TOKENS = Setting(noise=0.2)  # d = K p = 128, K = 8, N = 48: N / K = 6 signals in p = 16


@pytest.fixture(scope="module")
def few_tokens() -> dict[tuple[str, str], float]:
    return measure(FEW_TOKENS, seed=0, num_tokens=960)


def test_few_tokens_low_noise_the_gradient_moves_towards_the_right_subspace(
    few_tokens: dict[tuple[str, str], float],
) -> None:
    # In every head N / K = 6 tokens span 6 of 16 directions, and noise in the other ten can be told
    # from signal: cosine about sqrt(10 / 16) = 0.79 if all of it went and nothing else. Directions
    # drawn by chance have cosines of 0 +- 1 / sqrt(128) = 0.09.
    assert few_tokens["gradient", "turning"] > 0.5
    assert few_tokens["gradient", "alignment"] > 0.5
    assert few_tokens["gradient", "toward"] > 0.95
    assert few_tokens["gradient", "outside"] < 0.8 * few_tokens["noisy", "outside"]
    assert few_tokens["gradient", "best_error"] <= few_tokens["gradient", "error"] < 0.8
    assert few_tokens["gradient", "rate"] < few_tokens["noisy", "rate"]


def test_mssa_moves_towards_the_right_subspace(few_tokens: dict[tuple[str, str], float]) -> None:
    # Gates open, as p / 2 = 8 is above log(K - 1) = 1.9; a wrong head lets only about the 1 / K of
    # a uniform softmax through, so in the limit nearly all of the noise outside goes.
    assert few_tokens["mssa_limit", "turning"] > 0.95
    assert few_tokens["mssa_limit", "alignment"] > 0.95
    # A finite set adds the noise of a mean over 48 tokens in each of the 7 wrong heads.
    assert few_tokens["mssa_matched", "turning"] > 0.5
    assert few_tokens["mssa_matched", "toward"] > 0.9


@pytest.mark.parametrize("method", ["gradient_wrong", "mssa_wrong"])
def test_with_wrong_subspaces_nothing_of_it_is_left(
    few_tokens: dict[tuple[str, str], float], method: str
) -> None:
    assert abs(few_tokens[method, "turning"]) < 0.05
    assert few_tokens[method, "toward"] < 0.5
    assert few_tokens[method, "outside"] >= 0.99 * few_tokens["noisy", "outside"]


def test_the_exact_denoiser_is_never_beaten(few_tokens: dict[tuple[str, str], float]) -> None:
    told = {"projection"}  # knows the subspace
    for method in METHODS.keys() - told:
        assert few_tokens["exact", "error"] <= few_tokens[method, "error"] * 1.001
    loud = measure(replace(FEW_TOKENS, noise=1.5), seed=0, num_tokens=960)
    assert loud["exact", "error"] < min(loud[m, "error"] for m in METHODS.keys() - {"exact"} - told)


def test_with_many_tokens_the_gradient_only_shrinks() -> None:
    # Every direction then holds the same energy s^2 / K + sigma^2 = 1 + sigma^2, so the linear
    # filter is one factor for all: g = (1 + sigma^2) / (1 + 2 sigma^2), with eps^2 / p = sigma^2.
    mixture = a_mixture(16, 4, 4, variance=4.0, noise=0.5)
    tokens = sample_tokens(mixture, 1, 50_000, generator=rng())
    moved = compression_step(tokens.noisy, mixture.bases, eps_squared=4 * 0.25)
    factor = 1.25 / 1.5
    # C_k is off by about sqrt(p / N) = 0.01 of itself, the filter by a sixth of that.
    assert (moved - factor * tokens.noisy).norm() < 0.01 * moved.norm()
    error = (moved - tokens.clean).square().sum() / (tokens.noisy - tokens.clean).square().sum()
    assert float(error) == pytest.approx(((1 - factor) ** 2 + factor**2 * 0.25) / 0.25, rel=0.02)


def test_noise_outside_all_subspaces_is_out_of_the_gradients_reach() -> None:
    # One subspace: the step shrinks what is within and leaves what is outside as it is.
    mixture = a_mixture(8, 2, 1)
    tokens = sample_tokens(mixture, 1, 30, generator=rng())
    moved = compression_step(tokens.noisy, mixture.bases, eps_squared=0.5)
    own = project_own(tokens.noisy, mixture.bases, tokens.labels)
    own_moved = project_own(moved, mixture.bases, tokens.labels)
    torch.testing.assert_close(moved - own_moved, tokens.noisy - own)
    assert (own_moved.norm(dim=-1) < own.norm(dim=-1)).all()
    found = measure(Setting(count=1, coherence=None), seed=0, num_tokens=96)
    assert found["gradient", "toward"] == 0
    assert found["gradient", "turning"] < 0


def test_coherent_subspaces_break_the_promise() -> None:
    # At cosine 0.9 the heads' gradients add up along what all subspaces share, which is where the
    # signal is, so the step takes signal away first.
    found = measure(Setting(coherence=0.9), seed=0, num_tokens=480)
    assert found["gradient", "turning"] < 0
    assert found["gradient", "toward"] < 0.5


# --- the experiment ---------------------------------------------------------------------------


def test_measures_by_loops() -> None:
    setting = Setting(dim=6, size=2, count=2, tokens=5, coherence=None, precision=2.0)
    found = measure(setting, seed=3, num_tokens=10)
    generator = rng(3)
    U = subspaces(6, 2, 2, coherence=None, generator=generator)
    subspaces(6, 2, 2, coherence=None, generator=generator)  # the wrong ones
    mixture = Mixture(bases=U, variance=3.0, noise=0.5)
    z, x, labels = sample_tokens(mixture, 2, 5, generator=generator)
    eps_squared = 2.0 * 2 * 0.25
    y = compression_step(x, U, eps_squared=eps_squared)
    target = denoise_exact(x, mixture)
    errors, noises, cosines, turns, outside, energy, toward = 0.0, 0.0, [], [], 0.0, 0.0, 0
    for b in range(2):
        for n in range(5):
            moved, best = y[b, n] - x[b, n], target[b, n] - x[b, n]
            unit = x[b, n] / x[b, n].norm()
            across, best_across = moved - unit * (unit @ moved), best - unit * (unit @ best)
            errors += float((y[b, n] - z[b, n]).square().sum())
            noises += float((x[b, n] - z[b, n]).square().sum())
            cosines.append(float(moved @ best / moved.norm() / best.norm()))
            turns.append(float(across @ best_across / across.norm() / best_across.norm()))
            basis = U[labels[b, n]]
            left = (y[b, n] - basis @ (basis.T @ y[b, n])).square().sum()
            left_before = (x[b, n] - basis @ (basis.T @ x[b, n])).square().sum()
            outside, energy = outside + float(left), energy + float(y[b, n] @ y[b, n])
            toward += bool(left / y[b, n].square().sum() < left_before / x[b, n].square().sum())
    rate = 0.0
    for b in range(2):
        for basis in U:
            w = y[b] @ basis
            inner = torch.eye(5, dtype=torch.float64) + 2 / (5 * eps_squared) * w @ w.T
            rate += float(torch.logdet(inner)) / 2 / 5 / 2
    expected = {
        "error": errors / noises,
        "alignment": sum(cosines) / 10,
        "turning": sum(turns) / 10,
        "outside": outside / energy,
        "toward": toward / 10,
        "rate": rate,
    }
    for name, value in expected.items():
        assert found["gradient", name] == pytest.approx(value, abs=1e-12), name


def test_controls_and_bounds_of_the_measures() -> None:
    found = measure(Setting(dim=16, size=4, count=4, tokens=8), seed=0, num_tokens=64)
    assert set(found) == {(method, name) for method in METHODS for name in MEASURES}
    assert all(math.isfinite(value) for value in found.values())
    assert found["noisy", "error"] == 1
    assert found["noisy", "best_step"] == 0
    assert found["exact", "alignment"] == pytest.approx(1)
    assert found["shrink", "turning"] == 0
    assert found["shrink", "toward"] == 0
    assert found["projection", "outside"] == pytest.approx(0, abs=1e-12)
    assert found["shrink", "rate_equal_energy"] == pytest.approx(found["noisy", "rate"])
    assert all(found[m, "best_error"] <= found[m, "error"] + 1e-12 for m in METHODS)


SMALL = Setting(dim=8, size=2, count=2, tokens=4)


def test_rows_are_means_and_unbiased_spreads_over_seeds() -> None:
    calls: list[tuple[int, int]] = []
    cells = [("noise", SMALL), ("tokens", SMALL), ("count", replace(SMALL, coherence=None))]
    rows = study(cells, seeds=3, first_seed=5, num_tokens=8, progress=lambda *c: calls.append(c))
    assert calls == [(1, 2), (2, 2)]  # a setting on two axes is measured once
    assert len(rows) == 3 * len(METHODS) * len(MEASURES)
    values = [measure(SMALL, seed=s, num_tokens=8)["mssa", "error"] for s in (5, 6, 7)]
    mean = sum(values) / 3
    (row,) = [
        r for r in rows if (r["axis"], r["method"], r["measure"]) == ("noise", "mssa", "error")
    ]
    assert row["mean"] == pytest.approx(mean)
    assert row["std"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
    assert {row["coherence"] for row in rows} == {0.0, "random"}
    once = study(cells[:1], seeds=1, num_tokens=8)
    assert all(row["std"] is None for row in once)


def test_numbers_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        study([("noise", SMALL)], seeds=0)
    with pytest.raises(ValueError, match="noise must be a finite number above 0, not -1"):
        Setting(noise=-1)


def test_each_axis_changes_one_thing_around_its_default() -> None:
    base = Setting()
    for quick in (False, True):
        cells = sweeps(quick=quick)
        assert {axis for axis, _ in cells} == {
            *("noise", "tokens", "coherence", "count"),
            *("dim", "size", "precision", "temperature"),
        }
        assert len(set(cells)) == len(cells)
        for axis, setting in cells:
            together = {"size": "count", "count": "coherence", "dim": "coherence"}.get(axis)
            changed = {
                name for name, value in vars(base).items() if getattr(setting, name) != value
            }
            assert changed <= {axis, together}
    assert len(sweeps(quick=True)) == 3 * 8


def test_files_hold_every_row(tmp_path: Path) -> None:
    rows = study([("noise", SMALL)], seeds=1, num_tokens=8)
    table, record = write_study(rows, tmp_path, parameters={"seed": 0})
    with table.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in read] == [row["mean"] for row in rows]
    assert read[0]["std"] == ""
    content = json.loads(record.read_text())
    assert content["rows"] == rows
    assert content["parameters"] == {"seed": 0}
    assert content["versions"]["torch"] == torch.__version__


def test_the_table_shows_the_default_setting() -> None:
    rows = study([("noise", Setting(noise=0.1)), ("noise", Setting())], seeds=1, num_tokens=48)
    text = study_table(rows)
    (line,) = [line for line in text.splitlines() if line.startswith("gradient ")]
    (row,) = [
        r for r in rows if (r["noise"], r["method"], r["measure"]) == (0.5, "gradient", "alignment")
    ]
    assert f"{row['mean']:.3f}" in line
    assert len(text.splitlines()) == 2 + len(METHODS)
