"""Curves of a training run."""

import math
from pathlib import Path

import pytest
from figure_cases import METRICS, texts

from crate_mae.figures.run_curves import draw_training


@pytest.mark.parametrize(
    "metrics",
    [
        METRICS,
        [{"step": 1, "train/loss": 0.5}],
        [{"step": 1, "val/loss": 0.5}, {"other": 1.0}],
        [{"step": s, "train/loss": v} for s, v in enumerate([1e6, 1.0, math.nan, 0.5, 0.4])],
        [{"step": s, "train/loss": 1.0, "lr-AdamW": 1e-4 * s} for s in range(100)],
    ],
)
def test_curves_of_what_is_there(tmp_path: Path, metrics: list[dict[str, float]]) -> None:
    assert draw_training(metrics, tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.usefixtures("svg_words")
def test_the_words_of_the_curves(tmp_path: Path) -> None:
    words = texts(draw_training(METRICS, tmp_path / "a.svg"))
    bare = texts(draw_training([{"step": 1, "train/loss": 0.5}], tmp_path / "b.svg"))
    for expected in ("training loss", "validation loss", "mean colour (0.9)", "(0.4)", "step"):
        assert expected in words
    assert "learning rate" in words
    for absent in ("validation loss", "mean colour", "learning rate"):
        assert absent not in bare


@pytest.mark.usefixtures("svg_words")
def test_accuracy_has_a_panel_of_its_own(tmp_path: Path) -> None:
    tuned: list[dict[str, float]] = [
        {"step": step, "val/loss": 1.0 / step, "val/accuracy": 1 - 1 / step} for step in range(2, 9)
    ]
    words = texts(draw_training(tuned, tmp_path / "a.svg"))
    for expected in ("validation accuracy (best 87.5%, last 87.5%)", "accuracy", "loss"):
        assert expected in words
    assert "masked loss" not in words
    assert "masked loss" in texts(draw_training(METRICS, tmp_path / "b.svg"))


@pytest.mark.usefixtures("svg_words")
def test_what_features_are_worth_has_panels(tmp_path: Path) -> None:
    watched = [
        {
            "step": step, "train/loss": 1.0, "val/knn": 0.5, "val/probe": 0.25,
            "val/effective_rank": 8.0, "val/coding_rate_share": 0.3,
        }
        for step in range(2, 5)
    ]  # fmt: skip
    words = texts(draw_training(watched, tmp_path / "a.svg"))
    for expected in (
        "linear probe, held-out labels (best 25.0%, last 25.0%)",
        "nearest neighbours, held-out labels (best 50.0%, last 50.0%)",
        "effective rank",
        "R / max. R",
    ):
        assert expected in words
