"""The linear probe against scikit-learn, hand-made points and odd sets of labels."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from crate_mae.evaluation import regression
from crate_mae.evaluation.choosing import fold_numbers
from crate_mae.evaluation.features import Features
from crate_mae.evaluation.metrics import wilson_interval
from crate_mae.evaluation.probe import (
    EPOCHS,
    FIXED_PENALTY,
    FIXED_SGD,
    LEARNING_RATES,
    MISSING,
    PENALTIES,
    WEIGHT_DECAYS,
    Normalise,
    Solver,
    fitted_head,
    linear_probe,
)
from crate_mae.sources.splits import hold_out


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These problems are so small that threads only wait for each other."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


def features(
    values: torch.Tensor, labels: torch.Tensor, class_names: tuple[str, ...] | None = None
) -> Features:
    return Features(
        values=values.float(),
        labels=labels.long(),
        names=[str(i) for i in range(len(values))],
        class_names=class_names,
        pool="mean",
        unreadable=[],
    )


def clouds(n: int, *, classes: int = 3, dim: int = 6, seed: int = 0) -> Features:
    """Overlapping Gaussian clouds whose columns have very different scales and are correlated."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(98))
    values = (centres[labels] + torch.randn(n, dim, generator=generator)) @ mixing
    return features(values * torch.logspace(-3, 3, dim) + 5, labels)


def digits() -> tuple[Features, Features]:
    data = load_digits()
    values, labels = torch.from_numpy(data.data), torch.from_numpy(data.target)
    return features(values[:400], labels[:400]), features(values[400:800], labels[400:800])


