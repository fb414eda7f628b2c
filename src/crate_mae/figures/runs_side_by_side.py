"""Several runs in one picture: losses over steps, and accuracies with their intervals."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import PercentFormatter

from crate_mae.figures.style import check_figure_target, new_figure, save_figure, tidy

# Okabe and Ito's palette once more, in the order in which its colours are told apart best.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000")
NAMES = {"val/loss": "validation loss", "train/loss": "training loss"}
"""The losses that can be drawn, the first that a run has."""
DASHES = ("-", "--", ":", "-.")

Accuracies = Mapping[str, tuple[float, float, float]]
"""By method: an accuracy and the ends of its 95 % interval."""


def draw_runs(
    names: Sequence[str],
    metrics: Sequence[Sequence[Mapping[str, float]]],
    accuracies: Sequence[Accuracies],
    path: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """The path of a picture of the losses of runs over steps and, where measured, accuracies.

    `metrics` are the records of each run; the validation loss is drawn, or the training loss of a
    run without one. Raises as `check_figure_target`, and ValueError where there is nothing to draw.
    """
    path = check_figure_target(path, overwrite=overwrite)
    found_curves = [_curve(records) for records in metrics]
    curves = [curve for _, curve in found_curves]
    methods = list(dict.fromkeys(method for found in accuracies for method in found))
    if not any(curves) and not methods:
        raise ValueError("none of these runs has a loss or an accuracy to draw")
    figure = new_figure(8, 6.5 if methods else 4)
    grid = figure.add_gridspec(1 + bool(methods), 1)
    axes = figure.add_subplot(grid[0])
    for index, (name, curve) in enumerate(zip(names, curves, strict=True)):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        steps, values = [step for step, _ in curve], [value for _, value in curve]
        axes.plot(steps, values, label=name, color=colour, linestyle=dash, linewidth=1.3)
    axes.set_xlabel("step")
    drawn = sorted({NAMES[key] for key, curve in found_curves if curve}, reverse=True)
    axes.set_ylabel(" or\n".join(drawn) or "loss")
    tidy(axes)
    for text in axes.legend(frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)  # names of folders are no formulas
    if methods:
        below = figure.add_subplot(grid[1])
        for index, found in enumerate(accuracies):
            colour = COLOURS[index % len(COLOURS)]
            for place, method in enumerate(methods):
                if method not in found:
                    continue
                value, low, high = found[method]
                at = place + 0.7 * ((index + 0.5) / len(accuracies) - 0.5)
                below.errorbar(
                    at, value, yerr=[[value - low], [high - value]],
                    color=colour, marker="o", markersize=4, capsize=3,
                )  # fmt: skip
        below.set_xticks(range(len(methods)), methods)
        below.set_xlim(-1, len(methods))  # few methods do not lie at the ends of the picture
        below.set_ylabel("accuracy, 95 % interval")
        below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        tidy(below)
    return save_figure(figure, path)


def _curve(records: Sequence[Mapping[str, float]]) -> tuple[str, list[tuple[float, float]]]:
    """(The loss that a run has, its points)."""
    for key in NAMES:
        points = [(r["step"], r[key]) for r in records if key in r and math.isfinite(r[key])]
        if points:
            return key, sorted(points)
    return "", []
