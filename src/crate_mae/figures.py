"""Pictures: reconstructions and training curves. Data in, a file out; no global plotting state."""

import math
import warnings
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

from crate_mae.evaluation.features import check_file_target
from crate_mae.evaluation.reconstruction import Reconstruction
from crate_mae.files import replacing

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
DPI = 100
ERROR_COLOURS = "magma"

# Okabe and Ito's palette, told apart with any colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"

_PANELS = ("original", "masked", "prediction", "prediction + visible", "error")
_LEARNING_RATES = ("lr", "train/lr", "learning_rate", "lr-AdamW")


def check_figure_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """The path, once a figure can be saved there: call it before any work.

    Raises ValueError for a suffix other than .png, .pdf or .svg, and FileExistsError for a file
    that is there, unless `overwrite` is set.
    """
    return check_file_target(path, FIGURE_SUFFIXES, what="figures", overwrite=overwrite)


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
    return _save(figure, path)


def training_curves(
    metrics: Sequence[dict[str, float]], path: str | Path, *, overwrite: bool = False
) -> Path:
    """The path of a picture of the losses and the learning rate by step.

    Each row of `metrics` has a "step" and any of "train/loss", "val/loss", "val/mean_colour",
    "val/patch_mean" and "lr"; what is absent or not finite is left out.
    Raises as `check_figure_target`, and ValueError when no row has a loss.
    """
    path = check_figure_target(path, overwrite=overwrite)
    train, validation = _curve(metrics, "train/loss"), _curve(metrics, "val/loss")
    if not len(train[0]) and not len(validation[0]):
        raise ValueError("no row of the metrics has a step and a finite train/loss or val/loss")
    rate = next((c for key in _LEARNING_RATES if len((c := _curve(metrics, key))[0])), None)

    figure = Figure(figsize=(8, 5 if rate else 4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 if rate else 1, 1, height_ratios=[4, 1] if rate else [1])
    axes = figure.add_subplot(grid[0])
    for curve, words, colour in (
        (train, "training loss", BLUE),
        (validation, "validation loss", ORANGE),
    ):
        if len(curve[0]):
            marker = "o" if len(curve[0]) < 40 else None
            axes.plot(
                *curve, label=words, color=colour, linewidth=1.2, marker=marker, markersize=3.5
            )
    for key, words, colour, dashes in (
        ("val/mean_colour", "predicting the mean colour", GREEN, "--"),
        ("val/patch_mean", "predicting each patch's mean", GREY, ":"),
    ):
        level = _curve(metrics, key)[1]
        if len(level):
            label = f"{words} ({level[-1]:.3g})"
            axes.axhline(level[-1], color=colour, linestyle=dashes, linewidth=1.5, label=label)
    _finish_losses(axes, np.concatenate([train[1], validation[1]]))
    if rate:
        small = figure.add_subplot(grid[1], sharex=axes)
        small.plot(*rate, color=GREY, linewidth=1.2)
        small.set_ylabel("learning rate")
        small.set_ylim(bottom=0)
        small.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.tick_params(labelbottom=False)
    figure.axes[-1].set_xlabel("step")
    figure.align_ylabels()
    return _save(figure, path)


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


def _curve(metrics: Sequence[dict[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [
        (row["step"], row[key])
        for row in metrics
        if key in row and "step" in row and math.isfinite(row[key])
    ]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    order = steps.argsort(kind="stable")
    return steps[order], values[order]


def _finish_losses(axes: Axes, values: np.ndarray) -> None:
    axes.set_ylabel("masked loss")
    # A few large first steps must not press the rest of the curve flat.
    if values.min() > 0 and values.max() > 10 * np.median(values):
        axes.set_yscale("log")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _save(figure: Figure, path: Path) -> Path:
    kind = path.suffix.lower()[1:]
    undated: dict[str, dict[str, Any]] = {
        "png": {},
        "pdf": {"CreationDate": None},
        "svg": {"Date": None},
    }
    with replacing(path) as fresh, warnings.catch_warnings():
        # Names in any script; a letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(fresh, format=kind, dpi=DPI, metadata=undated[kind])
    return path
