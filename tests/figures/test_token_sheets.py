"""Pictures of tokens and foreground: panels, scales and words."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from figure_cases import holds, panels, pictures, pixels, texts, tokens
from torch import Tensor

from crate_mae.dense.segmentation import Segmentation, agreement
from crate_mae.dense.token_pca import TokenBasis, fit_token_map
from crate_mae.figures.token_sheets import draw_pca, draw_segmentation

pytestmark = pytest.mark.usefixtures("svg_words")


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
