"""Sheets of dense tokens: principal components as colours, foreground and how well it fits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from crate_mae.dense.layout import to_pixels
from crate_mae.dense.segmentation import Agreement, Segmentation
from crate_mae.dense.token_maps import TokenMap
from crate_mae.dense.token_pca import TokenBasis
from crate_mae.figures.sheet import Sheet, channels_note, checked_names, drawable
from crate_mae.figures.style import ORANGE, check_figure_target, save_figure

COMPONENT_COLOURS = "cividis"  # dark to light for every eye and in grey print
SCORE_COLOURS = "viridis"


def draw_pca(
    tokens: TokenMap,
    basis: TokenBasis | Sequence[TokenBasis],
    shown: Tensor,
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    max_rows: int = 16,
    overwrite: bool = False,
) -> Path:
    """The path of a picture of tokens in the colours of their principal components.

    `basis` is one for all images or one for each. Columns: image, the first three components as
    red, green and blue, then each component by itself on a scale that can be read without colour
    vision, from dark (low) to light; background is left white. `shown` (B, C, H, W) are the images
    on the [0, 1] scale.
    Raises as `check_figure_target`, and ValueError for names, images or bases that do not fit and
    for a basis of another model.
    """
    path = check_figure_target(path, overwrite=overwrite)
    rows = min(len(tokens.values), max_rows)
    labels = checked_names(names, rows and len(tokens.values))
    bases = [basis] * len(labels) if isinstance(basis, TokenBasis) else list(basis)
    if len(shown) != len(labels) or len(bases) != len(labels):
        raise ValueError(f"{len(bases)} bases and {len(shown)} images for {len(labels)} token maps")
    count = min(3, min(len(one.axes) for one in bases))
    titles = ["image", "components\n1, 2, 3 as RGB"]
    columns = [*titles, *(f"component {place + 1}" for place in range(count))]
    size = tokens.layout.image_hw
    sheet = Sheet(size, columns, rows)
    note = channels_note(shown.shape[1])
    figure = sheet.start([note] if note else [], _basis_caption(tokens, bases, basis, rows))
    scale = colormaps[COMPONENT_COLOURS]
    for row in range(rows):
        values, one = tokens.values[row], bases[row]
        levels = to_pixels(one.levels(values).permute(2, 0, 1)[:count], tokens.layout, smooth=False)
        here = None if one.foreground is None else one.foreground.mask(values).float()
        part = "" if here is None else f"{float(here.mean()):.0%} foreground"
        sheet.label(row, labels[row], part)
        sheet.panel(row, 0, drawable(shown[row]))
        white = None
        if here is not None:
            white = to_pixels(here, tokens.layout, smooth=False).numpy() < 0.5
        colours = torch.cat([levels, torch.zeros(3 - count, *size)]).permute(1, 2, 0).numpy()
        sheet.panel(row, 1, _on_white(colours, white))
        for place in range(count):
            sheet.panel(row, 2 + place, _on_white(scale(levels[place].numpy())[..., :3], white))
    return save_figure(figure, path)


def draw_segmentation(
    segmentation: Segmentation,
    shown: Tensor,
    path: str | Path,
    *,
    truth: Tensor | None = None,
    scores: Agreement | None = None,
    names: Sequence[str] | None = None,
    max_rows: int = 16,
    overwrite: bool = False,
) -> Path:
    """The path of a picture of foreground masks: image, score, mask and, if given, the truth.

    Masks (B, H, W) are outlined on the image, which is faded outside of them. Scores run from dark
    to light over each image. With `scores`, each image says its intersection over union.
    Raises as `check_figure_target`, and ValueError for names, images or truth that do not fit.
    """
    path = check_figure_target(path, overwrite=overwrite)
    rows = min(len(segmentation.masks), max_rows)
    labels = checked_names(names, rows and len(segmentation.masks))
    if len(shown) != len(labels) or (truth is not None and truth.shape != segmentation.masks.shape):
        raise ValueError(f"images and truth must belong to the {len(labels)} masks")
    columns = ["image", "score", "foreground found", *(["truth"] if truth is not None else [])]
    sheet = Sheet((int(shown.shape[2]), int(shown.shape[3])), columns, rows)
    note = channels_note(shown.shape[1])
    figure = sheet.start([note] if note else [], _mask_caption(segmentation, scores, rows))
    for row in range(rows):
        sheet.label(row, labels[row], "" if scores is None else f"IoU {float(scores.iou[row]):.2f}")
        image = drawable(shown[row])
        sheet.panel(row, 0, image)
        sheet.panel(row, 1, _spread(segmentation.scores[row]))
        masks = [segmentation.masks[row], *([truth[row]] if truth is not None else [])]
        for column, mask in enumerate(masks):
            _outlined(sheet, row, 2 + column, image, mask.numpy())
    return save_figure(figure, path)


def _on_white(image: np.ndarray, white: np.ndarray | None) -> np.ndarray:
    picture: np.ndarray = image if white is None else np.where(white[..., None], 1.0, image)
    return picture


def _spread(scores: Tensor) -> np.ndarray:
    low, high = float(scores.min()), float(scores.max())
    level = (scores - low) / (high - low) if high > low else torch.zeros_like(scores)
    picture: np.ndarray = colormaps[SCORE_COLOURS](level.numpy())[..., :3]
    return picture


def _outlined(sheet: Sheet, row: int, column: int, image: np.ndarray, mask: np.ndarray) -> None:
    pale = 0.75 + 0.25 * image.mean(axis=-1, keepdims=True)
    axes = sheet.panel(row, column, np.where(mask[..., None], image, pale))
    if mask.any() and not mask.all():
        _contour(axes, mask)


def _contour(axes: Axes, mask: np.ndarray) -> None:
    for colour, width in (("white", 2.6), (ORANGE, 1.3)):
        axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=width)


def _basis_caption(
    tokens: TokenMap, bases: list[TokenBasis], given: TokenBasis | Sequence[TokenBasis], rows: int
) -> str:
    description, first = tokens.words(), bases[0]
    parts = [f"Principal components of {description}."]
    if isinstance(given, TokenBasis):
        shares = ", ".join(f"{share:.0%}" for share in first.explained[:3].tolist())
        parts.append(
            f"One basis from {first.tokens} tokens of {first.images} images ({shares} of their"
            " variance)."
        )
    else:
        parts.append("A basis for each image: colours of different rows cannot be compared.")
    parts.append(
        f"Scores from the {first.quantile:g} to the {1 - first.quantile:g} quantile are drawn from"
        " dark to light; the sign makes the largest coefficient positive."
    )
    if first.foreground is not None:
        parts.append(f"Foreground, the rest is white: {first.foreground.rule}.")
    if rows < len(bases):
        parts.append(f"The first {rows} of {len(bases)} images are shown.")
    return " ".join(parts)


def _mask_caption(segmentation: Segmentation, scores: Agreement | None, rows: int) -> str:
    parts = [segmentation.words()]
    if scores is not None:
        parts.append(
            f"Intersection over union, mean of {len(scores.iou)}: {float(scores.iou.mean()):.3f};"
            f" everything called foreground {float(scores.everything.mean()):.3f}; the better side"
            f" of each mask, chosen with the truth, {float(scores.oracle.mean()):.3f}."
        )
    if rows < len(segmentation.masks):
        parts.append(f"The first {rows} of {len(segmentation.masks)} images are shown.")
    return " ".join(parts)
