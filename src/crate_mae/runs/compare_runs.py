"""Runs beside each other: settings that differ, losses, accuracies, and what they allow to say."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from crate_mae.common.plain_tables import Cell, Table, as_text
from crate_mae.common.text import count_text
from crate_mae.common.values import is_count, is_finite, named_values_at, text_of
from crate_mae.evaluation.answers import Answer, Place, answers_text, clearly_better
from crate_mae.evaluation.comparison import LONG_NAMES, NAMES, PlainRow, headline, interval
from crate_mae.runs.contents import EVALUATION, NOT_EVALUATED, Run, comparison_rows, read_run
from crate_mae.runs.differences import TRAINING_IMAGES, differences, draws_images, fingerprints

OTHER_LOSSES = (
    "method", "task", "masking.", "simdino.", "model.norm_pix_loss", "model.patch_size",
    "model.image_size", "model.channels", "image_size", "data.source", "data.split",
    "data.val_source", "data.val_split", "data.val_share", "data.val_limit", "data.mean",
    "data.std", "data.limit", "data.shots", "data.share", "data.image_key", "data.label_key",
    "data.follow_links", "segment.masks", "segment.val_masks", "segment.class", "segment.ignore",
    TRAINING_IMAGES,
)  # fmt: skip
"""Settings after which validation losses are of other patches, pixels, images, classes or views.