def sklearn_fit(train: Features, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, d) and biases (C,) of standardised features, in float64."""
    X = standardised(train, train)
    reference = LogisticRegression(
        C=1 / (penalty * len(X)), solver="newton-cholesky", max_iter=1000, tol=1e-9
    )
    assert train.labels is not None
    reference.fit(X, train.labels.numpy())
    return reference.coef_, reference.intercept_


def standardised(train: Features, other: Features) -> np.ndarray:
    values = train.values.double().numpy()
    std = values.std(0)
    std[std == 0] = 1
    scaled: np.ndarray = (other.values.double().numpy() - values.mean(0)) / std
    return scaled


def objective(
    X: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, penalty: float
) -> float:
    total = 0.0
    for x, label in zip(X, labels, strict=True):
        scores = weight @ x + bias
        total += float(np.logaddexp.reduce(scores) - scores[label])
    return total / len(X) + penalty / 2 * float((weight**2).sum())


@pytest.mark.parametrize("data", ["clouds", "digits"])
@pytest.mark.parametrize("penalty", [1.0, 1e-3])
def test_a_fit_is_the_minimum_that_sklearn_finds(
    data: str, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = digits()[0] if data == "digits" else clouds(300)
    mean, scale = regression.standardising(train.values)
    X = (train.values - mean) * scale
    exact = standardised(train, train)
    np.testing.assert_allclose(X.numpy(), exact, atol=1e-4)
    assert train.labels is not None
    fitted = regression.Regression(X, int(train.labels.max()) + 1)
    weight, bias = sklearn_fit(train, penalty)

    assert fitted.fit(X, train.labels, penalty)
    y = train.labels.numpy()
    least = objective(exact, y, weight, bias, penalty)
    found = objective(exact, y, fitted.weight.numpy(), fitted.bias.numpy(), penalty)
    assert found == pytest.approx(least, rel=1e-4)

    monkeypatch.setattr(regression, "GRADIENT_TOLERANCE", 1e-6)
    X = torch.from_numpy(exact)
    fitted = regression.Regression(X, len(bias))
    assert fitted.fit(X, train.labels, penalty)
    np.testing.assert_allclose(fitted.weight.numpy(), weight, atol=1e-3)


def test_without_the_preconditioner_the_minimum_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test = clouds(300), clouds(200, seed=1)
    fast = linear_probe(train, test)
    monkeypatch.setattr(regression, "MAX_PRECONDITIONED", 0)
    slow = linear_probe(train, test)
    assert slow.converged
    assert slow.accuracy == pytest.approx(fast.accuracy, abs=0.011)


def test_accuracy_and_choice_on_digits() -> None:
    train, test = digits()
    result = linear_probe(train, test)
    assert train.labels is not None
    assert test.labels is not None
    weight, bias = sklearn_fit(train, result.setting["penalty"])
    answers = (standardised(train, test) @ weight.T + bias).argmax(1)
    right = answers == test.labels.numpy()
    assert result.accuracy == pytest.approx(right.mean(), abs=0.006)
    assert result.accuracy > 0.8
    assert result.converged
    assert result.num_classes == 10
    assert (result.num_train, result.num_test) == (400, 400)
    assert (result.num_held_out, result.folds) == (400, 5)
    for label in range(10):
        expected = right[test.labels.numpy() == label].mean()
        assert result.per_class[str(label)] == pytest.approx(expected, abs=0.04)
    best = max(point.accuracy for point in result.grid)
    assert result.setting["penalty"] == max(
        p.setting["penalty"] for p in result.grid if p.accuracy == best
    )
    assert [point.setting["penalty"] for point in result.grid] == list(PENALTIES)
    low, high = result.interval
    assert low < result.accuracy < high


def test_the_result_is_repeatable_and_plain() -> None:
    train, test = clouds(120), clouds(60, seed=1)
    first, second = linear_probe(train, test), linear_probe(train, test)
    assert first == second
    assert json.loads(json.dumps(first.to_dict())) == first.to_dict()


def test_choosing_never_sees_the_test_set() -> None:
    train, test = clouds(120), clouds(60, seed=1)
    other = features(torch.randn(60, 6), torch.arange(60) % 3)
    assert linear_probe(train, test).grid == linear_probe(train, other).grid


def test_random_labels_are_not_learned() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = features(
        torch.randn(400, 5, generator=generator), torch.randint(2, (400,), generator=generator)
    )
    result = linear_probe(noise, noise_test := clouds(2, dim=5, classes=2))
    assert len(noise_test.values) == result.num_test
    assert max(point.accuracy for point in result.grid) < 0.75


def test_constant_and_huge_columns_do_no_harm() -> None:
    train, test = clouds(150), clouds(60, seed=1)
    plain = linear_probe(train, test)

    def widened(f: Features, constant: float) -> Features:
        assert f.labels is not None
        extra = torch.full((len(f.values), 1), constant)
        return features(torch.cat([f.values, extra, 1e6 * f.values[:, :1]], dim=1), f.labels)

    # A column that never changes in training is ignored, even where it changes in the test.
    result = linear_probe(widened(train, 0.1), widened(test, 1e9))
    assert result.converged
    assert result.accuracy == pytest.approx(plain.accuracy, abs=0.051)


def test_classes_that_only_one_side_has() -> None:
    train, test = clouds(120, classes=4), clouds(60, classes=3, seed=1)
    assert test.labels is not None
    shifted = features(test.values, torch.where(test.labels == 2, 7, test.labels))
    result = linear_probe(train, shifted)
    assert result.unseen_classes == ["7"]
    assert result.per_class["7"] == 0
    assert result.per_class["3"] is None
    assert result.num_classes == 4
    named = features(train.values, train.labels, ("a", "b", "c", "d"))  # type: ignore[arg-type]
    assert set(linear_probe(named, shifted).per_class) == {"a", "b", "c", "d", "7"}


def test_few_images_per_class() -> None:
    train = clouds(6)
    result = linear_probe(train, clouds(30, seed=1))
    assert (result.num_held_out, result.folds) == (6, 5)


@pytest.mark.parametrize("solver", ["exact", "sgd"])
def test_one_image_of_every_class_leaves_nothing_to_choose_on(solver: Solver) -> None:
    result = linear_probe(clouds(3), clouds(30, seed=1), solver=solver)
    assert (result.grid, result.num_held_out, result.on_edge) == ([], 0, [])
    assert result.setting == ({"penalty": FIXED_PENALTY} if solver == "exact" else FIXED_SGD)
    assert result.accuracy > result.chance


@pytest.mark.parametrize(
    ("asked", "setting"),
    [
        ({"penalties": (10, 1)}, {"penalty": 1}),
        ({"penalties": (1e-4, 1e-3)}, {"penalty": 1e-3}),
        ({"penalties": (0.01, 1.0)}, {"penalty": 1.0}),  # equally near: the stronger
        ({"penalties": (7.0,)}, {"penalty": 7.0}),
        (
            {"solver": "sgd", "learning_rates": (3.0, 0.3), "weight_decays": (0.0, 0.1)},
            {"learning_rate": 0.3, "weight_decay": 0.0},
        ),
        (
            {"solver": "sgd", "learning_rates": (0.01, 1.0), "weight_decays": (0.002,)},
            {"learning_rate": 0.01, "weight_decay": 0.002},  # equally near: the lower
        ),
    ],
)
def test_one_image_of_every_class_keeps_what_was_asked_for(
    asked: dict[str, Any], setting: dict[str, float]
) -> None:
    train, test = clouds(3), clouds(30, seed=1)
    result = linear_probe(train, test, **asked)
    assert (result.setting, result.grid, result.num_held_out) == (setting, [], 0)
    lists = {"penalty": "penalties", "learning_rate": "learning_rates"}
    lists["weight_decay"] = "weight_decays"
    alone = {lists[name]: (value,) for name, value in setting.items()}
    assert result == linear_probe(train, test, **{**asked, **alone})


def test_what_is_tried_holds_what_one_image_of_every_class_takes() -> None:
    """So published numbers, of the lists as they are, have these settings."""
    assert 0.1 in PENALTIES
    assert 0.1 in LEARNING_RATES
    assert 0.001 in WEIGHT_DECAYS


def test_a_grid_of_one_is_not_chosen_from() -> None:
    result = linear_probe(clouds(60), clouds(30, seed=1), penalties=(0.3,))
    assert (result.setting, result.num_held_out, result.grid) == ({"penalty": 0.3}, 0, [])


@pytest.mark.parametrize("normalise", ["standardise", "batch_norm"])
def test_sgd_reaches_the_exact_solver(normalise: Normalise) -> None:
    train, test = digits()
    exact = linear_probe(train, test)
    trained = linear_probe(train, test, solver="sgd", normalise=normalise, epochs=60, batch_size=64)
    assert trained.accuracy == pytest.approx(exact.accuracy, abs=0.025)
    assert trained.converged
    assert len(trained.grid) == len(LEARNING_RATES) * len(WEIGHT_DECAYS)
    assert (trained.epochs, trained.batch_size) == (60, 64)
    best = max(point.accuracy for point in trained.grid)
    assert trained.setting in [p.setting for p in trained.grid if p.accuracy == best]
    plain = trained.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["learning_rate"] == trained.setting["learning_rate"]


def test_sgd_separates_what_can_be_separated() -> None:
    far = torch.eye(4).repeat_interleave(30, dim=0) * 20
    noise = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat_interleave(30)
    easy = features(far + noise, labels)
    choices: tuple[Normalise, ...] = ("standardise", "batch_norm", "none")
    for normalise in choices:
        result = linear_probe(easy, easy, solver="sgd", normalise=normalise)
        assert result.accuracy == linear_probe(easy, easy).accuracy == 1
        assert result.epochs == EPOCHS


def test_unscaled_features_are_fitted_as_they_are() -> None:
    train, test = digits()
    result = linear_probe(train, test, normalise="none", penalties=(1e-2,))
    assert train.labels is not None
    assert test.labels is not None
    X = train.values.double().numpy()
    reference = LogisticRegression(C=1 / (1e-2 * len(X)), solver="newton-cholesky", tol=1e-9)
    reference.fit(X, train.labels.numpy())
    right = reference.predict(test.values.double().numpy()) == test.labels.numpy()
    assert result.accuracy == pytest.approx(right.mean(), abs=0.006)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"solver": "adam"}, "solver must be one of exact, sgd, not 'adam'"),
        ({"normalise": "unit"}, "normalise must be one of"),
        ({"normalise": "batch_norm"}, "batch_norm needs batches"),
        ({"solver": "sgd", "epochs": 0}, "at least 1 epoch"),
        ({"solver": "sgd", "batch_size": 1}, "batches of at least 2"),
        ({"penalties": ()}, "penalties must be"),
        ({"penalties": (0.0,)}, "penalties must be one or more numbers above 0"),
        ({"solver": "sgd", "learning_rates": (-1.0,)}, "learning rates must be"),
        ({"solver": "sgd", "weight_decays": (float("nan"),)}, "weight decays must be"),
    ],
)
def test_settings_that_make_no_sense(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_probe(clouds(30), clouds(30, seed=1), **words)


@pytest.mark.parametrize("solver", ["exact", "sgd"])
def test_the_choice_does_not_change_with_the_labels_of_the_test(solver: Solver) -> None:
    train, test = clouds(120), clouds(60, seed=1)
    assert test.labels is not None
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    shuffled = features(test.values, test.labels[order])
    first, second = (linear_probe(train, t, solver=solver, epochs=5) for t in (test, shuffled))
    assert (first.setting, first.grid) == (second.setting, second.grid)
    assert first.accuracy != second.accuracy


def test_more_features_than_images() -> None:
    result = linear_probe(clouds(40, dim=200), clouds(40, dim=200, seed=1))
    assert result.converged
    assert result.accuracy > 0.8


def test_the_minimum_among_the_directions_of_the_rows_is_the_minimum() -> None:
    """Of 40 rows of 200 features, against sklearn in all 200 dimensions and float64."""
    train, test = clouds(40, dim=200), clouds(300, dim=200, seed=1)
    result = linear_probe(train, test, penalties=(0.01,))
    weight, bias = sklearn_fit(train, 0.01)
    answers = (standardised(train, test) @ weight.T + bias).argmax(1)
    assert test.labels is not None
    assert result.accuracy == pytest.approx((answers == test.labels.numpy()).mean(), abs=0.004)
    mean, scale = regression.standardising(train.values)
    X = (train.values - mean) * scale
    axes = regression.row_space(X)
    assert axes.shape[0] == 200
    assert axes.shape[1] in (39, 40)  # their mean is 0, up to rounding
    torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(X @ axes @ axes.T, X, atol=1e-3, rtol=1e-3)


def test_a_setting_is_chosen_by_cross_validation_where_few_are_held_out() -> None:
    """Each accuracy of the grid by sklearn, fitted five times to what is not held out."""
    train, test = clouds(60), clouds(30, seed=1)
    result = linear_probe(train, test, penalties=(1.0, 0.01))
    assert train.labels is not None
    X, y = standardised(train, train), train.labels.numpy()
    numbers = fold_numbers(train.labels, 5, 0).numpy()
    for point in result.grid:
        right = 0
        for fold in range(5):
            kept = numbers != fold
            reference = LogisticRegression(
                C=1 / (point.setting["penalty"] * kept.sum()), solver="newton-cholesky", tol=1e-9
            )
            right += (reference.fit(X[kept], y[kept]).predict(X[~kept]) == y[~kept]).sum()
        assert point.accuracy == pytest.approx(right / 60, abs=0.017)  # one image on a boundary
    assert (result.num_held_out, result.folds) == (60, 5)
    many = linear_probe(clouds(1000), test, penalties=(1.0, 0.01))
    assert (many.num_held_out, many.folds) == (99, 1)


def test_chance_is_the_training_majority() -> None:
    train = features(torch.randn(10, 2), torch.tensor([0] * 3 + [1] * 7))
    test = features(torch.randn(4, 2), torch.tensor([0, 0, 0, 1]))
    assert linear_probe(train, test).chance == 0.25


def test_a_fit_that_stops_early_is_reported(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(regression, "MAX_STEPS", 1)
    result = linear_probe(clouds(120), clouds(60, seed=1))
    assert not result.converged
    assert not all(point.converged for point in result.grid)
    assert not recwarn.list


def test_wilson_by_its_defining_equation() -> None:
    # The bounds are the shares p at which the observed share is 1.96 standard errors away.
    for right, total in ((0, 10), (3, 10), (10, 10), (4138, 10_000)):
        low, high = wilson_interval(right, total)
        share = right / total
        assert 0 <= low <= share <= high <= 1
        for p in (low, high):
            if 0 < p < 1:
                distance = abs(share - p) / math.sqrt(p * (1 - p) / total)
                assert distance == pytest.approx(1.959964, abs=1e-5)


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 5),
)
def test_holding_out_is_stratified(labels: list[int], share: float, seed: int) -> None:
    y = torch.tensor(labels)
    counts = {label: labels.count(label) for label in set(labels)}
    if max(counts.values()) == 1:
        with pytest.raises(ValueError, match="held out"):
            hold_out(y, share, seed)
        return
    held = hold_out(y, share, seed)
    assert torch.equal(held, hold_out(y, share, seed))
    for label, count in counts.items():
        taken = int((held & (y == label)).sum())
        if count == 1:
            assert taken == 0
        else:
            assert 1 <= taken < count or share > 0.5
            assert abs(taken - share * count) <= 1


@pytest.mark.parametrize("images", [30, 300])
def test_a_fitted_head_is_the_probe_as_one_layer(images: int) -> None:
    """Fewer images than features (64), and more."""
    whole, test = digits()
    train = features(whole.values[:images], whole.labels[:images])  # type: ignore[index]
    head = fitted_head(train.values, train.labels, num_classes=10)  # type: ignore[arg-type]
    probe = linear_probe(train, test)
    assert probe.setting == {"penalty": head.penalty}
    answers = (test.values @ head.weight.T + head.bias).argmax(dim=1)
    assert test.labels is not None
    assert probe.accuracy == float(answers.eq(test.labels).double().mean())


def test_a_fitted_head_is_the_minimum_that_sklearn_finds() -> None:
    train = clouds(300)
    head = fitted_head(train.values, train.labels, num_classes=3)  # type: ignore[arg-type]
    weight, bias = sklearn_fit(train, head.penalty)
    expected = standardised(train, train) @ weight.T + bias
    found = (train.values @ head.weight.T + head.bias).double().numpy()
    shares = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (expected, found)]
    np.testing.assert_allclose(shares[1], shares[0], atol=2e-3)


def test_a_fitted_head_never_answers_a_class_without_images() -> None:
    train, test = clouds(60), clouds(60, seed=1)
    assert train.labels is not None
    head = fitted_head(train.values, train.labels * 2, num_classes=6)
    assert head.weight.shape == (6, 6)
    assert not head.weight[1::2].any()
    assert float(head.bias[1]) == pytest.approx(float(head.bias[::2].min()) - MISSING, abs=1e-4)
    answers = (test.values @ head.weight.T + head.bias).argmax(dim=1)
    assert set(answers.tolist()) <= {0, 2, 4}
    with pytest.raises(ValueError, match="two classes"):
        fitted_head(train.values, torch.ones(60, dtype=torch.long), num_classes=2)
