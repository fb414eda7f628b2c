"""Sheets of reconstructions: original, masked, prediction, both, error."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from crate_mae.evaluation.reconstruction import Reconstruction
from crate_mae.figures.sheet import Sheet, channels_note, checked_names, drawable
from crate_mae.figures.style import check_figure_target, save_figure

ERROR_COLOURS = "magma"
MAX_SETTINGS = 12

_PANELS = ("original", "masked", "prediction", "prediction + visible", "error")


def draw_reconstruction(
    reconstruction: Reconstruction,
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    max_rows: int = 16,
    overwrite: bool = False,
) -> Path:
    """The path of a picture with a row per image and the mode, mask ratio and errors as text.

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
    sheet = Sheet((height, width), _PANELS, rows)
    caption = _caption(reconstruction, rows)
    headings = [title] if title else []
    note = channels_note(channels)
    figure = sheet.start([*headings, *([f"{note}; errors over all"] if note else [])], caption)
    colours = _error_colours(reconstruction, rows)
    for row in range(rows):
        label = f"image {row + 1}" if names is None else names[row]
        sheet.label(row, label, _psnr(float(reconstruction.psnr[row])))
        for column, panel in enumerate(_panels(reconstruction, row, colours)):
            sheet.panel(row, column, panel)
    sheet.colour_bar(colours, "absolute error")
    return save_figure(figure, path)


def draw_settings(
    settings: Sequence[tuple[str, Reconstruction]],
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    max_rows: int = 16,
    overwrite: bool = False,
) -> Path:
    """The path of a picture that sets masks side by side: a row per image, two columns per setting.

    `settings` are (title, reconstruction) of the same images, such as ("block 75 %", ...). Columns:
    original, then for each setting the masked image and the prediction pasted into it. The caption
    gives each setting's PSNR over all images.
    Raises as `check_figure_target`, and ValueError without rows or settings, for more than 12
    settings, too few names, and settings of different images.
    """
    path = check_figure_target(path, overwrite=overwrite)
    if not 1 <= len(settings) <= MAX_SETTINGS:
        raise ValueError(f"{len(settings)} settings do not fit a sheet; use 1 to {MAX_SETTINGS}")
    first = settings[0][1]
    if any(not first.original.equal(other.original) for _, other in settings):
        raise ValueError("settings are compared on the same images, in the same order")
    total, channels, height, width = first.original.shape
    rows = min(total, max_rows)
    labels = checked_names(names, rows and total)
    columns = ["original"]
    for setting, _ in settings:
        columns += [f"{setting}\nmasked", f"{setting}\ncompleted"]
    side = 176 if len(columns) < 6 else 112
    sheet = Sheet((height, width), columns, rows, side=side)
    note = channels_note(channels)
    figure = sheet.start([f"{note}; errors over all"] if note else [], _compared(settings, rows))
    for row in range(rows):
        sheet.label(row, labels[row], "")
        sheet.panel(row, 0, drawable(first.original[row]))
        for place, (_, reconstruction) in enumerate(settings):
            sheet.panel(row, 1 + 2 * place, drawable(reconstruction.masked[row]))
            sheet.panel(row, 2 + 2 * place, drawable(reconstruction.pasted[row]))
    return save_figure(figure, path)


def _compared(settings: Sequence[tuple[str, Reconstruction]], rows: int) -> str:
    first = settings[0][1]
    total = len(first.mse)
    over = "" if total == 1 else f", mean over {total} images"
    parts = [
        f"Completed: predictions pasted where patches were removed. PSNR on removed patches{over}:",
        "; ".join(
            f"{title} {_decibels(float(result.psnr.double().nanmean()))}"
            for title, result in settings
        )
        + ".",
        "Higher ratios remove more and harder pixels, so compare kinds at one ratio.",
        f'Mode "{first.mode}": {first.caption}',
    ]
    if not first.unit_range:
        parts.append(f"Black to white: {first.units}.")
    if rows < total:
        parts.append(f"The first {rows} of {total} images are shown.")
    return " ".join(parts)


def _decibels(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.1f} dB"


def _panels(reconstruction: Reconstruction, row: int, colours: ScalarMappable) -> list[np.ndarray]:
    images = (
        reconstruction.original,
        reconstruction.masked,
        reconstruction.prediction,
        reconstruction.pasted,
    )
    error = colours.to_rgba(reconstruction.error[row, 0].nan_to_num(0.0).clamp(0, 1).numpy())
    return [*(drawable(image[row]) for image in images), error]


def _caption(reconstruction: Reconstruction, rows: int) -> str:
    total = len(reconstruction.mse)
    share = float(reconstruction.mask.double().mean())
    parts = [f"{share:.0%} of patches removed."]
    if not reconstruction.mse.isnan().all():
        over = "" if total == 1 else f", mean over {total} images"
        mean_psnr = _psnr(float(reconstruction.psnr.double().nanmean()))
        parts.append(
            f"On removed patches{over}: MSE {float(reconstruction.mse.double().nanmean()):.4g}"
            f" ({reconstruction.units}), {mean_psnr}."
        )
    parts.append(f'Mode "{reconstruction.mode}": {reconstruction.caption}')
    if not reconstruction.unit_range:
        parts.append(f"Black to white: {reconstruction.units}; errors are shares of that.")
    if rows < total:
        parts.append(f"The first {rows} of {total} images are shown.")
    return " ".join(parts)


def _psnr(value: float) -> str:
    return "no PSNR" if math.isnan(value) else f"PSNR {_decibels(value)}"


def _error_colours(reconstruction: Reconstruction, rows: int) -> ScalarMappable:
    largest = float(reconstruction.error[:rows].max())
    top = max(0.1, math.ceil(largest * 10) / 10) if math.isfinite(largest) else 1.0
    return ScalarMappable(Normalize(0, top), colormaps[ERROR_COLOURS])
