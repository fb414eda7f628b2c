"""Layer by layer: curves of rates, sparsity and alignment, and the angles between subspaces."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crate_mae.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    check_figure_target,
    new_figure,
    save_captioned,
    tidy,
)
from crate_mae.models.layers import Side
from crate_mae.whitebox.catalogue import HALF_STEPS, MEASURES
from crate_mae.whitebox.table import Measurement, curve, models_of
from crate_mae.whitebox.weight_rows import Overlaps

# Colours, dashes and markers: told apart in grey print as well.
_STYLES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, ":", "^"), (GREY, "-.", "D"))
MAX_MODELS = len(_STYLES)


@dataclass(frozen=True)
class _Panel:
    """A measure by layer; its title and where it is taken are the catalogue's."""

    measure: str
    side: Side
    points: tuple[str, ...] = ()
    """Those to show; all of that side when empty."""
    floor: float | None = 0
    control: str | None = None
    """Measure drawn beside it as a thin line."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The points to show."""
        return self.points or MEASURES[self.measure].points[self.side]


_TOKENS = ("subspace_coding_rate", "coding_rate", "effective_rank")
"""Measures of tokens at every half step of both sides."""
_LAYERS = (
    _Panel("zero_fraction", "encoder"),
    _Panel("lasso_fall", "encoder"),
    _Panel("mssa_shift_gradient_cosine", "encoder", control="shrink_gradient_cosine"),
    _Panel("mssa_gradient_cosine", "encoder", floor=None),
    _Panel("mirror_cka", "decoder", points=("decompress",)),
    _Panel("class_rate_reduction", "encoder", control="class_rate_reduction_dealt"),
)
_WEIGHTS = (
    "orthogonality_error",
    "orthonormality_error",
    "subspace_overlap",
    "subspace_largest_cosine",
    "tied_cosine",
    "dictionary_coherence",
    "ista_step_bound",
    "mirror_dictionary_cosine",
)


