"""Sheets of reconstructions: original, masked, prediction, both, error."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from crate_mae.evaluation.reconstruction import Reconstruction
from crate_mae.figures.base import DPI, check_figure_target, save_figure

ERROR_COLOURS = "magma"

_PANELS = ("original", "masked", "prediction", "prediction + visible", "error")


def reconstruction_sheet(
    reconstruction: Reconstruction,
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    max_rows: int = 16,
    overwrite: bool = False,
) -> Path:
    """The path of a picture with a row per image and the mode, mask ratio and errors in words.

    Columns: original, masked, prediction, prediction + visible, error. Small images are enlarged by
    whole factors, so that every pixel stays a sharp square. Of images with other than 1 or 3
    channels the first three are shown (of two, their mean), and the title says so.
    Raises as `check_figure_target`, and ValueError when there are no rows or too few names.
    """
    path = check_figure_target(path, overwrite=overwrite)
    total, channels, height, width = reconstruction.original.shape
    rows = min(total, max_rows)
    if rows < 1:
        raise ValueError(f"nothing to draw: {total} images, max_rows={max_rows}")
    if names is not None and len(names) != total:
        raise ValueError(f"{len(names)} names for {total} images")
    sheet = _Sheet(height, width, rows)
    caption = _caption(reconstruction, rows)
    headings = [title] if title else []
    note = _channels_note(channels)
    figure = sheet.start([*headings, *([note] if note else [])], caption)
    colours = _error_colours(reconstruction, rows)
    for row in range(rows):
        label = f"image {row + 1}" if names is None else names[row]
        sheet.label(row, _shortened(label), _psnr(float(reconstruction.psnr[row])))
        for column, panel in enumerate(_panels(reconstruction, row, colours)):
            sheet.panel(row, column, panel)
    sheet.colour_bar(colours)
    return save_figure(figure, path)


class _Sheet:
    """A grid of images laid out in whole pixels, from the top left."""

    margin, gap, line = 16, 8, 18
    label_width, bar_width = 178, 84

    def __init__(self, height: int, width: int, rows: int) -> None:
        factor = max(1, round(176 / max(height, width)))
        shrink = min(1.0, 384 / max(height, width))
        self.cell = (
            max(1, round(height * factor * shrink)),
            max(1, round(width * factor * shrink)),
        )
        self.smooth = shrink < 1
        self.rows = rows
        # Rows must be high enough for two lines of text, columns wide enough for their titles.
        self.pitch = (max(self.cell[0], 2 * self.line) + self.gap, max(self.cell[1], 80) + self.gap)
        self.heading = 0

    def start(self, headings: list[str], caption: str) -> Figure:
        """The figure with its headings, column titles and caption."""
        columns = len(_PANELS)
        self.width = 2 * self.margin + self.label_width + columns * self.pitch[1] + self.bar_width
        narrow = self.cell[1] < 120
        text = [part for heading in headings for part in wrap(heading, self.width // 8)]
        below = wrap(caption, self.width // 7)
        self.heading = self.margin + self.line * (len(text) + 1 + narrow) + 6
        body = self.rows * self.pitch[0] - self.gap
        self.height = self.heading + body + self.line * len(below) + self.margin + 12
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI)
        self.figure.set_facecolor("white")
        FigureCanvasAgg(self.figure)
        for index, part in enumerate(text):
            self._text(self.margin, self.margin + index * self.line, part, size=11, weight="bold")
        for column, name in enumerate(_PANELS):
            centre = self._left(column) + self.cell[1] / 2
            words = name.replace(" + ", "\n+ ") if narrow else name
            self._text(centre, self.heading - 6, words, ha="center", va="bottom")
        for index, part in enumerate(below):
            top = self.heading + body + 12 + index * self.line
            self._text(self.margin, top, part, color="#333333", size=9)
        return self.figure

    def label(self, row: int, name: str, value: str) -> None:
        """The name of an image and its figure of merit, left of a row."""
        right, middle = self.margin + self.label_width - 10, self._top(row) + self.cell[0] / 2
        self._text(right, middle - 1, name, ha="right", va="bottom", size=9)
        self._text(right, middle + 1, value, ha="right", va="top", size=9, color="#555555")

    def panel(self, row: int, column: int, image: np.ndarray) -> None:
        """One image (H, W, 3) in its cell."""
        axes = self._axes(self._left(column), self._top(row), self.cell[1], self.cell[0])
        axes.set_axis_off()
        smooth = "antialiased" if self.smooth else "nearest"
        axes.imshow(image, interpolation=smooth, aspect="auto")

    def colour_bar(self, colours: ScalarMappable) -> None:
        """The scale of the error, right of the first row."""
        left = self.margin + self.label_width + len(_PANELS) * self.pitch[1] + 4
        height = min(max(self.cell[0], 100), self.rows * self.pitch[0] - self.gap)
        bar = self._axes(left, self._top(0), 12, height)
        self.figure.colorbar(colours, cax=bar)
        bar.tick_params(labelsize=8, length=2)
        bar.set_ylabel("absolute error", fontsize=8)

    def _left(self, column: int) -> int:
        spare = self.pitch[1] - self.gap - self.cell[1]
        return self.margin + self.label_width + column * self.pitch[1] + spare // 2

    def _top(self, row: int) -> int:
        return self.heading + row * self.pitch[0]

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def _text(self, x: float, y: float, words: str, *, va: str = "top", **style: Any) -> None:
        # File names may hold dollar signs, which are no formulas.
        self.figure.text(
            x / self.width, 1 - y / self.height, words, va=va, parse_math=False, **style
        )


def _panels(reconstruction: Reconstruction, row: int, colours: ScalarMappable) -> list[np.ndarray]:
    images = (
        reconstruction.original,
        reconstruction.masked,
        reconstruction.prediction,
        reconstruction.pasted,
    )
    error = colours.to_rgba(reconstruction.error[row, 0].nan_to_num(0.0).clamp(0, 1).numpy())
    return [*(_drawable(image[row]) for image in images), error]


def _drawable(image: Tensor) -> np.ndarray:
    """An array (H, W, 3) of an image (C, H, W) of any number of channels."""
    # A model that has gone astray is still worth a picture.
    image = image.nan_to_num(0.0).clamp(0, 1)
    if image.shape[0] < 3:
        image = image.mean(dim=0).expand(3, -1, -1)
    return image[:3].permute(1, 2, 0).numpy()


def _channels_note(channels: int) -> str | None:
    if channels in (1, 3):
        return None
    shown = "their mean" if channels < 3 else "channels 1 to 3 as red, green, blue"
    return f"{channels} channels: {shown} shown; errors over all"


def _caption(reconstruction: Reconstruction, rows: int) -> str:
    total = len(reconstruction.mse)
    share = float(reconstruction.mask.double().mean())
    parts = [f"{share:.0%} of patches removed."]
    if not reconstruction.mse.isnan().all():
        over = "" if total == 1 else f", mean over {total} images"
        mean_psnr = _psnr(float(reconstruction.psnr.double().nanmean()))
        parts.append(
            f"On removed patches{over}: MSE {float(reconstruction.mse.double().nanmean()):.4g}"
            f" (pixels from 0 to 1), {mean_psnr}."
        )
    parts.append(f'Mode "{reconstruction.mode}": {reconstruction.caption}')
    if rows < total:
        parts.append(f"The first {rows} of {total} images are shown.")
    return " ".join(parts)


def _psnr(value: float) -> str:
    return "no PSNR" if math.isnan(value) else f"PSNR {value:.1f} dB"


def _error_colours(reconstruction: Reconstruction, rows: int) -> ScalarMappable:
    largest = float(reconstruction.error[:rows].max())
    top = max(0.1, math.ceil(largest * 10) / 10) if math.isfinite(largest) else 1.0
    return ScalarMappable(Normalize(0, top), colormaps[ERROR_COLOURS])


def _shortened(name: str, limit: int = 22) -> str:
    name = " ".join(name.split())
    if len(name) <= limit:
        return name
    return f"{name[: limit // 3]}…{name[-(limit - limit // 3 - 1) :]}"