Training images are among them: what is held out, and mean and std, are taken from them.
"""
OTHER_TRAINING_LOSSES = (
    *OTHER_LOSSES, "objective.", "data.augment.", "optim.label_smoothing", "optim.drop_path",
)  # fmt: skip
"""The same of training losses, which are of augmented images and may hold further terms."""
DRAWN = "held-out images drawn by the seed"
"""What validation losses are of where the seed chooses the images that some are held out of."""
COLUMNS = {"probe": "probe", "knn": "kNN", "test": "test", "mean_iou": "mean IoU"}
"""The results of a run, and their columns."""
LONG = {**LONG_NAMES, "test": "test", "mean_iou": "mean IoU"}
"""What they are called where they stand alone."""
TESTED = {
    "tested_on": "test images",
    "fingerprint": "fingerprints of the test images",
    "num_test": "numbers of test images",
    "num_classes": "numbers of classes",
}
"""What results must agree in to be compared, in words. A supervised run's training images and pool
are its settings; those of a measure on features are not."""
MEASURED = {
    **TESTED, "num_train": "numbers of training images", "shots": "shots", "pool": "pools",
}  # fmt: skip
"""The same of probe and nearest neighbours."""
AMOUNTS = {"num_train": "--limit", "num_test": "--test-limit"}
"""How many images a result rests on, and the options of `crate-mae report` that choose it."""


@dataclass(frozen=True, kw_only=True)
class ComparedRuns:
    """Several runs, and the settings in which they differ."""

    runs: list[Run]
    differing: dict[str, list[Any]]
    """By dotted name, the value of every run; None where a run has no such setting."""
    stale: list[bool]
    """Of each run, whether its results are of other weights than its folder holds now: they then do
    not count."""

    @property
    def only_seeds_differ(self) -> bool:
        """Whether the runs repeat each other with other seeds, so that their spread means that."""
        return len(self.runs) > 1 and set(self.differing) == {"seed"}

    def _rows(self, method: str) -> list[PlainRow | None]:
        """Of each run, the result of one of COLUMNS; None where none is there that counts."""
        return [
            None if stale else _row(run, method)
            for run, stale in zip(self.runs, self.stale, strict=True)
        ]

    def _measured(self, method: str) -> list[tuple[Run, PlainRow]]:
        """The runs with a result of one of COLUMNS that counts, and that result."""
        pairs = zip(self.runs, self._rows(method), strict=True)
        return [(run, row) for run, row in pairs if row is not None]

    def _unlike(self, method: str) -> dict[str, list[str]]:
        """In what the results of one of COLUMNS were not measured alike, with the values there are.

        By key of MEASURED; empty where they may be compared. What a result does not say, as old
        ones do not, is no difference.
        """
        rows = [row for _, row in self._measured(method)]
        found = {}
        for key in MEASURED if method in LONG_NAMES else TESTED:
            values = dict.fromkeys(text for row in rows if (text := _how(row, key)) is not None)
            if len(values) > 1:
                found[key] = list(values)
        return found

    def numbers(self) -> list[dict[str, float | None]]:
        """What was measured of each run: steps, losses, accuracies; None where it was not."""
        rows = zip(*(self._rows(method) for method in COLUMNS), strict=True)
        return [
            _numbers(run, dict(zip(COLUMNS, of_run, strict=True)))
            for run, of_run in zip(self.runs, rows, strict=True)
        ]

    def table(self) -> str:
        """A line for each run as aligned text, with what the numbers say in words."""
        numbers = self.numbers()
        columns = {"run": [Cell(text=str(run.folder)) for run in self.runs]}
        for key, values in self.differing.items():
            columns[key] = [Cell(text=_value_text(value)) for value in values]
        unmarked = self._unmarked()
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

    def _unmarked(self) -> list[str]:
        """The columns whose values are of different things, so that none is the best."""
        unmarked = [COLUMNS[method] for method in COLUMNS if self._unlike(method)]
        if self._other_losses():
            unmarked.append("validation loss")
        if self._other_losses() or self._differing(OTHER_TRAINING_LOSSES):
            unmarked.append("training loss")
        return unmarked

    def _notes(self) -> list[str]:
        same = "" if self.differing else "no setting differs"
        pairs = zip(self.runs, self._problems(), strict=True)
        problems = [f"{run.folder}: {problem}" for run, of_run in pairs for problem in of_run]
        spread = []
        for method in ("probe", "knn", "test") if self.only_seeds_differ else ():
            found = [float(row["accuracy"]) for _, row in self._measured(method)]
            if len(found) > 1 and not self._unlike(method):
                spread.append(
                    f"{COLUMNS[method]} over {len(found)} seeds: {fmean(found):.2%} ±"
                    f" {stdev(found):.2%}"
                )
        return [note for note in [same, *spread, *problems] if note]

    def _problems(self) -> list[list[str]]:
        """Of each run, what could not be read or does not count, in sentences."""
        return [
            [*run.problems, *([_stale_sentence(run)] if stale else [])]
            for run, stale in zip(self.runs, self.stale, strict=True)
        ]

    def _differing(self, settings: tuple[str, ...]) -> list[str]:
        return [key for key in self.differing if key.startswith(settings)]

    def _other_losses(self) -> list[str]:
        """What makes validation losses be of different things."""
        found = self._differing(OTHER_LOSSES)
        # The draw differs with the seed even where the runs only repeat each other.
        drawn = "seed" in self.differing and any(
            draws_images(run) and _holds_out(run) for run in self.runs
        )
        return found or ([DRAWN] if drawn and len(fingerprints(self.runs)) > 1 else [])

    def answers(self) -> list[Answer]:
        """What may be said of the best run, by each accuracy, and of losses."""
        found = []
        other = self._other_losses()
        if other:
            text = (
                f"Validation losses are of different things ({', '.join(other)}): compare"
                " accuracies alone."
            )
            found.append(Answer(rule="other losses", text=text, good=None))
        for method, name in LONG.items():
            measured, unlike = self._measured(method), self._unlike(method)
            begin = name[0].upper() + name[1:]
            if unlike:
                found.append(_not_alike(begin, method, unlike, measured))
            elif not self.only_seeds_differ:
                found += _best_of(begin, measured)
        return found if self.only_seeds_differ else [*found, *self._not_measured()]

    def _not_measured(self) -> list[Answer]:
        missing = [
            run
            for run, numbers, stale in zip(self.runs, self.numbers(), self.stale, strict=True)
            if not stale and _lacks(run, numbers)  # of stale results the table says what to do
        ]
        if not missing:
            return []
        named = ", ".join(Place().command("report", str(run.folder)) for run in missing[:3])
        text = f"Probe and kNN of {len(missing)} runs are not measured: {named}, or --measure."
        return [Answer(rule="not measured", text=text, good=None)]

    def accuracies(self) -> list[dict[str, tuple[float, float, float]]]:
        """Of each run, by method: accuracy and the ends of its interval, where measured.

        Methods by which runs were not measured alike are called so.
        """
        found: list[dict[str, tuple[float, float, float]]] = [{} for _ in self.runs]
        for method, name in LONG.items():
            called = f"{name}\n(not measured alike)" if self._unlike(method) else name
            for known, row in zip(found, self._rows(method), strict=True):
                ends = None if row is None else interval(row)
                if row is not None and ends is not None and is_finite(row.get("accuracy")):
                    known[called] = (float(row["accuracy"]), *ends)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "runs": [str(run.folder) for run in self.runs],
            "differing": self.differing,
            "numbers": self.numbers(),
            "answers": [answer.text for answer in self.answers()],
            "problems": self._problems(),
        }


def read_runs(folders: Sequence[str | Path]) -> ComparedRuns:
    """The runs of at least two folders, set beside each other; raises as `read_run`, ValueError."""
    if len(folders) < 2:
        raise ValueError("a comparison needs at least two run folders")
    return compared([read_run(folder) for folder in folders])


def compared(runs: Sequence[Run]) -> ComparedRuns:
    """The runs set beside each other, by the settings that change what is learned."""
    stale = [run.stale(run.evaluation) for run in runs]
    return ComparedRuns(runs=list(runs), differing=differences(runs), stale=stale)


def _holds_out(run: Run) -> bool:
    """Whether validation images are held out of the training images."""
    named = run.setting("data.val_source") or run.setting("data.val_split")
    return not named and bool(run.setting("data.val_share"))


def _row(run: Run, method: str) -> PlainRow | None:
    """What was measured of a run by one of COLUMNS, with a number."""
    row: PlainRow | None
    if method in LONG_NAMES:
        row = headline(comparison_rows(run), method, "model")
    else:
        supervised = run.is_segmenter if method == "mean_iou" else run.is_classifier
        row = run.evaluation if supervised else None
    return row if row is not None and is_finite(row.get(_value_key(method))) else None


def _value_key(method: str) -> str:
    return "mean_iou" if method == "mean_iou" else "accuracy"


def _how(row: PlainRow, key: str) -> str | None:
    """What a result says of how it was measured, by key of MEASURED; None where it says nothing."""
    if key == "fingerprint":
        test = named_values_at(named_values_at(row, "data"), "test")
        return (text_of(test.get("fingerprint")) or "")[:8] or None
    value = row.get(key)
    if key == "shots" and value is None:
        return "all"
    return f"{value:,}" if is_count(value) else text_of(value)


def _numbers(run: Run, rows: dict[str, PlainRow | None]) -> dict[str, float | None]:
    step = run.last_value("step")
    results = {
        method: None if row is None else float(row[_value_key(method)])
        for method, row in rows.items()
        if row is not None or method != "mean_iou"
    }
    return {
        "steps": None if step is None else step + 1,
        "train/loss": run.last_value("train/loss"),
        "val/loss": run.last_value("val/loss"),
        **results,
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


def _stale_sentence(run: Run) -> str:
    """That a run's results do not count, and what to do."""
    if run.is_classifier:
        resumed = Place().command("finetune", "--resume", str(run.folder))
        again = f"move {run.folder / EVALUATION} away, and {resumed} tests again"
    else:
        again = f"{Place().command('report', str(run.folder))}, or --measure, measures again"
    return f"its results are of other weights than lie there now and do not count: {again}."


