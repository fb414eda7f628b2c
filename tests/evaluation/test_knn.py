"""Nearest neighbours against points drawn by hand and a definition by loops."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from crate_mae.evaluation.choosing import fold_numbers
from crate_mae.evaluation.comparison import setting_text
from crate_mae.evaluation.features import Features
from crate_mae.evaluation.knn import (
    NEIGHBOURS,
    TEMPERATURES,
    nearest,
    nearest_neighbours,
    vote,
)
from crate_mae.evaluation.metrics import HELD_OUT
from crate_mae.evaluation.whitening import Whitening
from crate_mae.sources.splits import hold_out


def features(values: torch.Tensor, labels: torch.Tensor) -> Features:
    return Features(
        values=values.float(),
        labels=labels.long(),
        names=[str(i) for i in range(len(values))],
        class_names=None,
        pool="mean",
        unreadable=[],
    )


def clouds(n: int, *, classes: int = 4, dim: int = 5, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return features(centres[labels] + 0.8 * torch.randn(n, dim, generator=generator), labels)


def answers_by_loops(
    train: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, temperature: float
) -> list[int]:
    answers = []
    for query in queries:
        similarity = [
            float(query @ key / np.linalg.norm(query) / np.linalg.norm(key)) for key in train
        ]
        order = sorted(range(len(train)), key=lambda i: (-similarity[i], i))[:k]
        votes: dict[int, float] = {}
        for i in order:
            label = int(labels[i])
            votes[label] = votes.get(label, 0.0) + math.exp(similarity[i] / temperature)
        answers.append(min(votes, key=lambda label: (-votes[label], label)))
    return answers


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_accuracy_by_loops(temperature: float) -> None:
    train, test = clouds(90), clouds(60, seed=1)
    result = nearest_neighbours(train, test, k=(1, 3, 8, 70), temperatures=(temperature,))
    assert train.labels is not None
    assert test.labels is not None
    for k in (1, 3, 8, 70):
        expected = answers_by_loops(
            train.values.double().numpy(),
            train.labels.numpy(),
            test.values.double().numpy(),
            k,
            temperature,
        )
        assert result.by_k[k] == pytest.approx(np.mean(np.array(expected) == test.labels.numpy()))
    assert result.accuracy == result.by_k[result.k]
    best = max(point.accuracy for point in result.grid)
    assert result.k == min(p.setting["k"] for p in result.grid if p.accuracy == best)
    assert result.interval[0] < result.accuracy < result.interval[1]
    assert (result.num_train, result.num_test, result.num_classes) == (90, 60, 4)


@pytest.mark.parametrize("count", [90, 1000])
def test_held_out_accuracy_by_loops(count: int) -> None:
    """In five folds of few images; on a held-out tenth of many."""
    train = clouds(count)
    assert train.labels is not None
    numbers = fold_numbers(train.labels, 5, 0)
    parts = [numbers == fold for fold in range(5)]
    if count == 1000:
        parts = [hold_out(train.labels, HELD_OUT, 0)]
    result = nearest_neighbours(train, clouds(8, seed=1), k=(5, 9), temperatures=(0.07, 1.0))
    total = sum(int(part.sum()) for part in parts)
    assert (result.num_held_out, result.folds) == (total, len(parts))
    assert len(result.grid) == 4
    for point in result.grid:
        right = 0
        for held in parts:
            expected = answers_by_loops(
                train.values[~held].double().numpy(),
                train.labels[~held].numpy(),
                train.values[held].double().numpy(),
                int(point.setting["k"]),
                point.setting["temperature"],
            )
            right += int(np.sum(np.array(expected) == train.labels[held].numpy()))
        assert point.accuracy == pytest.approx(right / total)
    top = max(point.accuracy for point in result.grid)
    first = next(point for point in result.grid if point.accuracy == top)
    assert result.setting == first.setting


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (15, 0.5)])
def test_answers_are_those_of_sklearn(k: int, temperature: float) -> None:
    train, test = clouds(90), clouds(60, seed=1)
    assert train.labels is not None
    assert test.labels is not None
    reference = KNeighborsClassifier(
        n_neighbors=k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    )
    reference.fit(train.values.double().numpy(), train.labels.numpy())
    answers = reference.predict(test.values.double().numpy())
    result = nearest_neighbours(train, test, k=(k,), temperatures=(temperature,))
    assert result.accuracy == np.mean(answers == test.labels.numpy())
    expected = confusion_matrix(test.labels.numpy(), answers)
    assert result.confusion is not None
    np.testing.assert_array_equal(result.confusion["counts"], expected)


def test_points_drawn_by_hand() -> None:
    # Directions in degrees; classes 5 (around 0) and 9 (around 90), one stray 9 at 10.
    degrees = torch.tensor([0.0, 5.0, 10.0, 80.0, 90.0, 100.0])
    labels = torch.tensor([5, 5, 9, 9, 9, 9])
    train = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    at = torch.tensor([11.0, 88.0]).deg2rad()
    queries = torch.stack([at.cos(), at.sin()], dim=1) * 7  # length does not matter
    similarities, found = nearest(queries / 7, train, 3)
    assert found.tolist() == [[2, 1, 0], [4, 3, 5]]
    assert similarities[0, 0] == pytest.approx(math.cos(math.radians(1)))
    votes = vote(similarities, found, (labels == 9).long(), 2, [1, 3], 1.0)
    # At 11 degrees the nearest is the stray; two of the three nearest are not.
    assert votes[1].tolist() == [1, 1]
    assert votes[3].tolist() == [0, 1]


def test_a_low_temperature_listens_to_the_nearest() -> None:
    similarities = torch.tensor([[0.9, 0.8, 0.8]])
    neighbours, labels = torch.tensor([[0, 1, 2]]), torch.tensor([1, 0, 0])
    assert vote(similarities, neighbours, labels, 2, [3], 0.07)[3].item() == 1
    assert vote(similarities, neighbours, labels, 2, [3], 1.0)[3].item() == 0
    assert vote(similarities, neighbours, labels, 2, [3], 1e-6)[3].item() == 1


def test_equal_votes_go_to_the_lowest_class() -> None:
    similarities = torch.full((1, 4), 0.5)
    neighbours, labels = torch.arange(4)[None], torch.tensor([3, 1, 1, 3])
    answers = vote(similarities, neighbours, labels, 4, [1, 2, 4], 0.07)
    assert [answers[k].item() for k in (1, 2, 4)] == [3, 1, 1]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=1, max_size=25),
    st.integers(1, 25),
)
def test_equal_similarities_go_to_the_lowest_index(keys: list[list[int]], k: int) -> None:
    k = min(k, len(keys))
    queries = torch.tensor([[1.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    similarities, found = nearest(queries, torch.tensor(keys).float(), k)
    for row, query in enumerate(queries.tolist()):
        exact = [query[0] * a + query[1] * b for a, b in keys]
        expected = sorted(range(len(keys)), key=lambda i: (-exact[i], i))[:k]
        assert found[row].tolist() == expected
        assert similarities[row].tolist() == [exact[i] for i in expected]


def test_the_search_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(500, 16, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(50, 16, generator=generator), dim=1)
    reference = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute")
    expected = reference.fit(keys.double().numpy()).kneighbors(queries.double().numpy())[1]
    np.testing.assert_array_equal(nearest(queries, keys, 20)[1].numpy(), expected)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_do_not_change_the_result(block: int) -> None:
    train, test = clouds(90), clouds(40, seed=1)
    assert nearest_neighbours(train, test, block=block) == nearest_neighbours(train, test)


def test_k_is_not_chosen_on_the_test_set() -> None:
    train = clouds(90)
    other = features(torch.randn(40, 5), torch.arange(40) % 4)
    first, second = nearest_neighbours(train, clouds(40, seed=1)), nearest_neighbours(train, other)
    assert first.grid == second.grid
    assert first.setting == second.setting


def test_the_result_is_plain() -> None:
    result = nearest_neighbours(clouds(90), clouds(40, seed=1), k=(1, 5)).to_dict()
    assert json.loads(json.dumps(result))["by_k"] == {str(k): v for k, v in result["by_k"].items()}


def test_more_neighbours_than_images_are_skipped_and_said() -> None:
    result = nearest_neighbours(clouds(24), clouds(12, seed=1))
    assert result.skipped_k == [20, 50, 100, 200]
    assert sorted(result.by_k) == [1, 5, 10]
    with pytest.raises(ValueError, match=r"k = \[50\] is more than the 19 training images"):
        nearest_neighbours(clouds(24), clouds(12, seed=1), k=(50,))


@pytest.mark.parametrize("k", [(), (0,), (-1, 5)])
def test_wrong_k(k: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        nearest_neighbours(clouds(24), clouds(12, seed=1), k=k)


def test_wrong_temperature() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0, not \\[0\\]"):
        nearest_neighbours(clouds(24), clouds(12, seed=1), temperatures=(0,))


def test_one_image_of_every_class_leaves_the_nearest() -> None:
    result = nearest_neighbours(clouds(4), clouds(40, seed=1))
    assert result.setting == {"k": 1, "temperature": 0.07}
    assert (result.grid, result.num_held_out) == ([], 0)
    assert list(result.by_k) == [1]


@pytest.mark.parametrize(
    ("asked", "k", "temperature"),
    [
        ({"k": (5,)}, 5, 0.07),
        ({"k": (5, 50)}, 5, 0.07),
        ({"k": (5, 3)}, 3, 0.07),
        ({"k": (1, 3), "temperatures": (0.2,)}, 1, 0.2),
        ({"temperatures": (5.0, 0.5)}, 1, 0.5),
        ({"temperatures": (0.2, 0.002)}, 1, 0.2),  # 3 times 0.07, and a 35th of it
        ({"temperatures": (0.7, 0.007)}, 1, 0.007),  # equally near: the lower
        ({"k": (3,), "temperatures": (2.0,)}, 3, 2.0),
    ],
)
def test_one_image_of_every_class_keeps_what_was_asked_for(
    asked: dict[str, Any], k: int, temperature: float
) -> None:
    train, test = clouds(8, classes=8), clouds(40, classes=8, seed=1)
    assert train.labels is not None
    assert test.labels is not None
    result = nearest_neighbours(train, test, **asked)
    assert result.setting == {"k": k, "temperature": temperature}
    assert (result.grid, result.num_held_out, list(result.by_k)) == ([], 0, [k])
    answers = answers_by_loops(
        train.values.double().numpy(),
        train.labels.numpy(),
        test.values.double().numpy(),
        k,
        temperature,
    )
    assert result.accuracy == np.mean(np.array(answers) == test.labels.numpy())


def test_one_image_of_every_class_refuses_more_neighbours_than_images() -> None:
    with pytest.raises(ValueError, match=r"k = \[5\] is more than the 4 training images"):
        nearest_neighbours(clouds(4), clouds(40, seed=1), k=(5,))


def test_what_is_tried_holds_what_one_image_of_every_class_takes() -> None:
    """So published numbers, of the lists as they are, have k = 1 and temperature 0.07."""
    assert 1 in NEIGHBOURS
    assert 0.07 in TEMPERATURES


def test_zero_features_are_similar_to_nothing() -> None:
    train, test = clouds(24), clouds(12, seed=1)
    blank = features(torch.zeros(12, 5), torch.arange(12) % 4)
    assert 0 <= nearest_neighbours(train, blank).accuracy <= 1
    assert nearest_neighbours(train, test).chance == 0.25


def hidden(n: int, *, seed: int) -> Features:
    """Two classes apart along one direction, beside which others spread ten times as far."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    noise = 10 * torch.randn(n, 3, generator=generator)
    signal = (2.0 * labels - 1)[:, None] + 0.1 * torch.randn(n, 1, generator=generator)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(7)))[0]
    return features(torch.cat([noise, signal], dim=1) @ turn, labels)


