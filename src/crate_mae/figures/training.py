"""Loss and learning rate over a run."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

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

_LEARNING_RATES = ("lr", "train/lr", "learning_rate", "lr-AdamW")


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

    figure = new_figure(8, 5 if rate else 4)
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
    return save_figure(figure, path)


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
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
