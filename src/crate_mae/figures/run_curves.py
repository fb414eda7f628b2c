"""Loss, accuracy and learning rate over a run."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from crate_mae.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    check_figure_target,
    new_figure,
    save_figure,
    tidy,
)

Curve = tuple[np.ndarray, np.ndarray]

_LEARNING_RATES = ("lr", "train/lr", "learning_rate", "lr-AdamW")


def draw_training(
    metrics: Sequence[dict[str, float]], path: str | Path, *, overwrite: bool = False
) -> Path:
    """The path of a picture of losses, what accuracies, rank and rate there are, learning rate.

    Each row of `metrics` has a "step" and any of "train/loss", "val/loss", "val/mean_colour",
    "val/patch_mean" (of masked completion), "train/accuracy", "val/accuracy" (of classification,
    from 0 to 1), "val/mean_iou", "val/pixel_accuracy" (of masks), "val/probe", "val/knn",
    "val/effective_rank", "val/coding_rate_share" (of features measured in training) and "lr"; what
    is absent or not finite is left out.
    Raises as `check_figure_target`, and ValueError when no row has a loss.
    """
    path = check_figure_target(path, overwrite=overwrite)
    train, validation = _curve(metrics, "train/loss"), _curve(metrics, "val/loss")
    if not len(train[0]) and not len(validation[0]):
        raise ValueError("no row of the metrics has a step and a finite train/loss or val/loss")
    accuracies = [
        (curve, name, colour)
        for key, name, colour in (
            ("train/accuracy", "training accuracy", BLUE),
            ("val/accuracy", "validation accuracy", ORANGE),
            ("val/mean_iou", "validation mean IoU", ORANGE),
            ("val/pixel_accuracy", "validation pixel accuracy", GREEN),
            ("val/probe", "linear probe, held-out labels", ORANGE),
            ("val/knn", "nearest neighbours, held-out labels", GREEN),
        )
        if len((curve := _curve(metrics, key))[0])
    ]
    spreads = [
        (curve, name)
        for key, name in (
            ("val/effective_rank", "effective rank"),
            ("val/coding_rate_share", "R / max. R"),
        )
        if len((curve := _curve(metrics, key))[0])
    ]
    rate = next((c for key in _LEARNING_RATES if len((c := _curve(metrics, key))[0])), None)

    heights = [4, *([2.5] if accuracies else []), *[1] * len(spreads), *([1] if rate else [])]
    figure = new_figure(8, sum(heights) if len(heights) > 1 else 4)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = figure.add_subplot(grid[0])
    for curve, name, colour in (
        (train, "training loss", BLUE),
        (validation, "validation loss", ORANGE),
    ):
        if len(curve[0]):
            _line(axes, curve, name, colour)
    for key, name, colour, dashes in (
        ("val/mean_colour", "predicting the mean colour", GREEN, "--"),
        ("val/patch_mean", "predicting each patch's mean", GREY, ":"),
    ):
        level = _curve(metrics, key)[1]
        if len(level):
            label = f"{name} ({level[-1]:.3g})"
            axes.axhline(level[-1], color=colour, linestyle=dashes, linewidth=1.5, label=label)
    kind = "" if any(name.endswith("accuracy") for _, name, _ in accuracies) else "masked "
    _finish_losses(axes, np.concatenate([train[1], validation[1]]), kind)
    if accuracies:
        _draw_accuracies(figure.add_subplot(grid[1], sharex=axes), accuracies)
    for place, (curve, name) in enumerate(spreads, 2 if accuracies else 1):
        small = figure.add_subplot(grid[place], sharex=axes)
        _line(small, curve, "", GREY)
        small.set_ylabel(name)
        small.set_ylim(bottom=0)
    if rate:
        small = figure.add_subplot(grid[-1], sharex=axes)
        small.plot(*rate, color=GREY, linewidth=1.2)
        small.set_ylabel("learning rate")
        small.set_ylim(bottom=0)
        small.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for upper in figure.axes[:-1]:
        upper.tick_params(labelbottom=False)
    figure.axes[-1].set_xlabel("step")
    figure.align_ylabels()
    return save_figure(figure, path)


def _line(axes: Axes, curve: Curve, name: str, colour: str) -> None:
    marker = "o" if len(curve[0]) < 40 else None
    axes.plot(*curve, label=name, color=colour, linewidth=1.2, marker=marker, markersize=3.5)


def _draw_accuracies(axes: Axes, curves: Sequence[tuple[Curve, str, str]]) -> None:
    for curve, name, colour in curves:
        best = float(curve[1].max())
        _line(axes, curve, f"{name} (best {best:.1%}, last {curve[1][-1]:.1%})", colour)
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)


def _curve(metrics: Sequence[dict[str, float]], key: str) -> Curve:
    points = [
        (row["step"], row[key])
        for row in metrics
        if key in row and "step" in row and math.isfinite(row[key])
    ]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    order = steps.argsort(kind="stable")
    return steps[order], values[order]


def _finish_losses(axes: Axes, values: np.ndarray, kind: str) -> None:
    axes.set_ylabel(f"{kind}loss")
    # A few large first steps must not press the rest of the curve flat.
    if values.min() > 0 and values.max() > 10 * np.median(values):
        axes.set_yscale("log")
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
