"""What the weight of the coding rate does, short and long: neighbours, probe and loss over gamma.

python benchmarks/gamma_figure.py --short RECORD --without RECORD crate-shallow \
    --long 0.03 STEM --long 0.1 STEM --out FIGURE

`--short` is a record of `quality-objective.yaml`: its runs that differ in `objective.gamma` alone.
`--without` names a record of longer runs and the model in it that has no term; `--long` a weight
and the files of one run with it, STEM-probe.json, STEM-knn.json and STEM-metrics.csv. A dot is a
run, a line goes through the means over seeds.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from compared_figures import COLOURS
from crate_mae.figures.style import check_figure_target, new_figure, save_figure, tidy
from records import parser_of

GAMMA = "objective.gamma"
PANELS = (
    ("knn", "nearest neighbours, %", 100.0),
    ("probe", "linear probe, %", 100.0),
    ("loss", "masked loss", 1.0),
)
"""Of each panel: the measure, what its axis says, and what values are multiplied by."""

Runs = dict[float, list[dict[str, float]]]
"""By weight, the measures of each run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    given = _parser().parse_args(arguments)
    record, model = given.without
    long = runs_without(json.loads(Path(record).read_text("utf-8")), model)
    for weight, stem in given.long:
        long.setdefault(float(weight), []).append(run_of_files(stem))
    short = runs_by_weight(json.loads(given.short.read_text("utf-8")))
    series = {"4 epochs of 20,000 images": short, "40 epochs of 50,000": long}
    print(draw_weights(series, given.out, overwrite=given.overwrite))
    return 0


def runs_by_weight(record: dict[str, Any]) -> Runs:
    """By weight, the runs of a record whose settings name the weight alone or nothing."""
    found: Runs = {}
    for name, settings in record["matrix"]["models"].items():
        if set(settings or {}) <= {GAMMA}:
            runs = [_measures(run) for run in record["compared"][name].values()]
            found.setdefault((settings or {}).get(GAMMA, 0.0), []).extend(runs)
    return {weight: runs for weight, runs in found.items() if runs}


def runs_without(record: dict[str, Any], model: str) -> Runs:
    """The runs of a model of a record, as those of weight 0; ValueError for another model."""
    if model not in record["compared"]:
        raise ValueError(f"the record holds {', '.join(record['compared'])}, not {model}")
    return {0.0: [_measures(run) for run in record["compared"][model].values()]}


def run_of_files(stem: str) -> dict[str, float]:
    """The measures of a run by what `probe`, `knn` and training wrote."""
    found = {}
    for method in ("probe", "knn"):
        rows = json.loads(Path(f"{stem}-{method}.json").read_text("utf-8"))["rows"]
        (found[method],) = (row["accuracy"] for row in rows if row["subject"] == "model")
    with Path(f"{stem}-metrics.csv").open(encoding="utf-8", newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    return {**found, "loss": losses[-1]}


def draw_weights(series: dict[str, Runs], path: str | Path, *, overwrite: bool = False) -> Path:
    """The path of a picture: a panel for each measure, a colour for each series of runs.

    Weights stand beside each other in their order, not at their size. Raises as
    `check_figure_target`.
    """
    path = check_figure_target(path, overwrite=overwrite)
    weights = sorted({weight for runs in series.values() for weight in runs})
    places = {weight: place for place, weight in enumerate(weights)}
    figure = new_figure(4.2 * len(PANELS), 3.8)
    for number, (measure, label, factor) in enumerate(PANELS, start=1):
        axes = figure.add_subplot(1, len(PANELS), number)
        for (name, runs), colour in zip(series.items(), COLOURS, strict=False):
            across, heights = [], []
            for weight in sorted(runs):
                values = [factor * run[measure] for run in runs[weight] if measure in run]
                if values:
                    axes.plot([places[weight]] * len(values), values, ".", color=colour, alpha=0.6)
                    across.append(places[weight])
                    heights.append(fmean(values))
            axes.plot(across, heights, "-", color=colour, label=name)
        axes.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
        axes.set_xlabel("weight of the coding rate, gamma")
        axes.set_ylabel(label)
        tidy(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save_figure(figure, path)


def _measures(run: dict[str, Any]) -> dict[str, float]:
    return {measure: run[measure] for measure, _, _ in PANELS if measure in run}


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--short", type=Path, required=True, help="record of short runs")
    parser.add_argument(
        "--without", nargs=2, metavar=("RECORD", "MODEL"), required=True,
        help="record and model of long runs without the term",
    )  # fmt: skip
    parser.add_argument(
        "--long", nargs=2, metavar=("GAMMA", "STEM"), action="append", default=[],
        help="weight and files of a long run with it",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="figure: .png, .pdf or .svg")
    parser.add_argument("--overwrite", action="store_true")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