def _not_alike(
    name: str, method: str, unlike: dict[str, list[str]], measured: Sequence[tuple[Run, PlainRow]]
) -> Answer:
    """Why results may not be compared, and what to do."""
    differ = [f"{MEASURED[key]} ({', '.join(values)})" for key, values in unlike.items()]
    named = " and ".join(filter(None, (", ".join(differ[:-1]), differ[-1])))
    text = f"{name}: not measured alike, so no run is called the best: {named} differ."
    return Answer(rule="best run", text=f"{text} {_alike(method, unlike, measured)}", good=None)


def _alike(
    method: str, unlike: dict[str, list[str]], measured: Sequence[tuple[Run, PlainRow]]
) -> str:
    """What to do so that results can be compared, as a sentence."""
    if method not in LONG_NAMES:
        return (
            "Test all runs on the same images: with one data.test_source, data.test_split and"
            " data.test_limit."
        )
    if set(unlike) <= {*AMOUNTS, "num_classes"} and set(unlike) & set(AMOUNTS):
        return f"Measure alike: {_same_amounts(measured)}."
    options = ["--pool", "mean"] if "pool" in unlike else []
    command = Place().command(method, "RUN", "ADDRESS", *options)
    same = "the same address and the same --shots" if "shots" in unlike else "the same address"
    return f"Measure each run alike: {command}, with {same} for all."


def _same_amounts(measured: Sequence[tuple[Run, PlainRow]]) -> str:
    """The commands that measure runs with the least amounts of images that one of them has."""
    least = {
        key: min(counts)
        for key in AMOUNTS
        if (counts := [row[key] for _, row in measured if is_count(row.get(key))])
    }
    # Both are given, for a limit that is left out goes back to its default.
    options = [word for key, count in least.items() for word in (AMOUNTS[key], str(count))]
    more = [
        run for run, row in measured if any(row.get(key) != count for key, count in least.items())
    ]
    commands = [Place().command("report", str(run.folder), *options) for run in more[:3]]
    return ", ".join([*commands, *(["and so on"] if more[3:] else [])])


def _best_of(name: str, measured: Sequence[tuple[Run, PlainRow]]) -> list[Answer]:
    known = [(run, row) for run, row in measured if "accuracy" in row and interval(row)]
    if len(known) < 2:
        return []
    known.sort(key=lambda pair: -pair[1]["accuracy"])
    (best, first), (second, next_best) = known[:2]
    sure = clearly_better(first, next_best)
    text = f"{name}: {best.folder} has {first['accuracy']:.1%}, {second.folder} "
    text += f"{next_best['accuracy']:.1%}"
    text += "." if sure else ": the intervals overlap, no clear difference."
    return [Answer(rule="best run", text=text, good=True if sure else None)]
