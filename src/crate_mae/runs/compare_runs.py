"""Runs beside each other: settings that differ, losses, accuracies, and what they allow to say."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from crate_mae.common.plain_tables import Cell, Table, as_text
from crate_mae.common.text import count_text
from crate_mae.common.values import is_finite
from crate_mae.evaluation.answers import Answer, answers_text, clearly_better
from crate_mae.evaluation.comparison import LONG_NAMES, NAMES, headline, interval
from crate_mae.runs.contents import NOT_EVALUATED, Run, comparison_rows, read_run

LEFT_OUT = ("name", "record.", "data.workers", "data.cache_gib", "trainer.")
"""Settings that do not change what is learned, and so are not set beside each other."""
OTHER_LOSSES = (
    "method", "masking.", "simdino.", "model.norm_pix_loss", "model.patch_size",
    "model.image_size", "model.channels", "data.source", "data.split", "data.val_source",
    "data.val_split", "data.val_share", "data.val_limit", "data.mean", "data.std", "data.limit",
)  # fmt: skip
"""Settings after which validation losses are of other patches, pixels, images or views."""
OTHER_TRAINING_LOSSES = (
    *OTHER_LOSSES, "objective.", "data.augment.", "optim.label_smoothing", "optim.drop_path",
)  # fmt: skip
"""The same of training losses, which are of augmented images and may hold further terms."""
STARTED_FROM = "started from"
"""What runs that began with other weights differ in: their name, and the begin of their SHA-256."""
MISSING = object()


@dataclass(frozen=True, kw_only=True)
class ComparedRuns:
    """Several runs, and the settings in which they differ."""

    runs: list[Run]
    differing: dict[str, list[Any]]
    """By dotted name, the value of every run; None where a run has no such setting."""

    @property
    def only_seeds_differ(self) -> bool:
        """Whether the runs repeat each other with other seeds, so that their spread means that."""
        return len(self.runs) > 1 and set(self.differing) == {"seed"}

    def numbers(self) -> list[dict[str, float | None]]:
        """What was measured of each run: steps, losses, accuracies; None where it was not."""
        return [_numbers(run) for run in self.runs]

    def table(self) -> str:
        """A line for each run as aligned text, with what the numbers say in words."""
        numbers = self.numbers()
        columns = {"run": [Cell(text=str(run.folder)) for run in self.runs]}
        for key, values in self.differing.items():
            columns[key] = [Cell(text=_value_text(value)) for value in values]
        unmarked = [
            name
            for name, settings in (
                ("training loss", OTHER_TRAINING_LOSSES), ("validation loss", OTHER_LOSSES)
            )
            if self._differing(settings)
        ]  # fmt: skip
        for name, key, form in (
            ("steps", "steps", "{:,.0f}"), ("training loss", "train/loss", "{:.4g}"),
            ("validation loss", "val/loss", "{:.4g}"), ("probe", "probe", "{:.2%}"),
            ("kNN", "knn", "{:.2%}"), ("test", "test", "{:.2%}"),
            ("mean IoU", "mean_iou", "{:.4f}"),
        ):  # fmt: skip
            marked = name not in unmarked
            columns[name] = _cells([values.get(key) for values in numbers], form, marked=marked)
        parameters = [values["parameters"] for values in numbers]
        columns["parameters"] = [
            Cell(text="" if count is None else count_text(int(count)), value=count)
            for count in parameters
        ]
        shown = {head: cells for head, cells in columns.items() if any(c.text for c in cells)}
        table = Table(
            heads=list(shown),
            rows=list(zip(*shown.values(), strict=True)),
            best="best of its column, not always clearly: see below",
            notes=self._notes(),
        )
        return "\n\n".join(filter(None, [as_text(table), answers_text(self.answers())]))

    def _notes(self) -> list[str]:
        same = "" if self.differing else "no setting differs"
        problems = [f"{run.folder}: {problem}" for run in self.runs for problem in run.problems]
        spread = []
        if self.only_seeds_differ:
            for name, key in (("probe", "probe"), ("kNN", "knn"), ("test", "test")):
                found = [v for values in self.numbers() if (v := values[key]) is not None]
                if len(found) > 1:
                    spread.append(
                        f"{name} over {len(found)} seeds: {fmean(found):.2%} ± {stdev(found):.2%}"
                    )
        return [note for note in [same, *spread, *problems] if note]

    def _differing(self, settings: tuple[str, ...]) -> list[str]:
        return [key for key in self.differing if key.startswith(settings)]

    def answers(self) -> list[Answer]:
        """What may be said of the best run, by each accuracy, and of losses."""
        found = []
        other = self._differing(OTHER_LOSSES)
        if other:
            text = (
                f"Validation losses are of different things ({', '.join(other)} differs): compare"
                " accuracies alone."
            )
            found.append(Answer(rule="other losses", text=text, good=None))
        if self.only_seeds_differ:
            return found
        for method, name in LONG_NAMES.items():
            rows = [headline(comparison_rows(run), method, "model") for run in self.runs]
            found += _best_of(name.capitalize(), self.runs, rows)
        tests = [run.evaluation if run.is_classifier else None for run in self.runs]
        found += _best_of("Test", self.runs, tests)
        missing = [run for run, n in zip(self.runs, self.numbers(), strict=True) if _lacks(run, n)]
        if missing:
            named = ", ".join(f"`crate-mae report {run.folder}`" for run in missing[:3])
            text = f"Probe and kNN of {len(missing)} runs are not measured: {named}, or --measure."
            found.append(Answer(rule="not measured", text=text, good=None))
        return found

    def accuracies(self) -> list[dict[str, tuple[float, float, float]]]:
        """Of each run, by method: accuracy and the ends of its interval, where measured."""
        found = []
        for run in self.runs:
            rows = {name: headline(comparison_rows(run), key, "model")
                    for key, name in LONG_NAMES.items()}  # fmt: skip
            rows["test"] = run.evaluation if run.is_classifier else None
            known = {}
            for name, row in rows.items():
                ends = None if row is None else interval(row)
                if row is not None and ends is not None and is_finite(row.get("accuracy")):
                    known[name] = (float(row["accuracy"]), *ends)
            found.append(known)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "runs": [str(run.folder) for run in self.runs],
            "differing": self.differing,
            "numbers": self.numbers(),
            "answers": [answer.text for answer in self.answers()],
            "problems": [run.problems for run in self.runs],
        }


def read_runs(folders: Sequence[str | Path]) -> ComparedRuns:
    """The runs of at least two folders, set beside each other; raises as `read_run`, ValueError."""
    if len(folders) < 2:
        raise ValueError("a comparison needs at least two run folders")
    return compared([read_run(folder) for folder in folders])


def compared(runs: Sequence[Run]) -> ComparedRuns:
    """The runs set beside each other, by the settings that change what is learned."""
    flat = [_flat(run.config) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    differing = {}
    for key in keys:
        values = [settings.get(key, MISSING) for settings in flat]
        if key.startswith(LEFT_OUT) or all(value == values[0] for value in values):
            continue
        differing[key] = [None if value is MISSING else value for value in values]
    hashes = [run.start and run.start.sha256 for run in runs]
    if "weights" not in differing and len(set(hashes)) > 1:
        differing[STARTED_FROM] = [
            None if run.start is None else f"{run.start.weights} {run.start.sha256[:8]}"
            for run in runs
        ]
    return ComparedRuns(runs=list(runs), differing=differing)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _numbers(run: Run) -> dict[str, float | None]:
    rows = comparison_rows(run)
    test = (run.evaluation or {}).get("accuracy") if run.is_classifier else None
    iou = (run.evaluation or {}).get("mean_iou") if run.is_segmenter else None
    step = run.last_value("step")
    accuracies = {
        method: None if row is None else float(row["accuracy"])
        for method in NAMES
        for row in [headline(rows, method, "model")]
    }
    return {
        "steps": None if step is None else step + 1,
        "train/loss": run.last_value("train/loss"),
        "val/loss": run.last_value("val/loss"),
        **accuracies,
        "test": float(test) if is_finite(test) else None,
        **({"mean_iou": float(iou)} if is_finite(iou) else {}),
        "parameters": None if run.weights is None else float(run.weights["parameters"]),
    }


def _lacks(run: Run, numbers: dict[str, float | None]) -> bool:
    told = any(NOT_EVALUATED in problem for problem in run.problems)
    return not told and not run.is_classifier and any(numbers[m] is None for m in NAMES)


def _cells(values: Sequence[float | None], form: str, *, marked: bool) -> list[Cell]:
    known = [value for value in values if value is not None]
    mark = None
    if marked and len(known) > 1 and form.endswith(("%}", "g}")):
        mark = max(known) if form.endswith("%}") else min(known)
    return [
        Cell(text="") if value is None
        else Cell(text=form.format(value), value=value, best=value == mark)
        for value in values
    ]  # fmt: skip


def _value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 24 else f"…{text[-23:]}"


def _best_of(name: str, runs: Sequence[Run], rows: Sequence[Any]) -> list[Answer]:
    measured = [
        (run, row) for run, row in zip(runs, rows, strict=True)
        if isinstance(row, dict) and is_finite(row.get("accuracy")) and interval(row)
    ]  # fmt: skip
    if len(measured) < 2:
        return []
    measured.sort(key=lambda pair: -pair[1]["accuracy"])
    (best, first), (second, next_best) = measured[:2]
    sure = clearly_better(first, next_best)
    text = f"{name}: {best.folder} has {first['accuracy']:.1%}, {second.folder} "
    text += f"{next_best['accuracy']:.1%}"
    text += "." if sure else ": the intervals overlap, no clear difference."
    return [Answer(rule="best run", text=text, good=True if sure else None)]
