"""Counts of pixels against loops, and what follows from them against torchmetrics and by hand."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from crate_mae.evaluation.pixel_scores import PixelScore, pixel_counts
from crate_mae.models.mask_classes import VOID

CLASSES = 4
pixels = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.sampled_from([*range(CLASSES), VOID])),
    min_size=1,
    max_size=40,
)


def tensors(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    told, true = torch.tensor(pairs).T
    return told, true.to(torch.uint8)


@settings(max_examples=60, deadline=None)
@given(pixels, st.integers(0, 40))
def test_counts_and_scores_by_loops(pairs: list[tuple[int, int]], cut: int) -> None:
    told, true = tensors(pairs)
    parts = [pixel_counts(told[a:b], true[a:b], CLASSES) for a, b in ((0, cut), (cut, None))]
    score = PixelScore(counts=parts[0] + parts[1])
    counted = [(t, y) for t, y in pairs if y != VOID]
    for row in range(CLASSES):
        for column in range(CLASSES):
            expected = sum(y == row and t == column for t, y in counted)
            assert int(score.counts[row, column]) == expected
    for number, iou in enumerate(score.iou):
        both = sum(t == y == number for t, y in counted)
        either = sum(number in (t, y) for t, y in counted)
        assert iou == (both / either if either else None)
    right = sum(t == y for t, y in counted)
    assert score.accuracy == (right / len(counted) if counted else 0.0)


@settings(max_examples=30, deadline=None)
@given(pixels.filter(lambda pairs: any(y != VOID for _, y in pairs)))
def test_scores_agree_with_torchmetrics(pairs: list[tuple[int, int]]) -> None:
    told, true = tensors(pairs)
    score = PixelScore(counts=pixel_counts(told, true, CLASSES))
    index = MulticlassJaccardIndex(CLASSES, ignore_index=VOID, average="macro")
    assert score.mean_iou == pytest.approx(float(index(told, true.long())), abs=1e-6)
    micro = MulticlassAccuracy(CLASSES, ignore_index=VOID, average="micro")
    assert score.accuracy == pytest.approx(float(micro(told, true.long())), abs=1e-6)


def test_numbers_by_hand() -> None:
    told, true = tensors([(0, 0), (0, 0), (0, 1), (1, 1), (2, 1), (2, 255), (0, 0)])
    score = PixelScore(counts=pixel_counts(told, true, CLASSES))
    assert score.iou == [3 / 4, 1 / 3, 0.0, None]
    assert score.mean_iou == pytest.approx((3 / 4 + 1 / 3) / 3)
    assert score.recall == [1.0, 1 / 3, None, None]
    assert score.majority == 0
    assert score.always(1).iou == [0.0, 0.5, None, None]
    plain = json.loads(json.dumps(score.to_dict(("sky", "cat", "dog", "rest"))))
    assert plain["iou"] == {"sky": 0.75, "cat": pytest.approx(1 / 3), "dog": 0.0, "rest": None}
    assert plain["majority"] == "sky"
    assert plain["majority_mean_iou"] == 0.25
    assert plain["majority_pixel_accuracy"] == 0.5
    assert plain["pixels"] == 6
    empty = PixelScore(counts=torch.zeros(2, 2, dtype=torch.int64))
    assert (empty.mean_iou, empty.accuracy, empty.iou) == (0.0, 0.0, [None, None])
