"""Scores against scikit-learn and by hand; what a grid says about its edges."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from crate_mae.evaluation import metrics
from crate_mae.evaluation.features import Features
from crate_mae.evaluation.metrics import GridPoint, best_point, confusion, edges, score


def named(*names: str) -> Features:
    return Features(
        values=torch.zeros(1, 1),
        labels=None,
        names=["a"],
        class_names=names or None,
        pool="mean",
        unreadable=[],
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_scores_are_those_of_sklearn(pairs: list[tuple[int, int]]) -> None:
    truth, answers = (torch.tensor(column) for column in zip(*pairs, strict=True))
    found = score(named(), truth, torch.arange(5), answers)
    assert found.accuracy == pytest.approx(accuracy_score(truth, answers))
    assert found.confusion is not None
    assert found.confusion["classes"] == list("01234")
    expected = confusion_matrix(truth, answers, labels=range(5))
    assert found.confusion["counts"] == expected.tolist()
    recalls = recall_score(truth, answers, labels=range(5), average=None, zero_division=0)
    for name, recall in zip("01234", recalls, strict=True):
        if expected[int(name)].sum():
            assert found.per_class[name] == pytest.approx(recall)
        else:
            assert found.per_class[name] is None
    present = [recalls[label] for label in range(5) if expected[label].sum()]
    assert found.balanced_accuracy == pytest.approx(sum(present) / len(present))
    # Of the classes that occur, as sklearn takes them.
    assert found.macro_f1 == pytest.approx(
        f1_score(truth, answers, average="macro", zero_division=0)
    )


def test_mistakes_by_hand() -> None:
    truth = torch.tensor([0, 0, 0, 1, 1, 5, 5, 5])
    answers = torch.tensor([1, 1, 0, 1, 0, 0, 1, 0])
    found = score(named("cat", "dog"), truth, torch.tensor([0, 1, 1]), answers)
    assert found.accuracy == 2 / 8
    assert found.unseen_classes == ["5"]
    assert found.per_class == {"cat": 1 / 3, "dog": 1 / 2, "5": 0}
    assert found.confusion == {
        "classes": ["cat", "dog", "5"],
        "counts": [[1, 2, 0], [1, 1, 0], [2, 1, 0]],
    }
    assert found.top_confusions == [
        {"true": "cat", "predicted": "dog", "count": 2},
        {"true": "5", "predicted": "cat", "count": 2},
        {"true": "dog", "predicted": "cat", "count": 1},
        {"true": "5", "predicted": "dog", "count": 1},
    ]
    assert (found.chance, found.majority) == (2 / 8, "dog")
    assert found.balanced_accuracy == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert (found.num_classes, found.num_train, found.num_test) == (2, 3, 8)


def test_no_class_is_the_most_frequent_where_several_are() -> None:
    labels = torch.tensor([0, 1, 1, 0, 2])
    assert metrics.majority(named("cat", "dog", "cow"), labels) is None
    assert metrics.majority(named("cat", "dog", "cow"), labels[:4][1:]) == "dog"


def test_few_labels_keep_the_majority_of_all() -> None:
    """Of three cows, two cats and a dog, one each: the most frequent class is still cow."""
    names = named("cat", "dog", "cow")
    every = replace(names, labels=torch.tensor([2, 2, 2, 0, 0, 1]))
    test = torch.tensor([2, 2, 0, 1])
    few = score(names, test, torch.tensor([0, 1, 2]), torch.zeros(4, dtype=torch.int64))
    assert (few.chance, few.majority) == (1 / 4, None)
    whole = metrics.with_majority_of(few, every, test)
    assert (whole.chance, whole.majority) == (2 / 4, "cow")
    assert whole.accuracy == few.accuracy


def test_a_matrix_of_many_classes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_CONFUSION", 2)
    labels = torch.tensor([0, 1, 2])
    found = score(named(), labels, labels, torch.tensor([0, 1, 1]))
    assert found.confusion is None
    assert found.top_confusions == [{"true": "2", "predicted": "1", "count": 1}]
    assert confusion(labels, labels, labels).tolist() == torch.eye(3).long().tolist()


def grid(**accuracies: float) -> list[GridPoint]:
    """Points of "a" (first digit) and "b" (second), such as x12=0.5."""
    return [
        GridPoint(setting={"a": float(key[1]), "b": float(key[2])}, accuracy=value)
        for key, value in accuracies.items()
    ]


def test_edges() -> None:
    assert edges([]) == []
    assert edges(grid(x11=0.1, x21=0.9, x31=0.1)) == []
    assert edges(grid(x11=0.9, x21=0.2, x31=0.1)) == ["a 1 is the smallest tried"]
    assert edges(grid(x11=0.1, x21=0.2, x31=0.3)) == ["a 3 is the largest tried"]
    # A value inside the grid is as good.
    assert edges(grid(x11=0.9, x21=0.9, x31=0.1)) == []
    assert edges(grid(x12=0.1, x13=0.9, x22=0.1, x23=0.1)) == [
        "a 1 is the smallest tried",
        "b 3 is the largest tried",
    ]
    natural = [
        GridPoint(setting={"k": k, "weight_decay": w}, accuracy=float(k == 1 and w == 0))
        for k in (1.0, 5.0, 9.0)
        for w in (0.0, 1.0, 2.0)
    ]
    assert edges(natural) == []


def test_the_first_of_equals_is_taken() -> None:
    assert best_point(grid(x11=0.5, x21=0.9, x31=0.9)).setting["a"] == 2
