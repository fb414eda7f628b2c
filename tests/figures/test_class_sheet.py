"""Pictures of classes of pixels: panels, colours, words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from figure_cases import holds, panels, pixels, texts

from crate_mae.figures.class_sheet import class_colours, draw_classes
from crate_mae.models.mask_classes import VOID, MaskClasses

CLASSES = MaskClasses(values=(0, 1), names=("_$ground", "pet"))


@pytest.mark.usefixtures("svg_words")
def test_panels_and_words(tmp_path: Path) -> None:
    shown = torch.full((2, 3, 8, 8), 0.5)
    told = torch.zeros(2, 8, 8, dtype=torch.uint8)
    told[:, :4] = 1
    truth = told.clone()
    truth[0, 0], truth[1] = 0, VOID
    path = draw_classes(
        shown, told, tmp_path / "a.svg", classes=CLASSES, truth=truth, names=["p", "q"],
        caption="Whose they are.",
    )  # fmt: skip
    words = texts(path)
    for expected in ("prediction", "truth", "errors", "_$ground", "pet", "88% right",
                     "nothing counts", "Whose they are."):  # fmt: skip
        assert expected in words, expected
    assert panels(path) == 2 * 4
    bare = draw_classes(shown, told, tmp_path / "b.svg", classes=CLASSES)
    assert "truth" not in texts(bare)
    picture = pixels(draw_classes(shown, told, tmp_path / "c.png", classes=CLASSES))
    for colour in class_colours(2):
        mixed = 0.6 * colour + 0.4 * 0.5
        assert holds(picture, mixed.astype(np.float32)) > 50 * 50
    with pytest.raises(ValueError, match="do not belong to 2 images"):
        draw_classes(shown, told[:1], tmp_path / "d.png", classes=CLASSES)
    with pytest.raises(FileExistsError):
        draw_classes(shown, told, tmp_path / "c.png", classes=CLASSES)


@pytest.mark.parametrize("count", [2, 8, 9, 40, 255])
def test_every_class_has_a_colour_of_its_own(count: int) -> None:
    colours = class_colours(count)
    assert colours.shape == (count, 3)
    assert len({tuple(np.round(colour, 6)) for colour in colours.tolist()}) == count
    assert colours.min() >= 0
    assert colours.max() <= 1
