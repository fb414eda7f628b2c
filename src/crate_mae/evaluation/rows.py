"""The lines of a comparison: what was measured, as plain values and as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from crate_mae.evaluation.knn import KnnResult
from crate_mae.evaluation.metrics import GridPoint, wilson_interval
from crate_mae.evaluation.probe import ProbeResult

Method = Literal["probe", "knn"]
Result = ProbeResult | KnnResult

SHOWN = {"probe": "probe", "knn": "kNN"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a comparison."""

    subject: str
    """Which model, or "raw pixels"."""
    method: Method
    pool: str
    layer: int | None
    """How many encoder layers the tokens have passed; None: all, and the final norm."""
    dim: int
    """Width of the features."""
    parameters: int | None
    """Trainable parameters of the whole model."""
    shots: int | None
    """Labels per class; None: all training images."""
    tested_on: str
    """Address and split of the test images."""
    results: tuple[Result, ...]
    """One per seed."""

    @property
    def result(self) -> Result:
        """The result of the first seed."""
        return self.results[0]

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return fmean(result.accuracy for result in self.results)

    @property
    def std(self) -> float | None:
        """The standard deviation over seeds (divisor: seeds - 1); None for one seed."""
        return stdev(r.accuracy for r in self.results) if len(self.results) > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the mean accuracy: the sampling error of the test set alone."""
        return wilson_interval(self.accuracy * self.result.num_test, self.result.num_test)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: of the first seed, but for mean, spread and each in `runs`."""
        whole = ("per_class", "confusion", "top_confusions")
        runs = [result.to_dict() for result in self.results]
        return {
            "subject": self.subject,
            "method": self.method,
            "pool": self.pool,
            "layer": self.layer,
            "dim": self.dim,
            "parameters": self.parameters,
            "shots": self.shots,
            "tested_on": self.tested_on,
            **runs[0],
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "std": self.std,
            "seeds": [result.seed for result in self.results],
            "runs": [{k: v for k, v in run.items() if k not in whole} for run in runs],
        }


def comparison_table(rows: Sequence[Row]) -> str:
    """The rows as aligned text: accuracy in per cent, its 95 % interval or spread, the setting.

    Below it what the reader must know: counts, chance, settings that lie on the edge of their grid.
    """
    encoded = [row for row in rows if row.pool != "pixels"]
    heads = ["", "parameters", "features", "accuracy", "95 % interval", "setting"]
    lines = []
    for row in rows:
        low, high = row.interval
        spread = "" if row.std is None else f" ± {row.std:.2%}"
        text = f"{row.accuracy:.2%}{spread}"
        wide = f"{low:.1%} to {high:.1%}"
        lines.append([_title(row), _count(row.parameters), str(row.dim), text, wide, _setting(row)])
    if any(row.layer is not None for row in encoded):
        _insert(heads, lines, 1, "layer", [_layer(row) for row in rows])
    if any(row.pool != "mean" for row in encoded):
        _insert(heads, lines, 1, "pool", [row.pool for row in rows])
    return "\n".join([*_aligned([heads, *lines]), *_notes(rows)])


def grid_table(row: Row) -> str:
    """All settings that the first seed of a row tried, with their accuracy on held-out images."""
    result = row.result
    if not result.grid:
        return f"{_place(row)}: the setting was fixed, {_values(result.setting)}"
    names = list(result.setting)
    columns = sorted({point.setting[names[-1]] for point in result.grid})
    by_line: dict[str, dict[float, GridPoint]] = {}
    for point in result.grid:
        head = _values({name: point.setting[name] for name in names[:-1]})
        by_line.setdefault(head, {})[point.setting[names[-1]]] = point
    lines = [[names[-1].replace("_", " "), *(f"{value:g}" for value in columns)]]
    for head, points in by_line.items():
        lines.append([head or "held out", *(_cell(points[value], result) for value in columns)])
    held = f"{_place(row)}: accuracy on {result.num_held_out} held-out images (* chosen)"
    return "\n".join([held, *("  " + line for line in _aligned(lines))])


def confusion_table(row: Row) -> str:
    """The most frequent mistakes of a row's first seed, and its accuracy by class."""
    result = row.result
    mistakes = [
        f"  {entry['count']:>5} of class {entry['true']} were taken for {entry['predicted']}"
        for entry in result.top_confusions
    ]
    classes = ", ".join(
        f"{name} {share:.0%}" for name, share in result.per_class.items() if share is not None
    )
    title = f"{_place(row)}: most frequent mistakes"
    return "\n".join([title, *mistakes, f"  by class: {classes}"])


def _title(row: Row) -> str:
    return f"{SHOWN[row.method]}, {row.subject}"


def _place(row: Row) -> str:
    return f"{_title(row)}, {row.pool}" + ("" if row.layer is None else f", layer {row.layer}")


def _count(parameters: int | None) -> str:
    if parameters is None:
        return ""
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters / 1e3:.1f} k"


def _layer(row: Row) -> str:
    if row.pool == "pixels":
        return "-"
    return "final" if row.layer is None else str(row.layer)


def _values(setting: dict[str, float]) -> str:
    short = {"learning_rate": "rate", "weight_decay": "decay", "temperature": "T"}
    return ", ".join(
        f"{name} = {value:g}" if name == "k" else f"{short.get(name, name)} {value:g}"
        for name, value in setting.items()
    )


def _setting(row: Row) -> str:
    settings = {_values(result.setting) for result in row.results}
    text = settings.pop() if len(settings) == 1 else f"{len(settings)} different"
    return text + ("" if all(r.converged for r in row.results) else " (not converged)")


def _cell(point: GridPoint, result: Result) -> str:
    mark = "*" if point.setting == result.setting else ("" if point.converged else "!")
    return f"{point.accuracy:.2%}{mark or ' '}"


def _insert(
    heads: list[str], lines: list[list[str]], at: int, head: str, column: list[str]
) -> None:
    heads.insert(at, head)
    for line, value in zip(lines, column, strict=True):
        line.insert(at, value)


def _aligned(lines: list[list[str]]) -> list[str]:
    """Lines whose columns stand under each other: the first and last to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            f"{cell:<{w}}" if i in (0, last) else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    first = rows[0].result
    shots = "" if rows[0].shots is None else f" ({rows[0].shots} of every class)"
    notes = [
        f"{first.num_train} training images{shots}, {first.num_test} test images"
        f" ({rows[0].tested_on}), {first.num_classes} classes; the most frequent class alone gives"
        f" {first.chance:.2%}"
    ]
    if len(rows[0].results) > 1:
        notes.append(
            f"mean ± standard deviation over {len(rows[0].results)} seeds; the interval is the"
            " sampling error of the test set, which all seeds share"
        )
    fixed = sorted({_title(row) for row in rows if not row.result.num_held_out})
    if fixed:
        notes.append(f"setting fixed, none chosen on held-out images: {', '.join(fixed)}")
    edges: dict[str, list[str]] = {}
    for row in rows:
        for text in sorted({text for result in row.results for text in result.on_edge}):
            edges.setdefault(text, []).append(_place(row))
    notes += [f"on the edge of the grid, {text}: {'; '.join(at)}" for text, at in edges.items()]
    return notes
