"""Pictures of attention, tokens, foreground and features: panels, scales and words."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from crate_mae.dense.attention import AttentionMaps
from crate_mae.dense.layout import Layout
from crate_mae.dense.segmentation import Segmentation, agreement
from crate_mae.dense.token_maps import TokenMap
from crate_mae.dense.token_pca import TokenBasis, fit_token_map
from crate_mae.evaluation.feature_map import FeatureMap
from crate_mae.figures.attention_sheet import draw_attention
from crate_mae.figures.feature_plane import draw_feature_map
from crate_mae.figures.token_sheets import draw_pca, draw_segmentation

LAYOUT = Layout(image_hw=(8, 12), patch_hw=(4, 4), stride=(4, 4), trained_hw=(8, 12))


@pytest.fixture(autouse=True)
def svg_words() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcParams["svg.fonttype"] = "none"
        yield


def texts(path: Path) -> str:
    root = ElementTree.parse(path).getroot()
    words = (element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    return " ".join(words)


def panels(path: Path) -> int:
    """How many images an SVG holds."""
    root = ElementTree.parse(path).getroot()
    return sum(1 for _ in root.iter("{http://www.w3.org/2000/svg}image"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def holds(picture: np.ndarray, colour: Any) -> int:
    """How many pixels of a picture have a colour (r, g, b) from 0 to 1."""
    wanted = np.round(np.asarray(colour)[:3] * 255)
    return int((np.abs(picture.astype(int) - wanted).max(-1) <= 1).sum())


def pictures(channels: int = 3, count: int = 2) -> Tensor:
    return torch.rand(count, channels, 8, 12, generator=torch.Generator().manual_seed(0))


def maps(**changes: Any) -> AttentionMaps:
    """Two images, two layers, three heads; head 1 of layer 0 looks at patch (1, 2) alone."""
    weights = torch.full((2, 2, 3, 7), 0.1)
    weights[..., 0] = 0.4
    weights[:, 0, 1] = torch.tensor([0.25, 0, 0, 0, 0, 0, 0.75])
    made = AttentionMaps(
        weights=weights, layers=(0, 3), side="encoder", query="class", layout=LAYOUT
    )
    return replace(made, **changes)


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


def tokens(count: int = 2, width: int = 5) -> TokenMap:
    values = torch.randn(count, 2, 3, width, generator=torch.Generator().manual_seed(0))
    return TokenMap(values=values, layer=1, kind="tokens", layout=LAYOUT)


def test_components_by_colour_and_one_by_one(tmp_path: Path) -> None:
    found = tokens()
    (basis,) = fit_token_map(found, quantile=0.05)
    path = draw_pca(found, basis, pictures(), tmp_path / "a.svg", names=["p", "q"])
    words = texts(path)
    for expected in (
        "components",
        "component 3",
        "tokens after 1 encoder layers",
        "One basis from 12 tokens of 2 images",
        "0.05 to the 0.95 quantile",
    ):
        assert expected in words, expected
    assert panels(path) == 2 * 5
    picture = pixels(draw_pca(found, basis, pictures(), tmp_path / "a.png"))
    for row in range(2):
        for colour in basis.levels(found.values)[row].reshape(-1, 3)[:3]:
            assert holds(picture, colour.numpy()) > 30 * 30


def test_background_is_white_and_bases_may_differ(tmp_path: Path) -> None:
    found = tokens()
    bases = fit_token_map(found, each=True, foreground=True, threshold=0.34)
    words = texts(draw_pca(found, bases, pictures(), tmp_path / "a.svg"))
    assert "A basis for each image" in words
    assert "0.34 quantile of the first component" in words
    assert "foreground" in words
    dark = pictures() * 0
    with_step = pixels(draw_pca(found, bases, dark, tmp_path / "b.png"))
    plain = [replace(one, foreground=None) for one in bases]
    without = pixels(draw_pca(found, plain, dark, tmp_path / "c.png", max_rows=2))
    assert holds(with_step, (1, 1, 1)) > holds(without, (1, 1, 1)) * 0.9 + 4 * 40 * 40


def test_narrow_tokens_have_fewer_components(tmp_path: Path) -> None:
    found = tokens(width=2)
    (basis,) = fit_token_map(found)
    assert panels(draw_pca(found, basis, pictures(), tmp_path / "a.svg")) == 2 * 4


def test_token_arguments(tmp_path: Path) -> None:
    found = tokens()
    (basis,) = fit_token_map(found)
    wrong: list[tuple[TokenBasis | list[TokenBasis], Tensor, dict[str, Any], str]] = [
        ([basis], pictures(), {}, "1 bases and 2 images for 2"),
        (basis, pictures(count=1), {}, "2 bases and 1 images"),
        (basis, pictures(), {"names": ["a"]}, "1 names for 2"),
        (basis, pictures(), {"max_rows": 0}, "nothing to draw"),
        (replace(basis, mean=torch.zeros(4).double()), pictures(), {}, "another model"),
    ]
    for bases, shown, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            draw_pca(found, bases, shown, tmp_path / "a.png", **options)


def test_foreground_beside_the_truth(tmp_path: Path) -> None:
    masks = torch.zeros(2, 8, 12, dtype=torch.bool)
    masks[0, 2:6, 3:9] = True
    truth = masks.clone()
    truth[0, 2:4] = False
    found = Segmentation(
        masks=masks, scores=masks.float() + 0.1, rule="Foreground: by hand", source="nothing"
    )
    bare = draw_segmentation(found, pictures(), tmp_path / "a.svg")
    assert panels(bare) == 2 * 3
    assert "IoU" not in texts(bare)
    scores = agreement(masks, truth)
    full = draw_segmentation(found, pictures(), tmp_path / "b.svg", truth=truth, scores=scores)
    assert panels(full) == 2 * 4
    for expected in (
        "IoU 0.50",
        "IoU 1.00",
        "mean of 2: 0.750",
        "by hand",
        "chosen with the truth",
    ):
        assert expected in texts(full), expected
    with pytest.raises(ValueError, match="belong to the 2 masks"):
        draw_segmentation(found, pictures(), tmp_path / "c.png", truth=truth[:1])


def points(classes: int, labels: Tensor | None = None, method: str = "pca") -> FeatureMap:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5 * classes) % classes if labels is None else labels
    return FeatureMap(
        points=torch.randn(len(labels), 2, generator=generator).double(),
        labels=labels,
        class_names=tuple(f"kind ${index}" for index in range(classes)),
        method=method,  # type: ignore[arg-type]
        trustworthiness=0.876,
        neighbours=10,
        settings="laid out somehow",
    )


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


def test_targets_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    found = tokens()
    (basis,) = fit_token_map(found)
    masks = torch.zeros(2, 8, 12, dtype=torch.bool)
    cut = Segmentation(masks=masks, scores=masks.float(), rule="r", source="s")
    draws: list[Callable[[], Path]] = [
        lambda: draw_attention(maps(), pictures(), path),
        lambda: draw_pca(found, basis, pictures(), path),
        lambda: draw_segmentation(cut, pictures(), path),
        lambda: draw_feature_map(points(3), path),
    ]
    for draw in draws:
        with pytest.raises(FileExistsError):
            draw()
    assert path.read_bytes() == b"mine"
    assert draw_segmentation(cut, pictures(), path, overwrite=True).read_bytes() != b"mine"
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg"):
        draw_feature_map(points(3), tmp_path / "a.gif")
    pdf = draw_pca(found, basis, pictures(), tmp_path / "a.pdf")
    assert pdf.read_bytes().startswith(b"%PDF")
