"""Pictures of attention: panels, scales and words."""

from pathlib import Path

import pytest
import torch
from figure_cases import holds, maps, panels, pictures, pixels, texts
from matplotlib import colormaps

from crate_mae.figures.attention_sheet import draw_attention

pytestmark = pytest.mark.usefixtures("svg_words")


def test_attention_has_a_panel_for_each_head_and_their_mean(tmp_path: Path) -> None:
    path = draw_attention(maps(), pictures(), tmp_path / "a.svg", name="a $x$")
    words = texts(path)
    for expected in (
        "a $x$",
        "layer 0",
        "layer 3",
        "head 2",
        "mean of all",
        "own 25%",
        "own 40%",
        "own 35%",  # the mean of layer 0
        "Attention of the class token, encoder; 2x3 tokens of 8x12 pixels, patch 4x4",
        "3 heads, counted from 0",
    ):
        assert expected in words, expected
    bars = 2
    assert panels(path) == 1 + 2 * 4 + bars
    some = draw_attention(maps(), pictures(), tmp_path / "b.svg", heads=[-1], image=1)
    assert panels(some) == 1 + 2 * 2 + bars
    assert "head 0" not in texts(some)


def test_attention_is_drawn_at_its_patch_on_the_layers_scale(tmp_path: Path) -> None:
    picture = pixels(draw_attention(maps(layers=(0, 1)), pictures(), tmp_path / "a.png"))
    brightest = holds(picture, colormaps["viridis"](1.0))
    cell = 120 // 12 * 4
    assert brightest >= cell * cell  # patch (1, 2) of head 1, and the second layer's ties
    dark = holds(picture, colormaps["viridis"](0.0))
    assert dark >= 5 * cell * cell * 0.8  # the other five patches of that head


def test_a_patch_that_asks_is_framed_and_left_out_of_the_scale(tmp_path: Path) -> None:
    weights = torch.full((1, 1, 1, 7), 0.02)
    weights[..., 1] = 0.88  # patch (0, 0) keeps most for itself
    asked = maps(weights=weights, layers=(0,), query=(0, 0))
    path = draw_attention(asked, pictures(count=1), tmp_path / "a.svg")
    words = texts(path)
    assert "Attention of patch (0, 0)" in words
    assert "The framed patch asks" in words
    assert "own 88%" in words
    picture = pixels(draw_attention(asked, pictures(count=1), tmp_path / "a.png"))
    everywhere = holds(picture, colormaps["viridis"](1.0))
    assert everywhere > 2 * 5 * 40 * 40 * 0.8, "the other patches reach the top of the scale"
    masked = draw_attention(asked, pictures(count=1), tmp_path / "b.svg", mass=0.6)
    assert "hold 60% of the attention on other patches" in texts(masked)


def test_a_mass_shows_the_image_where_it_lies(tmp_path: Path) -> None:
    red = torch.zeros(1, 3, 8, 12)
    red[:, 0] = 1
    alone = maps(weights=maps().weights[:1, :1], layers=(0,))
    picture = pixels(draw_attention(alone, red, tmp_path / "a.png", mass=0.5, heads=[1]))
    # The whole image (6 patches), head 1 (1 patch) and the mean, in which patch (1, 2) has 0.317 of
    # 0.65, just under half, so that one more is needed. A note lies over a part of one patch.
    cell = 4 * 15
    assert 8.6 * cell**2 < holds(picture, (1, 0, 0)) < 9.1 * cell**2


def test_attention_arguments(tmp_path: Path) -> None:
    for options, message in (
        ({"image": 2}, "image 2 does not exist"),
        ({"heads": [3]}, "heads .3. do not exist"),
        ({"mass": 0.0}, "mass"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_attention(maps(), pictures(), tmp_path / "a.png", **options)
    with pytest.raises(ValueError, match="1 images"):
        draw_attention(maps(), pictures(count=1), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    for channels in (1, 2, 5):
        draw_attention(maps(), pictures(channels), tmp_path / f"{channels}.png")
