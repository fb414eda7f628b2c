"""Sheets of attention maps: a row per layer, a column per head, and their mean."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from torch import Tensor

from crate_mae.dense.attention import AttentionMaps, head_numbers
from crate_mae.dense.layout import to_pixels
from crate_mae.dense.thresholds import mass_mask
from crate_mae.figures.sheet import Sheet, channels_note, drawable, shortened
from crate_mae.figures.style import check_figure_target, save_figure

WEIGHT_COLOURS = "viridis"  # light means more, in grey print, too

_FADED = 0.88


def draw_attention(
    maps: AttentionMaps,
    shown: Tensor,
    path: str | Path,
    *,
    image: int = 0,
    heads: Sequence[int] | None = None,
    mass: float | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """The path of a picture of one image's attention: the image, then heads, then their mean.

    `shown` (B, C, H, W) are the images on the [0, 1] scale and `image` the one to draw; `heads`
    count from 0 (None: all), while the mean is always over all heads. Each layer has its own scale,
    from 0 to its largest weight on a patch, the query itself left out, and every panel says which
    share the query keeps for itself (of memberships, that of the class token). A patch that asks is
    framed. With `mass`, panels show where in
    the image the fewest patches lie that hold that share of the attention on (other) patches.
    Raises as `check_figure_target`, and ValueError for an image, head or mass that does not exist.
    """
    path = check_figure_target(path, overwrite=overwrite)
    if not 0 <= image < len(maps.weights) or len(shown) != len(maps.weights):
        raise ValueError(
            f"image {image} does not exist among {len(maps.weights)} maps and {len(shown)} images"
        )
    original = shown[image]
    chosen = head_numbers(heads, maps.weights.shape[2])
    # (layers, columns, R, S) and (layers, columns)
    panels, others, own = (
        torch.cat([of_all[image][:, chosen], of_all[image].mean(dim=1, keepdim=True)], dim=1)
        for of_all in (maps.patches, maps.others, maps.own)
    )
    attended = None if mass is None else mass_mask(others.flatten(-2), mass).view_as(others)

    columns = ["image", *(f"head {head}" for head in chosen), "mean of all"]
    size = (int(original.shape[1]), int(original.shape[2]))
    sheet = Sheet(size, columns, len(maps.layers), side=176 if len(columns) < 6 else 120)
    note = channels_note(original.shape[0])
    figure = sheet.start([f"{shortened(name, 60)}"] if name else [], _caption(maps, note, mass))
    for row, layer in enumerate(maps.layers):
        sheet.label(row, f"layer {layer}", maps.side)
        if row == 0:
            _frame(sheet.panel(row, 0, drawable(original)), maps)
        colours = _scale(others[row])
        for column in range(panels.shape[1]):
            if attended is None:
                values = to_pixels(panels[row, column], maps.layout, smooth=False).numpy()
                picture = colours.to_rgba(values)[..., :3]
            else:
                where = to_pixels(attended[row, column].float(), maps.layout, smooth=False) > 0.5
                picture = _spotlight(drawable(original), where.numpy())
            axes = sheet.panel(row, column + 1, picture)
            _frame(axes, maps)
            token = "own" if maps.kind == "attention" else "class token"
            _note(axes, f"{token} {float(own[row, column]):.0%}")
        if attended is None:
            label = "weight" if maps.kind == "attention" else "membership"
            sheet.colour_bar(colours, label, row=row, tall=False)
    return save_figure(figure, path)


def _scale(others: Tensor) -> ScalarMappable:
    """Colours of one layer, from 0 to the largest of its weights (columns, R, S) on other patches.

    A patch is nearly always most like itself and would leave everything else dark.
    """
    top = float(others.max())
    return ScalarMappable(Normalize(0, top if top > 0 else 1.0), colormaps[WEIGHT_COLOURS])


def _spotlight(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) where the mask (H, W) holds, faded to a pale grey elsewhere."""
    pale = _FADED + (1 - _FADED) * image.mean(axis=-1, keepdims=True)
    picture: np.ndarray = np.where(where[..., None], image, pale)
    return picture


def _frame(axes: Axes, maps: AttentionMaps) -> None:
    """Frame the patch that asks, white within black so that it shows on any colour."""
    if maps.query == "class":
        return
    (row, column), layout = maps.query, maps.layout
    corner = (column * layout.stride[1] - 0.5, row * layout.stride[0] - 0.5)
    for colour, width in (("black", 3.0), ("white", 1.4)):
        axes.add_patch(
            Rectangle(
                corner,
                layout.patch_hw[1],
                layout.patch_hw[0],
                fill=False,
                edgecolor=colour,
                linewidth=width,
            )
        )


def _note(axes: Axes, text: str) -> None:
    axes.text(
        0.03,
        0.04,
        text,
        transform=axes.transAxes,
        fontsize=7,
        color="white",
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "#000000aa", "edgecolor": "none"},
    )


def _caption(maps: AttentionMaps, note: str | None, mass: float | None) -> str:
    description, patches = maps.words(), "a patch" if maps.query == "class" else "another patch"
    heads = maps.weights.shape[2]
    if maps.kind == "membership":
        return _membership_caption(description, heads, note, mass)
    parts = [
        f"{description[0].upper()}{description[1:]}.",
        f"{heads} heads, counted from 0 as layers are.",
    ]
    if mass is None:
        parts.append(f"Each layer is drawn from 0 to its largest weight on {patches}.")
    else:
        where = "patches" if maps.query == "class" else "other patches"
        parts.append(f"Shown: the fewest patches that hold {mass:.0%} of the attention on {where}.")
    parts.append('"own": share that the query keeps for itself.')
    if maps.query != "class":
        parts.append("The framed patch asks.")
    if note:
        parts.append(f"{note}.")
    return " ".join(parts)


def _membership_caption(words: str, heads: int, note: str | None, mass: float | None) -> str:
    """The caption of memberships: no token attends to another, and over heads they sum to 1."""
    shown = (
        "Each layer is drawn from 0 to its largest membership of a patch."
        if mass is None
        else f"Shown: the fewest patches that hold {mass:.0%} of a head's memberships."
    )
    parts = [
        f"{words[0].upper()}{words[1:]}.",
        f"{heads} heads, counted from 0 as layers are.",
        "No token attends to another one: a map shows how much each patch belongs to the head,"
        f" and over heads a patch's memberships sum to 1, so their mean is 1/{heads}.",
        shown,
        "The class token's own is written in.",
    ]
    return " ".join([*parts, f"{note}."] if note else parts)
