"""Features on a plane: colours, markers and counts."""

from pathlib import Path

import pytest
import torch
from figure_cases import holds, pixels, points, texts

from crate_mae.figures.feature_plane import draw_feature_map

pytestmark = pytest.mark.usefixtures("svg_words")


def test_classes_have_colours_markers_and_counts(tmp_path: Path) -> None:
    path = draw_feature_map(points(10), tmp_path / "a.svg", caption="Features: some.")
    words = texts(path)
    for expected in ("kind $0 (5)", "kind $9 (5)", "Features: some.", "50 images", "0.88"):
        assert expected in words, expected
    assert "other" not in words
    picture = pixels(draw_feature_map(points(10), tmp_path / "a.png"))
    colours = ("#0072B2", "#D55E00", "#009E73")
    for colour in colours:
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        shade = [0.8 * v + 0.2 for v in rgb]  # drawn at 80 % on white
        assert holds(picture, shade) > 20


def test_many_classes_and_missing_labels(tmp_path: Path) -> None:
    labels = torch.cat([torch.arange(14).repeat(3), torch.tensor([2, 2, 13])])
    words = texts(draw_feature_map(points(14, labels, "tsne"), tmp_path / "a.svg"))
    assert "4 other classes" in words
    assert "10 most frequent of 14 classes" in words
    assert "kind $2 (5)" in words
    assert "kind $13 (4)" in words
    assert "Distances between groups" in words
    few = texts(draw_feature_map(points(2, torch.tensor([0, 1, -1, -1, 0])), tmp_path / "b.svg"))
    assert "no label" in few
