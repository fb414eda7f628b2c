"""What numbers say in words: each rule on numbers whose meaning is known."""

import math
import shlex
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from crate_mae.cli import VERBS
from crate_mae.evaluation.answers import (
    Answer,
    Place,
    Rule,
    answers_text,
    beside_baselines,
    classifier_answers,
    completion_answers,
    data_answers,
    feature_answers,
    foreground_answers,
    smoothed_entropy,
    steps_answers,
)
from crate_mae.evaluation.comparison import headline


def line(subject: str, accuracy: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    """A line of a comparison."""
    return {"subject": subject, "method": "probe", "accuracy": accuracy,
            "interval": [low, high], **more}  # fmt: skip


def rules(answers: list[Answer]) -> dict[str, bool | None]:
    """What was said, by rule."""
    assert all(answer.rule in get_args(Rule) for answer in answers)
    return {answer.rule: answer.good for answer in answers}


@pytest.mark.parametrize(
    ("base", "better", "told"),
    [
        (
            line("random baseline", 0.5, 0.45, 0.55),
            True,
            "20.0 points above random baseline (50.0%).",
        ),
        (
            line("random baseline", 0.9, 0.85, 0.95),
            False,
            "20.0 points below random baseline (90.0%).",
        ),
        (line("raw pixels", 0.66, 0.6, 0.72), None, "the intervals overlap"),
        (line("raw pixels", 0.74, 0.7, 0.8), None, "4.0 points below raw pixels"),
        (line("raw pixels", 0.5, 0.45, 0.65), None, "the intervals overlap"),
    ],
)
def test_a_model_is_better_only_where_intervals_part(
    base: dict[str, Any], better: bool | None, told: str
) -> None:
    (answer,) = beside_baselines([line("model", 0.7, 0.65, 0.75), base], "probe")
    assert answer.good is better
    assert told in answer.text
    assert answer.text.startswith("Linear probe: 70.0%, ")
    assert ("`crate-mae " in answer.text) == (not better), "what to try where it is not better"


def test_equal_accuracies_are_level() -> None:
    rows = [line("model", 0.7, 0.65, 0.75), line("random baseline", 0.7, 0.65, 0.75)]
    (answer,) = beside_baselines(rows, "probe")
    assert answer.text.startswith("Linear probe: 70.0%, level with random baseline (70.0%), but")


@pytest.mark.parametrize("method", ["probe", "knn"])
def test_what_was_tried_already_is_not_advised(method: str) -> None:
    rows = [
        line("model", 0.5, 0.4, 0.6, pool=pool, shots=10) | {"method": method}
        for pool in ("mean", "layers")
    ]
    rows.append(line("random baseline", 0.5, 0.4, 0.6) | {"method": method})
    (narrow,) = beside_baselines([rows[0], rows[2]], method)
    assert f"`crate-mae {method} WEIGHTS ADDRESS --shots 10 --pool mean,layers" in narrow.text
    (wide,) = beside_baselines(rows, method)
    assert "wider" not in wide.text
    assert "try longer training, `crate-mae plan own-images" in wide.text


def test_without_an_interval_nothing_is_clear() -> None:
    rows = [line("model", 0.9, 0.85, 0.95), line("raw pixels", 0.1, 0.0, 0.2) | {"interval": None}]
    assert [answer.good for answer in beside_baselines(rows, "probe")] == [None]
    assert beside_baselines(rows, "knn") == []


def test_the_next_command_is_one_that_can_be_typed() -> None:
    rows = [line("model", 0.5, 0.4, 0.6), line("random baseline", 0.5, 0.4, 0.6)]
    place = Place(weights="runs/my model", address="imagefolder:my pictures")
    (answer,) = beside_baselines(rows, "probe", place)
    commands = [part for part in answer.text.split("`") if part.startswith("crate-mae ")]
    assert len(commands) == 2
    for command in commands:
        _, verb, *words = shlex.split(command)
        assert verb in VERBS
        assert "runs/my model" in words or "imagefolder:my pictures" in words


@pytest.mark.parametrize("method", ["probe", "knn"])
@pytest.mark.parametrize("base", ["random baseline", "raw pixels"])
def test_what_is_open_is_not_called_worse(method: str, base: str) -> None:
    name = {"probe": "linear probe", "knn": "nearest neighbours"}[method]
    model = line("model", 0.7, 0.65, 0.75) | {"method": method}
    cases = {
        (0.66, 0.6, 0.72): f"no clear difference. That is not shown to be better with {name}: try",
        (0.9, 0.85, 0.95): "Not better than the same network untrained: try wider features"
        if base == "random baseline"
        else f"Raw pixels do better with {name}: try fine-tuning",
    }
    for numbers, told in cases.items():
        rows = [model, line(base, *numbers) | {"method": method}]
        (answer,) = beside_baselines(rows, method)
        assert told in answer.text
        if base == "random baseline":
            wider = "--pool mean,layers" + (" --whiten choose" if method == "knn" else "")
            assert f"`crate-mae {method} WEIGHTS ADDRESS {wider}`" in answer.text


@pytest.mark.parametrize(
    ("more", "grid", "fit"),
    [
        ({"solver": "exact"}, "grid, `--penalties`.", "try a stronger penalty, `--penalties`."),
        ({"solver": "sgd"}, "grid, `--learning-rates`, `--weight-decays`.",
         "try a lower rate, `--learning-rates`."),
        ({"method": "knn"}, "grid, `--k`, `--temperatures`.", None),
        ({"method": "knn", "on_edge": ["whitening 1 is the smallest tried", "it is the largest"]},
         "grid, `--k`, `--temperatures`, `--whiten`.", None),
    ],
)  # fmt: skip
def test_the_options_that_are_advised_belong_to_the_method(
    more: dict[str, Any], grid: str, fit: str | None
) -> None:
    found = feature_answers(
        [
            line("model", 0.7, 0.65, 0.75, on_edge=["it is the largest"], converged=fit is None)
            | more
        ]
    )
    texts = {answer.rule: answer.text for answer in found}
    assert texts["edge"].endswith(f"it is the largest: try a wider {grid}")
    assert fit is None or texts["not converged"].endswith(fit)


@pytest.mark.parametrize("method", ["probe", "knn"])
def test_wider_features_are_advised_where_there_are_images_for_them(method: str) -> None:
    usual = line("model", 0.7, 0.68, 0.72, pool="mean", num_train=1000) | {"method": method}
    (answer,) = feature_answers([usual])
    assert (answer.rule, answer.good) == ("wider features", None)
    assert f"`crate-mae {method} WEIGHTS ADDRESS --pool mean,layers" in answer.text
    assert ("--whiten choose" in answer.text) == (method == "knn")
    assert feature_answers([usual | {"num_train": 999}]) == []
    assert feature_answers([usual, usual | {"pool": "layers"}]) == [], "they were asked for"
    assert feature_answers([usual | {"pool": "cls"}]) == []
    assert feature_answers([usual | {"whitened": True}]) == []
    other = line("random baseline", 0.1, 0.05, 0.2, pool="mean", num_train=1000)
    assert rules(feature_answers([usual, other | {"method": method}])) == {
        "untrained": True, "wider features": None,
    }  # fmt: skip


def test_what_a_test_can_tell() -> None:
    small = line("model", 0.7, 0.57, 0.8, num_test=60, balanced_accuracy=0.6, chance=0.65,
                 majority="paper", on_edge=["penalty 10 is the largest tried"])  # fmt: skip
    found = feature_answers([small])
    assert rules(found) == {"majority": None, "small test": None, "uneven": False, "edge": None}
    text = answers_text(found)
    assert "not clearly above always answering paper, the most frequent class (65.0%)" in text
    assert "60 test images leave 12 points to each side" in text
    large = line("model", 0.7, 0.68, 0.72, num_test=2000, balanced_accuracy=0.69, chance=0.2)
    assert feature_answers([large]) == []
    assert feature_answers([]) == []
    assert answers_text([]) == ""
    below = line("model", 0.1, 0.08, 0.12, chance=0.2)
    assert rules(feature_answers([below])) == {"majority": False}


def test_rows_of_others_may_hold_anything() -> None:
    rows = [line("model", 0.7, 0.6, 0.75, num_test="many", chance=None, on_edge=3,
                 balanced_accuracy="x", converged="perhaps", majority=7)]  # fmt: skip
    assert rules(feature_answers(rows)) == {"small test": None}


def test_few_steps_are_said() -> None:
    assert rules(steps_answers(999)) == {"few steps": False}
    assert steps_answers(1000) == []
    assert steps_answers(100, supervised=True) == []
    assert "99 optimiser steps are very few" in steps_answers(99, supervised=True)[0].text


@pytest.mark.parametrize(
    ("loss", "mean", "expected"),
    [
        (0.96, 0.5, {"hardly completed": False}),
        (1.2, None, {"hardly completed": False}),
        (0.6, 0.5, {"completed": True, "structure": None}),
        (0.4, 0.5, {"completed": True, "structure": True}),
        (0.4, None, {"completed": True}),
        (None, 0.5, {}),
    ],
)
def test_completion(
    loss: float | None, mean: float | None, expected: dict[str, bool | None]
) -> None:
    assert rules(completion_answers(loss, one_colour=1.0, patch_mean=mean)) == expected


def test_a_classifier_that_has_hardly_learned() -> None:
    result = {"accuracy": 0.45, "chance": 0.24, "num_classes": 6, "majority": "paper"}
    found = classifier_answers(result, train_loss=1.39)
    assert rules(found) == {"majority": True, "hardly learned": False}
    assert "hardly learned (loss 1.39, guessing 1.79): raise the rate" in found[1].text
    assert rules(classifier_answers(result, train_loss=0.9)) == {"majority": True}
    assert rules(classifier_answers(result, train_loss=0.05))["by heart"] is None
    # Smoothed labels have a floor: 0.6 of it is no sign of anything.
    assert rules(classifier_answers(result, train_loss=1.1, smoothing=0.3)) == {"majority": True}
    assert rules(classifier_answers(result, train_loss=1.7, mixed=True)) == {"majority": True}
    assert classifier_answers({}) == []


@given(classes=st.integers(2, 30), smoothing=st.floats(0, 0.9))
def test_the_floor_of_smoothed_labels_is_torchs(classes: int, smoothing: float) -> None:
    """Cross-entropy is least where the shares are the smoothed labels themselves."""
    label = torch.zeros(1, dtype=torch.int64)
    shares = torch.full((1, classes), smoothing / classes, dtype=torch.float64)
    shares[0, 0] += 1 - smoothing
    scores = shares.clamp_min(1e-300).log()
    least = F.cross_entropy(scores, label, label_smoothing=smoothing)
    assert smoothed_entropy(classes, smoothing) == pytest.approx(float(least), abs=1e-6)
    assert smoothed_entropy(classes, smoothing) <= math.log(classes) + 1e-9


def test_foreground() -> None:
    found = foreground_answers(0.16, everything=0.1, ellipse=0.3, brightness=0.77)
    assert rules(found) == {"ellipse": False, "brightness": False}
    assert "not above a centred ellipse (0.300)" in found[0].text
    assert "0.770" in found[1].text
    found = foreground_answers(0.6, everything=0.5, ellipse=0.3, brightness=None)
    assert rules(found) == {"ellipse": True}
    assert "above calling everything foreground (0.500)" in found[0].text


def test_data() -> None:
    place = Place(address="imagefolder:my pictures")
    plain = data_answers(5000, {"a": 2000, "b": 3000}, place)
    assert rules(plain) == {"next": None}
    assert "'imagefolder:my pictures' --within 1h`" in plain[0].text
    few = data_answers(150, {"cats": 30, "dogs": 119, "none": 0}, place)
    assert rules(few) == {"next": None, "few images": None, "uneven classes": None}
    assert "dogs has 119 images, cats 30" in few[-1].text
    assert rules(data_answers(5000, {"all": 5000}, place)) == {"next": None, "one class": False}
    assert rules(data_answers(5000, None, place)) == {"next": None}
    assert rules(data_answers(0, {"a": 0}, place)) == {"no images": False}
    assert data_answers(1, None, place)[-1].text.startswith("1 image is few")


def test_of_several_layers_the_whole_encoder_is_judged() -> None:
    """Rows come by layers passed, the embedding first and the usual features last."""
    rows = [
        line(subject, accuracy, accuracy - 0.02, accuracy + 0.02, layer=layer, chance=0.1)
        for layer, model, base in ((0, 0.18, 0.17), (1, 0.95, 0.5), (None, 0.9, 0.6))
        for subject, accuracy in (("model", model), ("random baseline", base))
    ]
    (told,) = [answer for answer in feature_answers(rows) if answer.rule == "untrained"]
    assert told.text == "Linear probe: 90.0%, 30.0 points above random baseline (60.0%)."
    (told,) = [answer for answer in feature_answers(rows[:4]) if answer.rule == "untrained"]
    assert told.text == (
        "Linear probe after 1 layer: 95.0%, 45.0 points above random baseline (50.0%)."
    )
    assert headline(rows, "probe", "raw pixels") is None
