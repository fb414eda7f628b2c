"""Maps of features: a point for each image, its class by colour and by marker."""

from pathlib import Path

import torch
from torch import Tensor

from crate_mae.evaluation.feature_map import FeatureMap
from crate_mae.figures.sheet import shortened
from crate_mae.figures.style import check_figure_target, new_figure, save_figure

# Okabe and Ito's palette with two more that differ from it in lightness; markers differ as well.
_LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("#E69F00", "P"),
    ("#000000", "x"),
    ("#B5A900", "*"),
    ("#7A3E9D", "<"),
    ("#8C6D46", ">"),
)
_OTHER = "#BBBBBB"


def draw_feature_map(
    points: FeatureMap, path: str | Path, *, caption: str = "", overwrite: bool = False
) -> Path:
    """The path of a picture with a point for each image, its class by colour and marker.

    Up to ten classes are told apart; of more, the ten most frequent are, and the rest is grey, as
    images without a label are. `caption` says what the features are; method, settings, number of
    images and trustworthiness are added.
    Raises as `check_figure_target`.
    """
    path = check_figure_target(path, overwrite=overwrite)
    labels = points.labels
    present, counts = torch.unique(labels[labels >= 0], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[: len(_LOOKS)]
    chosen = sorted(present[order].tolist())
    x, y = points.points.T.numpy()
    figure = new_figure(7.6, 0.9 + _height(points.points, 6.0))
    axes = figure.add_subplot()
    rest = ~torch.isin(labels, torch.tensor(chosen, dtype=labels.dtype)).numpy()
    if rest.any():
        others = len(present) - len(chosen)
        label = f"{others} other classes" if others else "no label"
        axes.scatter(x[rest], y[rest], s=7, color=_OTHER, marker=".", label=label, linewidths=0)
    size = 26 if len(labels) <= 500 else 13
    for label, (colour, marker) in zip(chosen, _LOOKS, strict=False):
        here = (labels == label).numpy()
        axes.scatter(
            x[here],
            y[here],
            s=size,
            color=colour,
            marker=marker,
            linewidths=0.9 if marker == "x" else 0,
            alpha=0.8,
            label=f"{_class_name(points, label)} ({int(here.sum())})",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    legend = axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, markerscale=1.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    # Set after the plot, so that the layout keeps room for it.
    figure.supxlabel(
        _wrapped(_words(points, caption, len(chosen), len(present))), fontsize=8, x=0.02, ha="left"
    ).set_parse_math(False)
    return save_figure(figure, path)


def _height(points: Tensor, width: float) -> float:
    """The height, in inches, at which points as wide as `width` are as high as they are."""
    across, up = (points.amax(dim=0) - points.amin(dim=0)).tolist()
    ratio = up / across if across > 0 else 1.0
    return width * min(max(ratio, 0.5), 1.1)


def _class_name(points: FeatureMap, label: int) -> str:
    names = points.class_names
    return shortened(names[label], 24) if names and label < len(names) else f"class {label}"


def _words(points: FeatureMap, caption: str, chosen: int, present: int) -> str:
    parts = [caption] if caption else []
    parts.append(f"{len(points.labels)} images; {points.settings}.")
    parts.append(
        f"Trustworthiness {points.trustworthiness:.2f} for {points.neighbours} neighbours"
        " (1: neighbours in the picture are neighbours among the features; 0.5: by chance)."
    )
    if points.method == "tsne":
        parts.append("Distances between groups and sizes of groups mean nothing here.")
    if present > chosen:
        parts.append(f"The {chosen} most frequent of {present} classes are coloured.")
    return " ".join(parts)


def _wrapped(text: str) -> str:
    from textwrap import fill

    return fill(text, 118)