def draw_layers(
    rows: Sequence[Measurement], path: str | Path, *, overwrite: bool = False,
    kinds: Sequence[str] = (),
) -> Path:  # fmt: skip
    """The path of a picture of what the tokens go through, with a line for each model.

    Rates and rank at every half step, and measures of each layer below; points are means over
    images and bands one standard deviation. What was not measured is left out. The same picture
    goes beside it with each suffix of `kinds`. Raises as `check_figure_target`, and ValueError for
    no rows or more than four models.
    """
    path = check_figure_target(path, overwrite=overwrite, kinds=kinds)
    names = _models(rows)
    small = [panel for panel in _LAYERS if _is_measured(rows, panel)]
    height = 2.3 * (len(_TOKENS) + (len(small) + 2) // 3) + 1.2
    figure = new_figure(10, height)
    grid = figure.add_gridspec(len(_TOKENS) + (len(small) + 2) // 3, 6)
    for index, measure in enumerate(_TOKENS):
        axes = figure.add_subplot(grid[index, :])
        _half_steps(axes, rows, measure, names, labels=index == len(_TOKENS) - 1)
    for index, panel in enumerate(small):
        place = grid[len(_TOKENS) + index // 3, 2 * (index % 3) : 2 * (index % 3) + 2]
        _by_layer(figure.add_subplot(place), rows, panel, names)
    _legend(figure, names)
    return save_captioned(figure, path, _tokens_caption(rows), kinds=kinds)


def draw_weights(
    rows: Sequence[Measurement], path: str | Path, *, overwrite: bool = False,
    kinds: Sequence[str] = (),
) -> Path:  # fmt: skip
    """The path of a picture of the geometry of the weights, encoder and decoder layers in a row.

    Raises as `draw_layers`.
    """
    path = check_figure_target(path, overwrite=overwrite, kinds=kinds)
    names = _models(rows)
    panels = [measure for measure in _WEIGHTS if any(row.measure == measure for row in rows)]
    lines = (len(panels) + 3) // 4
    figure = new_figure(11, 2.5 * lines + 1)
    grid = figure.add_gridspec(lines, min(4, len(panels)))
    for index, measure in enumerate(panels):
        axes = figure.add_subplot(grid[index // 4, index % 4])
        _weights(axes, rows, measure, names)
        axes.set_title(MEASURES[measure].panel, fontsize=8.5)
        tidy(axes)
    _legend(figure, names)
    random = next((row.mean for row in rows if row.measure == "subspace_overlap_random"), None)
    level = "" if random is None else f" Random subspaces overlap by p/d = {random:.3g} on average."
    return save_captioned(
        figure,
        path,
        "Weights alone, no images. E is the encoder, D the decoder, layers from 0. Distances are 0"
        f" for orthogonal (orthonormal) columns; overlap is the mean squared cosine of principal"
        f" angles.{level} Dotted: eta |D|^2 = 2, up to which an ISTA step cannot raise its"
        " objective.",
        kinds=kinds,
    )


def draw_subspace_angles(
    overlaps: dict[str, Overlaps], path: str | Path, *, overwrite: bool = False,
    kinds: Sequence[str] = (),
) -> Path:  # fmt: skip
    """The path of a picture of K x K matrices of angles between subspaces, layer by layer.

    `overlaps` holds mean squared cosines by model and side; the angle shown is the arc cosine of
    their root, 0 for equal and 90 degrees for orthogonal subspaces. Raises as `draw_layers`.
    """
    path = check_figure_target(path, overwrite=overwrite, kinds=kinds)
    lines = [
        (name, side, layers)
        for name, sides in overlaps.items()
        for side, layers in sides.items()
        if layers
    ]
    if not lines:
        raise ValueError("there are no subspaces to draw")
    columns = max(len(layers) for _, _, layers in lines)
    figure = new_figure(max(6.0, 1.25 * columns + 2.2), 1.35 * len(lines) + 1.1)
    panels = figure.subplots(len(lines), columns, squeeze=False)
    image = None
    for line, (name, side, layers) in enumerate(lines):
        for column in range(columns):
            axes = panels[line][column]
            axes.set_xticks([])
            axes.set_yticks([])
            if column >= len(layers):
                axes.set_axis_off()
                continue
            angles = np.degrees(np.arccos(np.sqrt(np.clip(np.array(layers[column]), 0, 1))))
            image = axes.imshow(angles, vmin=0, vmax=90, cmap="cividis")
            if line == 0:
                axes.set_title(f"layer {column}", fontsize=8)
            if column == 0:
                axes.set_ylabel(f"{name}\n{side}", fontsize=8)
    assert image is not None
    bar = figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.6, ticks=[0, 30, 60, 90])
    bar.set_label("angle (degrees)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return save_captioned(
        figure,
        path,
        "Angle between subspaces k and k' (root mean square over principal angles), from the"
        " weights U of MSSA: 0 degrees for the same, 90 for orthogonal subspaces.",
        kinds=kinds,
    )


def _models(rows: Sequence[Measurement]) -> list[str]:
    names = models_of(rows)
    if not names:
        raise ValueError("there is nothing to draw: the table has no rows")
    if len(names) > MAX_MODELS:
        raise ValueError(f"{len(names)} models are too many for one figure; at most {MAX_MODELS}")
    return names


def _is_measured(rows: Sequence[Measurement], panel: _Panel) -> bool:
    return any(row.measure == panel.measure and row.point in panel.shown for row in rows)


def _half_steps(
    axes: Axes, rows: Sequence[Measurement], measure: str, names: list[str], *, labels: bool
) -> None:
    """Draw tokens at the three points of every layer, joined within a layer only."""
    ticks: dict[float, str] = {}
    start = 0.0
    for side, points in HALF_STEPS.items():
        deepest = 0  # models of other depths must not meet under one label
        for name, (colour, dashes, marker) in zip(names, _STYLES, strict=False):
            curves = [curve(rows, measure, model=name, side=side, point=point) for point in points]
            for before, between, after in zip(*curves, strict=True):
                x = np.array([0.0, 1.0, 2.0]) + start + 2.4 * before.layer
                y = np.array([before.mean, between.mean, after.mean])
                spread = np.array([item.std or 0.0 for item in (before, between, after)])
                axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)
                axes.plot(x, y, color=colour, linestyle=dashes, marker=marker, markersize=3.5)
                ticks[float(x[1])] = f"{side[0].upper()}{before.layer}"
            deepest = max(deepest, len(curves[0]))
        start += 2.4 * deepest + 1.0
    axes.set_title(MEASURES[measure].panel, fontsize=9, loc="left")
    axes.set_xticks(list(ticks), list(ticks.values()) if labels else [""] * len(ticks), fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(bottom=0)
    tidy(axes)


def _by_layer(axes: Axes, rows: Sequence[Measurement], panel: _Panel, names: list[str]) -> None:
    last = 0
    lowest: list[float] = []
    for name, (colour, dashes, marker) in zip(names, _STYLES, strict=False):
        shown = [
            row
            for point in panel.shown
            for row in curve(rows, panel.measure, model=name, side=panel.side, point=point)
        ]
        x, y = [row.layer for row in shown], np.array([row.mean for row in shown])
        spread = np.array([row.std or 0.0 for row in shown])
        last, lowest = max([last, *x]), [*lowest, *(y - spread)]
        axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, y, color=colour, linestyle=dashes, marker=marker, markersize=3.5)
        if panel.control is not None:
            beside = [
                row
                for point in panel.shown
                for row in curve(rows, panel.control, model=name, side=panel.side, point=point)
            ]
            axes.plot(
                [row.layer for row in beside], [row.mean for row in beside],
                color=colour, linestyle=dashes, linewidth=0.8,
            )  # fmt: skip
    if panel.floor is None:
        axes.axhline(0, color=GREY, linewidth=0.8)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.1), max(high, 0.1))  # or noise about 0 would fill the panel
    elif all(low >= panel.floor for low in lowest):
        axes.set_ylim(bottom=panel.floor)
    axes.set_title(MEASURES[panel.measure].panel, fontsize=8.5)
    axes.set_xlabel(f"{panel.side} layer", fontsize=8)
    _whole_ticks(axes, last)
    tidy(axes)


def _weights(axes: Axes, rows: Sequence[Measurement], measure: str, names: list[str]) -> None:
    ticks: dict[int, str] = {}
    start = 0
    for side in HALF_STEPS:
        deepest = 0
        for name, (colour, dashes, marker) in zip(names, _STYLES, strict=False):
            shown = curve(rows, measure, model=name, side=side, point="weights")
            x = [start + row.layer for row in shown]
            axes.plot(
                x, [row.mean for row in shown],
                color=colour, linestyle=dashes, marker=marker, markersize=3.5,
            )  # fmt: skip
            ticks |= {
                place: f"{side[0].upper()}{row.layer}" for place, row in zip(x, shown, strict=True)
            }
            deepest = max(deepest, len(shown))
        start += deepest
    step = max(1, len(ticks) // 8)
    places = sorted(ticks)[::step]
    axes.set_xticks(places, [ticks[place] for place in places], fontsize=7)
    axes.tick_params(axis="y", labelsize=8)
    if measure == "ista_step_bound":
        axes.axhline(2, color=GREY, linestyle=":", linewidth=1)
    low, high = axes.get_ylim()
    bottom = -0.1 if measure.endswith("cosine") and low < 0 else min(0.0, low)
    axes.set_ylim(bottom, max(0.1, 1.08 * high))


def _whole_ticks(axes: Axes, last: int) -> None:
    axes.set_xticks(range(0, last + 1, max(1, last // 8)))
    axes.tick_params(labelsize=8)


def _legend(figure: Figure, names: list[str]) -> None:
    handles = [
        figure.axes[0].plot([], [], color=colour, linestyle=dashes, marker=marker, label=name)[0]
        for name, (colour, dashes, marker) in zip(names, _STYLES, strict=False)
    ]
    legend = figure.legend(
        handles=handles, loc="outside upper right", ncols=len(names), frameon=False, fontsize=9
    )
    for text in legend.get_texts():  # names of weights may hold dollar signs
        text.set_parse_math(False)


def _tokens_caption(rows: Sequence[Measurement]) -> str:
    sample = next(row for row in rows if row.measure == "subspace_coding_rate")
    return (
        f"{sample.images} images, unmasked, {sample.precision} layers. E is the encoder, D the"
        " decoder, layers from 0; the three points of a layer are its input and the tokens after"
        " its first (compress, expand) and second half step (sparsify, decompress), seen through"
        f" the norm in front of its MSSA. Rates: tokens of length 1, eps^2 ="
        f" {sample.eps_squared:g}. Points are means over images, bands one standard deviation. The"
        " decoder was trained on masked images and is given unmasked ones here. Thin lines: -x is"
        " mere shrinking of the tokens; the control of Delta R deals the labels out anew."
    )
