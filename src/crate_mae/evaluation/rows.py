"""The lines of a comparison: what was measured, as plain values and as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from crate_mae.common.plain_tables import as_text
from crate_mae.common.text_tables import aligned
from crate_mae.evaluation.choosing import chosen_by
from crate_mae.evaluation.comparison import comparison_layout, row_place, setting_text
from crate_mae.evaluation.knn import KnnResult
from crate_mae.evaluation.metrics import GridPoint, wilson_interval
from crate_mae.evaluation.probe import ProbeResult

Method = Literal["probe", "knn"]
Result = ProbeResult | KnnResult


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
    image_size: tuple[int, int] | None
    """Height and width that images were brought to; None where features came from a file."""
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
            "image_size": None if self.image_size is None else list(self.image_size),
            **runs[0],
            "accuracy": self.accuracy,
            "balanced_accuracy": fmean(r.balanced_accuracy for r in self.results),
            "macro_f1": fmean(r.macro_f1 for r in self.results),
            "interval": list(self.interval),
            "std": self.std,
            "seeds": [result.seed for result in self.results],
            "runs": [{k: v for k, v in run.items() if k not in whole} for run in runs],
        }


def row_line(row: Row) -> str:
    """A row on one line, for a log in which rows come one after the other."""
    low, high = row.interval
    spread = "" if row.std is None else f" ± {row.std:.2%}"
    return f"{row_place(vars(row))}: {row.accuracy:.2%}{spread} ({low:.1%} to {high:.1%})"


def comparison_table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, as `comparison_layout` lays them out.

    Below it what the reader must know: counts, chance, settings that lie on the edge of their grid.
    """
    return as_text(comparison_layout([row.to_dict() for row in rows]))


def grid_table(row: Row) -> str:
    """All settings that the first seed of a row tried, with their accuracy on held-out images."""
    result, place = row.result, row_place(vars(row))
    if not result.grid:
        return f"{place}: the setting was fixed, {setting_text(result.setting)}"
    *others, last = result.setting
    columns = sorted({point.setting[last] for point in result.grid})
    by_line: dict[str, dict[float, GridPoint]] = {}
    for point in result.grid:
        head = setting_text({name: point.setting[name] for name in others})
        by_line.setdefault(head, {})[point.setting[last]] = point
    lines = [[last.replace("_", " "), *(f"{value:g} " for value in columns)]]
    for head, points in by_line.items():
        lines.append([head or "held out", *(_held_out(points[value], result) for value in columns)])
    where = chosen_by(result.folds, result.num_held_out)
    title = f"{place}: accuracy {'in' if result.folds > 1 else 'on'} {where} (* chosen)"
    return "\n".join([title, *aligned(lines, indent="  ")])


def confusion_table(row: Row) -> str:
    """The most frequent mistakes of a row's first seed, and its accuracy by class."""
    result = row.result
    mistakes = [
        [str(entry["count"]), str(entry["true"]), str(entry["predicted"])]
        for entry in result.top_confusions
    ]
    table = aligned([["images", "of class", "taken for"], *mistakes], left=(1, 2), indent="  ")
    classes = ", ".join(
        f"{name} {share:.0%}" for name, share in result.per_class.items() if share is not None
    )
    title = f"{row_place(vars(row))}: most frequent mistakes"
    return "\n".join([title, *table, f"  by class: {classes}"])


def _held_out(point: GridPoint, result: Result) -> str:
    mark = "*" if point.setting == result.setting else ("" if point.converged else "!")
    return f"{point.accuracy:.2%}{mark or ' '}"
