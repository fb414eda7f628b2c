"""Sheets of images beside each other: each with its nearest ones, pairs that are alike."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from crate_mae.figures.sheet import Sheet, channels_note, drawable
from crate_mae.figures.style import check_figure_target, save_figure

MAX_ROWS = 24
"""Rows that are drawn; the caption says how many there are."""


def draw_image_rows(
    rows: Sequence[Sequence[Tensor]],
    path: str | Path,
    *,
    columns: Sequence[str],
    labels: Sequence[tuple[str, str]],
    caption: str,
    overwrite: bool = False,
) -> Path:
    """The path of a picture with a row of images (C, H, W), on the [0, 1] scale, for each of rows.

    `columns` are the titles, at least as many as the longest row has images; `labels` a name and a
    figure of merit for each row. Raises as `check_figure_target`, and ValueError without rows or
    for labels and columns that do not fit.
    """
    path = check_figure_target(path, overwrite=overwrite)
    if not rows or not rows[0]:
        raise ValueError("nothing to draw: no images")
    longest = max(map(len, rows))
    if len(labels) != len(rows) or len(columns) < longest:
        raise ValueError(
            f"{len(labels)} labels and {len(columns)} titles for {len(rows)} rows of up to"
            f" {longest} images"
        )
    channels, height, width = rows[0][0].shape
    shown = rows[:MAX_ROWS]
    sheet = Sheet((height, width), list(columns), len(shown), side=128)
    parts = [caption]
    if len(shown) < len(rows):
        parts.append(f"The first {len(shown)} of {len(rows)} rows are shown.")
    note = channels_note(channels)
    figure = sheet.start([], " ".join([*parts, f"{note}." if note else ""]).strip())
    for row, (images, (name, value)) in enumerate(zip(shown, labels, strict=False)):
        sheet.label(row, name, value)
        for column, image in enumerate(images):
            sheet.panel(row, column, drawable(image))
    return save_figure(figure, path)