def test_whitened_neighbours_are_those_of_sklearn_in_the_same_space() -> None:
    train, test = hidden(300, seed=0), hidden(100, seed=1)
    assert train.labels is not None
    assert test.labels is not None
    fixed: dict[str, Any] = {"k": (3,), "temperatures": (1e6,)}
    result = nearest_neighbours(train, test, **fixed, whitening=(1e4,))
    found = Whitening(train.values)
    judge = KNeighborsClassifier(3, metric="cosine").fit(found(train.values, 1e4), train.labels)
    right = judge.predict(found(test.values, 1e4)) == test.labels.numpy()
    assert result.accuracy == right.mean() >= 0.95
    assert result.whitened
    assert result.setting == {"whitening": 1e4, "k": 3, "temperature": 1e6}
    assert setting_text(result.setting) == "whitening 10000, k = 3, temperature 1e+06"
    plain = nearest_neighbours(train, test, **fixed)
    assert plain.accuracy <= 0.8
    assert (plain.whitened, plain.setting) == (False, {"k": 3, "temperature": 1e6})


def test_the_strength_is_chosen_on_held_out_images() -> None:
    train, test = hidden(300, seed=0), hidden(100, seed=1)
    strengths = (0.0, 1.0, 1e4)
    result = nearest_neighbours(train, test, k=(1, 5), whitening=strengths)
    assert (result.whitened, result.setting["whitening"]) == (True, 1e4)
    best = []
    for strength in strengths:  # each part is what it is alone
        alone = nearest_neighbours(train, test, k=(1, 5), whitening=(strength,))
        own = [point for point in result.grid if point.setting["whitening"] == strength]
        assert [point.accuracy for point in own] == [point.accuracy for point in alone.grid]
        best.append(max(point.accuracy for point in own))
    assert best.index(max(best)) == 2
    assert "whitening 10000 is the largest tried" in result.on_edge


