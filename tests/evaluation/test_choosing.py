"""Where settings are chosen: folds that hold every image out once, a tenth where that is many."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from crate_mae.evaluation.choosing import chosen_by, fold_numbers, held_out_parts, tried_on
from crate_mae.evaluation.metrics import GridPoint


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    folds=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_folds_hold_every_image_out_once(counts: list[int], folds: int, seed: int) -> None:
    labels = torch.tensor([label for label, n in enumerate(counts) for _ in range(n)])
    numbers = fold_numbers(labels, folds, seed)
    assert numbers.shape == labels.shape
    for label, count in enumerate(counts):
        of_class = numbers[labels == label].tolist()
        if count == 1:
            assert of_class == [-1]
            continue
        sizes = [of_class.count(fold) for fold in range(folds)]
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) < max(count, 1) or count == 0  # some always stay in training
    sizes = [int((numbers == fold).sum()) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(numbers, fold_numbers(labels, folds, seed))


@given(per_class=st.integers(1, 120), classes=st.integers(2, 12))
def test_a_tenth_is_held_out_where_that_are_many(per_class: int, classes: int) -> None:
    labels = torch.arange(classes).repeat(per_class)
    parts = held_out_parts(labels, 0)
    if per_class == 1:
        assert parts == []
    elif round(len(labels) / 10) >= 100:
        (part,) = parts
        assert 0.08 * len(labels) < int(part.sum()) < 0.13 * len(labels)
    else:
        assert 2 <= len(parts) <= 5
        assert torch.equal(torch.stack(parts).sum(dim=0), torch.ones(len(labels)).long())


def test_points_are_shares_of_all_held_out_images() -> None:
    parts = [torch.tensor([True, True, True, False]), torch.tensor([False, False, False, True])]

    def grid_of(held: torch.Tensor) -> list[GridPoint]:
        accuracy = 1 / 3 if int(held.sum()) == 3 else 1.0
        return [GridPoint(setting={"k": 1.0}, accuracy=accuracy, converged=accuracy == 1)]

    assert tried_on(parts, grid_of) == [
        GridPoint(setting={"k": 1.0}, accuracy=2 / 4, converged=False)
    ]


def test_words() -> None:
    assert chosen_by(5, 1200) == "5-fold cross-validation of 1,200 training images"
    assert chosen_by(1, 150) == "150 held-out images"
    assert chosen_by(0, 0) == ""
