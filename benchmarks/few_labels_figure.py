"""Accuracy over the number of labels, from a record of `few_labels.py`: a panel for each set.

python benchmarks/few_labels_figure.py RECORD --out FIGURE --subject "photos64, layers"

A line is a linear probe, a diamond a fine-tuned network; bars are standard deviations over draws of
the labels. Subjects are named as in the record, and drawn in this order;
--subject again for each.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from compared_figures import COLOURS
from crate_mae.figures.style import check_figure_target, new_figure, save_figure, tidy
from records import parser_of

APART = 0.07
"""How far subjects stand from each other along the axis, so that bars do not hide one another."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    given = _parser().parse_args(arguments)
    record = json.loads(given.record.read_text("utf-8"))
    print(draw_few_labels(record, given.subjects, given.out, overwrite=given.overwrite))
    return 0


def draw_few_labels(
    record: dict[str, Any], subjects: Sequence[str], path: str | Path, *, overwrite: bool = False
) -> Path:
    """The path of a picture of a record's accuracies of these subjects, set by set.

    Raises as `check_figure_target`, and ValueError for a subject that the record does not have, or
    more of them than colours.
    """
    path = check_figure_target(path, overwrite=overwrite)
    rows = record["rows"]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    missing = set(subjects) - {row["subject"] for row in rows}
    if missing or not subjects or len(subjects) > len(COLOURS):
        known = ", ".join(dict.fromkeys(row["subject"] for row in rows))
        raise ValueError(
            f"1 to {len(COLOURS)} subjects of the record ({known}), not {', '.join(subjects)}"
        )
    shots = sorted({row["shots"] for row in rows if row["shots"] is not None})
    places = {count: place for place, count in enumerate([*shots, None])}
    figure = new_figure(4.2 * len(sets), 4.2)
    for number, name in enumerate(sets, start=1):
        axes = figure.add_subplot(1, len(sets), number)
        for index, subject in enumerate(subjects):
            mine = [row for row in rows if (row["set"], row["subject"]) == (name, subject)]
            shift = APART * (index - (len(subjects) - 1) / 2)
            _draw(axes, mine, places, shift, COLOURS[index])
        axes.set_title(name)
        axes.set_xticks(range(len(places)), [*map(str, shots), "all"])
        axes.set_xlabel("labels a class")
        axes.set_ylabel("accuracy on the test part, %" if number == 1 else "")
        tidy(axes)
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=subject)
        for subject, colour in zip(subjects, COLOURS, strict=False)
    ]
    handles += [
        Line2D([], [], color="black", marker="o", markersize=4, label="line: linear probe"),
        Line2D(
            [],
            [],
            color="black",
            marker="D",
            linestyle="",
            label="diamond: fine-tuned, untrained networks from scratch",
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save_figure(figure, path)


def _draw(
    axes: Axes, rows: list[dict[str, Any]], places: dict[int | None, int], shift: float, colour: str
) -> None:
    for measure, form in (("probe", "o-"), ("finetune", "D")):
        points = sorted(
            (places[row["shots"]] + shift, 100 * row["mean"], 100 * (row["std"] or 0))
            for row in rows
            if row["measure"] == measure
        )
        if points:
            across, heights, bars = zip(*points, strict=True)
            size = 4 if measure == "probe" else 6
            axes.errorbar(
                across, heights, bars, fmt=form, color=colour, markersize=size, linewidth=1.3,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("record", type=Path, help="JSON file of few_labels.py")
    parser.add_argument("--subject", dest="subjects", action="append", required=True)
    parser.add_argument("--out", type=Path, required=True, help="figure: .png, .pdf or .svg")
    parser.add_argument("--overwrite", action="store_true")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
