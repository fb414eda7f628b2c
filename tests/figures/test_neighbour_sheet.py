"""Rows of images beside each other: every pixel where it belongs, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mae.figures.neighbour_sheet import MAX_ROWS, draw_image_rows


def plain(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32)[:, None, None].expand(3, 8, 8)


def test_images_are_drawn_in_their_rows(tmp_path: Path) -> None:
    rows = [[plain(1, 0, 0), plain(0, 1, 0)], [plain(0, 0, 1)]]
    labels = [("first", "0.9"), ("second", "")]
    path = draw_image_rows(
        rows, tmp_path / "a.png", columns=["image", "1"], labels=labels, caption="Two rows."
    )
    pixels = np.asarray(Image.open(path).convert("RGB"))
    places = {}
    for name, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255))):
        down, across = np.nonzero((pixels == colour).all(axis=-1))
        assert len(down) == 128 * 128, name
        places[name] = (down.mean(), across.mean())
    assert places["red"][0] == places["green"][0]
    assert places["red"][1] < places["green"][1]
    assert places["blue"][0] > places["red"][0]
    assert places["blue"][1] == places["red"][1]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    image = plain(0, 0, 0)
    words = {"columns": ["image"], "labels": [("a", "")], "caption": ""}
    with pytest.raises(ValueError, match="no images"):
        draw_image_rows([], tmp_path / "a.png", **words)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows of up to 2 images"):
        draw_image_rows([[image, image]], tmp_path / "a.png", **words)  # type: ignore[arg-type]
    many = [[image]] * (MAX_ROWS + 1)
    path = draw_image_rows(
        many, tmp_path / "a.png", columns=["image"], labels=[("a", "")] * len(many), caption=""
    )
    assert path.is_file()
