"""The losses of several runs in one picture, over time or of variants side by side."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

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

COLOURS = (BLUE, ORANGE, GREEN, GREY, "#CC79A7", "#56B4E9", "#E69F00", "#222222")

MARKED = 15
"""Points of a curve up to which each is marked."""
LONGEST_BAR = 2.0
"""A bar longer than so many times the second longest is cut."""

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
                    color=colour, marker="o" if len(curve) <= MARKED else None,
                    markersize=3, linewidth=1.4, label=label,
                )  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.2g}")
        axes.yaxis.set_minor_formatter("{x:.2g}")
        axes.set_xlabel(words)
        axes.set_ylabel("loss on removed patches, fixed masks")
        tidy(axes)
        axes.legend(frameon=False, fontsize=9)
    return save_figure(figure, path)


def variant_losses(
    losses: Mapping[str, float],
    path: str | Path,
    *,
    base: str = "base",
    emphasised: Collection[str] = (),
    overwrite: bool = False,
) -> Path:
    """The path of a picture: what each variant of a model changes its loss by, the best on top.

    `losses` maps names to final losses, `base` among them: bars begin at its loss, to the left for
    lower ones. The bars of `emphasised` names have another colour. One that is far longer than all
    others is cut, which its number says, so that the others can be compared.
    Raises as `check_figure_target`, and ValueError for losses that are not finite, a base that is
    not among them, or one that stands alone.
    """
    path = check_figure_target(path, overwrite=overwrite)
    if base not in losses or len(losses) < 2:
        raise ValueError(f"{base!r} and another variant are needed, not {', '.join(losses) or '-'}")
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if bad:
        raise ValueError(f"these losses are not finite: {', '.join(bad)}")
    names = sorted((name for name in losses if name != base), key=lambda name: -losses[name])
    figure = new_figure(7.5, 0.9 + 0.28 * len(names))
    axes = figure.add_subplot()
    changes = [losses[name] - losses[base] for name in names]
    colours = [ORANGE if name in emphasised else BLUE for name in names]
    second = sorted(abs(change) for change in changes)[-2:][0]
    longest = LONGEST_BAR * second if second > 0 else math.inf
    drawn = [max(-longest, min(longest, change)) for change in changes]
    axes.barh(names, drawn, left=losses[base], color=colours, height=0.62)
    axes.axvline(losses[base], color=GREY, linewidth=1)
    for place, (change, shown) in enumerate(zip(changes, drawn, strict=True)):
        axes.annotate(
            f"{change:+.3f}" + ("" if shown == change else " (cut)"),
            (losses[base] + shown, place),
            xytext=(-4 if change < 0 else 4, 0),
            textcoords="offset points",
            ha="right" if change < 0 else "left",
            va="center",
            fontsize=8,
        )
    axes.margins(x=0.14, y=0.02)
    axes.set_xlabel(f"loss on removed patches, fixed masks (line: {base}, {losses[base]:.3f})")
    tidy(axes)
    return save_figure(figure, path)
