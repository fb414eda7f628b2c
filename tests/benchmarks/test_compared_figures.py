"""Curves and bars of compared models."""

import math
import re
from pathlib import Path

import pytest
from figure_cases import texts

from compared_figures import compared_curves, variant_losses


@pytest.mark.usefixtures("svg_words")
def test_variants_stand_by_what_they_change(tmp_path: Path) -> None:
    losses = {"worse": 0.52, "base": 0.5, "better": 0.45, "best": 0.4}
    words = texts(variant_losses(losses, tmp_path / "v.svg", emphasised={"best"}))
    places = [words.index(name) for name in ("worse", "better", "best ")]
    assert places == sorted(places)  # upwards
    assert all(change in words for change in ("+0.020", "-0.050", "-0.100"))
    assert "line: base, 0.500" in words
    assert "cut" not in words


@pytest.mark.usefixtures("svg_words")
def test_a_bar_longer_than_all_others_is_cut_and_says_so(tmp_path: Path) -> None:
    losses = {"base": 0.5, "lost": 1.5, "best": 0.4, "good": 0.45}
    words = texts(variant_losses(losses, tmp_path / "v.svg"))
    assert "+1.000 (cut)" in words
    assert words.count("(cut)") == 1
    axis = [float(number) for number in re.findall(r"(?<![-+\d.])[01]\.\d+", words)]
    assert max(axis) < 0.8  # the axis ends long before 1.5


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"base": 0.5}, "'base' and another variant"),
        ({"other": 0.5, "one": 0.4}, "'base' and another variant"),
        ({"base": 0.5, "broken": math.nan}, "not finite: broken"),
    ],
)
def test_variants_that_cannot_be_drawn(
    losses: dict[str, float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        variant_losses(losses, tmp_path / "v.png")
    assert not (tmp_path / "v.png").exists()


@pytest.mark.usefixtures("svg_words")
def test_compared_curves_draw_every_seed_and_refuse_nothing(tmp_path: Path) -> None:
    runs = {"crate": [[(1.0, 0.5), (2.0, 0.4)], [(1.0, 0.6)]], "twin": [[(1.0, 0.3)]]}
    words = texts(compared_curves({"epochs": runs, "operations": runs}, tmp_path / "c.svg"))
    assert words.count("crate") == words.count("twin") == 2  # once a panel
    assert "epochs" in words
    assert "operations" in words
    with pytest.raises(ValueError, match="no run has a loss"):
        compared_curves({"epochs": {"crate": []}}, tmp_path / "n.png")
    many = {f"m{i}": [[(1.0, 0.5)]] for i in range(20)}
    with pytest.raises(ValueError, match="20 models are more"):
        compared_curves({"epochs": many}, tmp_path / "n.png")