def test_no_whitening_is_chosen_where_it_does_not_help() -> None:
    generator = torch.Generator().manual_seed(0)

    def loud(n: int) -> Features:
        """Classes far apart in length-one directions, beside many features of pure noise."""
        labels = torch.arange(n) % 2
        noise = 0.05 * torch.randn(n, 40, generator=generator)
        signal = (2.0 * labels - 1)[:, None] + 0.3 * torch.randn(n, 20, generator=generator)
        return features(torch.cat([signal, noise], dim=1), labels)

    train, test = loud(60), loud(60)
    result = nearest_neighbours(train, test, k=(1,), whitening=(0.0, 1e6))
    assert (result.whitened, result.setting["whitening"]) == (False, 0.0)
    assert result.accuracy == nearest_neighbours(train, test, k=(1,)).accuracy
    assert not [text for text in result.on_edge if "whitening" in text]


def test_one_image_of_every_class_is_compared_as_it_is() -> None:
    train = features(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    test = features(torch.tensor([[0.9, 0.1]]), torch.tensor([0]))
    result = nearest_neighbours(train, test, whitening=(0.0, 1.0))
    assert (result.whitened, result.accuracy) == (False, 1.0)


@pytest.mark.parametrize("whitening", [(), (-1.0,), (math.inf,), (math.nan,)])
def test_wrong_strengths(whitening: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="strength of whitening must be 0 or above"):
        nearest_neighbours(clouds(30), clouds(30), whitening=whitening)


def test_unseen_classes_are_wrong() -> None:
    test = clouds(12, seed=1)
    assert test.labels is not None
    assert nearest_neighbours(clouds(24), features(test.values, test.labels + 10)).accuracy == 0
