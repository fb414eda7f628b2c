"""The losses of several runs in one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from crate_mae.figures.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    check_figure_target,
    new_figure,
    save_figure,
    tidy,
)

COLOURS = (BLUE, ORANGE, GREEN, GREY, "#CC79A7", "#56B4E9", "#E69F00")

Curve = Sequence[tuple[float, float]]
"""Points (how far, loss)."""


def compared_curves(
    panels: Mapping[str, Mapping[str, Sequence[Curve]]],
    path: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """The path of a picture: a panel for each horizontal axis, a line for each run.

    `panels` maps the words under an axis to {model: its runs}; several runs of a model, such as
    seeds, are drawn in one colour. Loss on a logarithmic axis.
    Raises as `check_figure_target`, and ValueError when there is nothing to draw or more models
    than colours.
    """
    path = check_figure_target(path, overwrite=overwrite)
    models = list(dict.fromkeys(model for panel in panels.values() for model in panel))
    if not any(curve for panel in panels.values() for runs in panel.values() for curve in runs):
        raise ValueError("no run has a loss to draw")
    if len(models) > len(COLOURS):
        raise ValueError(f"{len(models)} models are more than can be told apart: {len(COLOURS)}")
    figure = new_figure(5.5 * len(panels), 4)
    for place, (words, panel) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for model, runs in panel.items():
            colour = COLOURS[models.index(model)]
            for number, curve in enumerate(runs):
                label = model if number == 0 else None
                axes.plot(
                    [x for x, _ in curve], [y for _, y in curve],
                    color=colour, marker="o", markersize=3, linewidth=1.4, label=label,
                )  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.2g}")
        axes.yaxis.set_minor_formatter("{x:.2g}")
        axes.set_xlabel(words)
        axes.set_ylabel("loss on removed patches, fixed masks")
        tidy(axes)
        axes.legend(frameon=False, fontsize=9)
    return save_figure(figure, path)
