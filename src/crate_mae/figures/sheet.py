"""A sheet: a grid of small images in whole pixels, with headings, labels, scales and a caption."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from torch import Tensor

from crate_mae.figures.style import DPI


class Sheet:
    """A grid of images laid out in whole pixels, from the top left.

    Small images are enlarged by whole factors, so that every pixel stays a sharp square; large ones
    shrink. `size` is the image's height and width, `side` the pixels wished for its longer side.
    """

    margin, gap, line = 16, 8, 18
    label_width, bar_width = 178, 84

    def __init__(
        self, size: tuple[int, int], columns: Sequence[str], rows: int, *, side: int = 176
    ) -> None:
        height, width = size
        factor = max(1, round(side / max(height, width)))
        shrink = min(1.0, side * 384 / 176 / max(height, width))
        self.cell = (
            max(1, round(height * factor * shrink)),
            max(1, round(width * factor * shrink)),
        )
        self.smooth = shrink < 1
        self.rows = rows
        # Rows must be high enough for two lines of text, columns wide enough for their titles.
        self.pitch = (max(self.cell[0], 2 * self.line) + self.gap, max(self.cell[1], 80) + self.gap)
        narrow = self.cell[1] < 120
        self.columns = [
            title.replace(" + ", "\n+ ") if narrow and "\n" not in title else title
            for title in columns
        ]
        self.title_lines = max(1 + narrow, *(1 + title.count("\n") for title in self.columns))
        self.heading = 0

    def start(self, headings: Sequence[str], caption: str) -> Figure:
        """The figure with its headings, column titles and caption."""
        columns = len(self.columns)
        self.width = 2 * self.margin + self.label_width + columns * self.pitch[1] + self.bar_width
        text = [part for heading in headings for part in wrap(heading, self.width // 8)]
        below = wrap(caption, self.width // 7)
        self.heading = self.margin + self.line * (len(text) + self.title_lines) + 6
        body = self.rows * self.pitch[0] - self.gap
        self.height = self.heading + body + self.line * len(below) + self.margin + 12
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI)
        self.figure.set_facecolor("white")
        FigureCanvasAgg(self.figure)
        for index, part in enumerate(text):
            self._text(self.margin, self.margin + index * self.line, part, size=11, weight="bold")
        for column, title in enumerate(self.columns):
            centre = self._left(column) + self.cell[1] / 2
            self._text(centre, self.heading - 6, title, ha="center", va="bottom")
        for index, part in enumerate(below):
            top = self.heading + body + 12 + index * self.line
            self._text(self.margin, top, part, color="#333333", size=9)
        return self.figure

    def label(self, row: int, name: str, value: str) -> None:
        """Write the name of a row and its figure of merit left of it."""
        right, middle = self.margin + self.label_width - 10, self._top(row) + self.cell[0] / 2
        self._text(right, middle - 1, shortened(name), ha="right", va="bottom", size=9)
        self._text(right, middle + 1, value, ha="right", va="top", size=9, color="#555555")

    def panel(self, row: int, column: int, image: np.ndarray) -> Axes:
        """The axes, in units of the image's pixels, of one image (H, W, 3) drawn in its cell."""
        axes = self._axes(self._left(column), self._top(row), self.cell[1], self.cell[0])
        axes.set_axis_off()
        smooth = "antialiased" if self.smooth else "nearest"
        axes.imshow(image, interpolation=smooth, aspect="auto")
        return axes

    def colour_bar(
        self, colours: ScalarMappable, label: str, *, row: int = 0, tall: bool = True
    ) -> None:
        """Draw a scale right of a row, `tall` over several rows where they are low."""
        left = self.margin + self.label_width + len(self.columns) * self.pitch[1] + 4
        height = self.cell[0]
        if tall:
            height = min(max(height, 100), self.rows * self.pitch[0] - self.gap)
        bar = self._axes(left, self._top(row), 12, height)
        self.figure.colorbar(colours, cax=bar)
        bar.tick_params(labelsize=8, length=2)
        bar.set_ylabel(label, fontsize=8)

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

    def _text(self, x: float, y: float, text: str, *, va: str = "top", **style: Any) -> None:
        # File names may hold dollar signs, which are no formulas.
        self.figure.text(
            x / self.width, 1 - y / self.height, text, va=va, parse_math=False, **style
        )


def drawable(image: Tensor) -> np.ndarray:
    """An array (H, W, 3) of an image (C, H, W) on the [0, 1] scale, of any number of channels."""
    # A model that has gone astray is still worth a picture.
    image = image.nan_to_num(0.0).clamp(0, 1)
    if image.shape[0] < 3:
        image = image.mean(dim=0).expand(3, -1, -1)
    return image[:3].permute(1, 2, 0).numpy()


def channels_note(channels: int) -> str | None:
    """What is shown of images with other than 1 or 3 channels; None for these two."""
    if channels in (1, 3):
        return None
    shown = "their mean" if channels < 3 else "channels 1 to 3 as red, green, blue"
    return f"{channels} channels: {shown} shown"


def shortened(name: str, limit: int = 22) -> str:
    """A name on one line, its middle left out where it is longer than `limit`."""
    name = " ".join(name.split())
    if len(name) <= limit:
        return name
    return f"{name[: limit // 3]}…{name[-(limit - limit // 3 - 1) :]}"


def checked_names(names: Sequence[str] | None, count: int) -> list[str]:
    """A name for each of `count` images; ValueError when there are none or names do not fit."""
    if count < 1:
        raise ValueError("nothing to draw: no images")
    if names is not None and len(names) != count:
        raise ValueError(f"{len(names)} names for {count} images")
    return [f"image {row + 1}" for row in range(count)] if names is None else list(names)
