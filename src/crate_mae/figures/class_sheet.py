"""Sheets of images whose pixels have classes: what is predicted beside what is true."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from crate_mae.figures.sheet import Sheet, channels_note, checked_names, drawable, shortened
from crate_mae.figures.style import check_figure_target, save_figure
from crate_mae.models.mask_classes import VOID, MaskClasses

COLOURS = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
"""Okabe and Ito's palette, told apart with any colour vision, for the first classes."""
VOID_COLOUR = "#FFFFFF"
MIXED = 0.6
"""How much of a panel is the colour of the class; the rest is the image, in grey."""
NAMED = 8
"""Classes that the legend names."""


def draw_classes(
    shown: Tensor,
    predicted: Tensor,
    path: str | Path,
    *,
    classes: MaskClasses,
    truth: Tensor | None = None,
    names: Sequence[str] | None = None,
    caption: str = "",
    max_rows: int = 16,
    overwrite: bool = False,
) -> Path:
    """The path of a picture of classes of pixels: image, what is told, what is true, and errors.

    `shown` (B, C, H, W) are images on the [0, 1] scale, `predicted` and `truth` (B, H, W) class
    numbers; where nothing counts, the truth is white. Errors are white where the class is told
    right, black where it is not.
    Raises as `check_figure_target`, and ValueError for names or masks that do not fit.
    """
    path = check_figure_target(path, overwrite=overwrite)
    rows = min(len(shown), max_rows)
    labels = checked_names(names, rows and len(shown))
    size = (int(shown.shape[2]), int(shown.shape[3]))
    for masks in (predicted, *([] if truth is None else [truth])):
        if masks.shape != (len(shown), *size):
            raise ValueError(f"masks {tuple(masks.shape)} do not belong to {len(shown)} images")
    columns = ["image", "prediction", *(["truth", "errors"] if truth is not None else [])]
    sheet = Sheet(size, columns, rows)
    note = channels_note(shown.shape[1])
    figure = sheet.start([note] if note else [], caption)
    palette = class_colours(len(classes.values))
    for row in range(rows):
        image = drawable(shown[row])
        found = predicted[row].numpy()
        right = ""
        if truth is not None:
            true = truth[row].numpy()
            counted = true != VOID
            share = float((found == true)[counted].mean()) if counted.any() else float("nan")
            right = f"{share:.0%} right" if counted.any() else "nothing counts"
            sheet.panel(row, 2, _coloured(true, image, palette))
            sheet.panel(row, 3, _errors(found, true))
        sheet.label(row, labels[row], right)
        sheet.panel(row, 0, image)
        sheet.panel(row, 1, _coloured(found, image, palette))
    _name_colours(figure, classes.names, palette)
    return save_figure(figure, path)


def _name_colours(figure: Figure, names: Sequence[str], palette: np.ndarray) -> None:
    """A legend at the upper right; names may hold what matplotlib takes for formulas or hides."""
    count = min(len(names), NAMED)
    handles = [Patch(facecolor=tuple(colour)) for colour in palette[:count]]
    legend = figure.legend(
        handles=handles, labels=[str(number) for number in range(count)], loc="upper right",
        fontsize=8, frameon=False, handlelength=1.0,
    )  # fmt: skip
    for text, name in zip(legend.get_texts(), names, strict=False):
        text.set_parse_math(False)
        text.set_text(shortened(name, 12))


def class_colours(count: int) -> np.ndarray:
    """A colour (3,) for each of so many classes, from 0 to 1; (count, 3)."""
    known = np.array([_rgb(colour) for colour in COLOURS])
    if count <= len(known):
        return known[:count]
    more = colormaps["hsv"](np.linspace(0, 1, count - len(known), endpoint=False))[:, :3]
    return np.concatenate([known, 0.25 + 0.6 * more])


def _coloured(numbers: np.ndarray, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    table = np.concatenate([palette, np.ones((VOID + 1 - len(palette), 3))])
    grey = image.mean(axis=-1, keepdims=True)
    mixed = MIXED * table[numbers] + (1 - MIXED) * grey
    picture: np.ndarray = np.where((numbers == VOID)[..., None], _rgb(VOID_COLOUR), mixed)
    return picture


def _errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    wrong = (found != true) & (true != VOID)
    picture: np.ndarray = np.where(wrong, 0.0, 1.0)[..., None].repeat(3, axis=-1)
    return picture


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
