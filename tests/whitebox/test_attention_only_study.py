"""Many layers of attention alone: the theorem's factor, closed forms, and the layers by loops."""

import math

import pytest
import torch
from model_cases import gap
from torch import Tensor

from crate_mae.whitebox.attention_only_study import (
    LAYERS,
    LayerSetting,
    layer_study,
    layer_table,
    ratios_by_layer,
    theorem_tokens,
)

SMALL = LayerSetting(size=3, count=2, tokens=6, noise=0.3)


def ratio_by_loops(tokens: Tensor, labels: Tensor, bases: Tensor) -> float:
    """Length inside over length outside the own subspace, mean over subspaces, token by token."""
    found = []
    for k, U in enumerate(bases):
        inside = outside = 0.0
        for token, label in zip(tokens, labels.tolist(), strict=True):
            if label == k:
                own = sum(
                    ((token @ column) * column for column in U.unbind(dim=1)), torch.zeros(())
                )
                inside += float((own * own).sum())
                outside += float(((token - own) ** 2).sum())
        found.append(math.sqrt(inside / outside))
    return sum(found) / len(found)


def layer_by_loops(name: str, tokens: Tensor, bases: Tensor, setting: LayerSetting) -> Tensor:
    """One layer by its definition, token by token."""
    moved = []
    heat = math.sqrt(setting.size) if name == "attention_only" else 1.0
    given = tokens
    if name == "attention_only":
        rows = []
        for token in tokens:
            mean = token.mean()
            rows.append((token - mean) / torch.sqrt(((token - mean) ** 2).mean() + 1e-5))
        given = torch.stack(rows)
    for n, token in enumerate(tokens):
        step = torch.zeros_like(token)
        for U in bases:
            scores = [math.exp(float((given[n] @ U) @ (x @ U)) / heat) for x in given]
            for score, x in zip(scores, given, strict=True):
                share = score / sum(scores)
                if name == "thresholded":
                    share = setting.threshold if share > setting.threshold else 0.0
                step = step + share * (U @ (U.mT @ x))
        moved.append(token + setting.step * step)
    return torch.stack(moved)


@pytest.mark.parametrize("name", ["thresholded", "softmax", "attention_only"])
def test_ratios_are_those_of_the_layers_by_loops(name: str) -> None:
    tokens, labels, bases = theorem_tokens(SMALL, generator=torch.Generator().manual_seed(4))
    expected = [ratio_by_loops(tokens, labels, bases)]
    for _ in range(2):
        tokens = layer_by_loops(name, tokens, bases, SMALL)
        expected.append(ratio_by_loops(tokens, labels, bases))
    assert ratios_by_layer(name, SMALL, layers=2, seed=4) == pytest.approx(expected, rel=1e-9)


def test_a_step_on_the_rate_is_the_filter_of_each_head() -> None:
    """Orthogonal subspaces: w_k becomes w_k C (C + delta^2)^-1, C the second moments of the set."""
    tokens, labels, bases = theorem_tokens(SMALL, generator=torch.Generator().manual_seed(4))
    filtered = torch.zeros_like(tokens)
    for U in bases:
        w = tokens @ U
        C = w.mT @ w / len(w)
        noisy = C + SMALL.noise**2 * torch.eye(SMALL.size, dtype=C.dtype)
        filtered += w @ C @ torch.linalg.inv(noisy) @ U.mT
    expected = [ratio_by_loops(tokens, labels, bases), ratio_by_loops(filtered, labels, bases)]
    assert ratios_by_layer("gradient", SMALL, layers=1, seed=4) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("step", "threshold"), [(0.5, 0.6), (1.0, 0.55)])
def test_first_layers_multiply_by_what_the_theorem_says(step: float, threshold: float) -> None:
    setting = LayerSetting(noise=0.05, step=step, threshold=threshold)
    ratios = ratios_by_layer("thresholded", setting, layers=2, seed=0)
    assert ratios[1] / ratios[0] == pytest.approx(1 + step * threshold, rel=1e-9)
    assert ratios[2] / ratios[1] == pytest.approx(setting.predicted, rel=1e-9)


@pytest.mark.parametrize(("noise", "count"), [(0.05, 4), (0.2, 2)])
def test_the_tokens_are_those_of_the_theorem(noise: float, count: int) -> None:
    setting = LayerSetting(noise=noise, count=count, tokens=600)
    tokens, labels, bases = theorem_tokens(setting, generator=torch.Generator().manual_seed(0))
    assert labels.bincount().tolist() == [600 // count] * count
    assert ratio_by_loops(tokens, labels, bases) == pytest.approx(
        1 / (noise * math.sqrt(count - 1)), rel=0.02
    )
    assert setting.first == pytest.approx(1 / (noise * math.sqrt(count - 1)))
    w = torch.einsum("nd,kdp->nkp", tokens, bases)
    back = torch.einsum("nkp,kdp->nd", w, bases)
    assert gap(back, tokens) < 1e-9  # the subspaces fill the space
    own = w[torch.arange(600), labels]
    assert float(own.var()) == pytest.approx(1, rel=0.05)


def test_rows_and_table_hold_what_was_measured() -> None:
    rows = layer_study([SMALL], layers=2, seeds=2, first_seed=4)
    assert {row["method"] for row in rows} == set(LAYERS)
    one = [ratios_by_layer("softmax", SMALL, layers=2, seed=seed) for seed in (4, 5)]
    (found,) = [row for row in rows if (row["method"], row["layer"]) == ("softmax", 2)]
    assert found["ratio"] == pytest.approx((one[0][2] + one[1][2]) / 2)
    assert found["factor"] == pytest.approx((one[0][2] / one[0][1] + one[1][2] / one[1][1]) / 2)
    assert found["std"] == pytest.approx(abs(one[0][2] - one[1][2]) / math.sqrt(2))
    assert found["predicted"] == pytest.approx(1.3)
    text = layer_table(rows)
    (line,) = [line for line in text.splitlines() if line.startswith("delta 0.3 softmax ")]
    assert line.endswith(f"{found['factor']:.3f}")
    alone = layer_study([SMALL], layers=1, seeds=1)
    assert all(row["std"] is None for row in alone)
    assert all((row["factor"] is None) == (row["layer"] == 0) for row in alone)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"noise": 0.0}, "noise must be a finite number above 0, not 0"),
        ({"count": 1}, "count must be at least 2"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1, not 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LayerSetting(**wrong)  # type: ignore[arg-type]


def test_names_and_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be of thresholded, softmax, .*, not 'mlp'"):
        ratios_by_layer("mlp", SMALL, layers=1, seed=0)
    with pytest.raises(ValueError, match="at least 1, not 0 and 1"):
        layer_study([SMALL], layers=0, seeds=1)
