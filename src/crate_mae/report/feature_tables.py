"""What was measured of frozen features beside baselines, and the test of a supervised run."""

from collections.abc import Mapping, Sequence
from typing import Any

from crate_mae.common.values import is_number
from crate_mae.evaluation.comparison import (
    BASELINES,
    LONG_NAMES,
    comparison_layout,
    headline,
    interval,
)
from crate_mae.report.blocks import (
    Table,
    captioned,
    named_values,
    number_cell,
    percent_cell,
    text_cell,
)
from crate_mae.report.pictures import figure_of
from crate_mae.runs.contents import Run, comparison_rows
from crate_mae.training.mask_test import SHEET

MAX_CLASSES = 200


def features_data(run: Run) -> dict[str, Any]:
    """The comparison of a run's features with baselines, by class and as a whole."""
    rows = comparison_rows(run)
    comparison = None
    if rows:
        caption = "Images told apart by frozen features"
        comparison = captioned(caption, comparison_layout(rows))
    return {
        "comparison": comparison,
        "reported": any("nearest neighbours" in problem for problem in run.problems),
        "stale": run.stale(run.evaluation),
        "pictures_seen": bool(rows) and _were_seen(run, str(rows[0].get("tested_on"))),
        "by_class": class_tables(rows),
    }


def class_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Accuracy by class, beside the baselines, and the most frequent mistakes, by method."""
    tables: list[Table] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        results = {
            subject: row
            for subject in ("model", *BASELINES)
            if (row := headline(rows, method, subject)) and isinstance(row.get("per_class"), dict)
        }
        if "model" not in results:
            continue
        name = LONG_NAMES.get(method, method)
        tables.append(_per_class(results, f"Accuracy by class, {name}"))
        title = f"Most frequent mistakes of the model, {name}"
        tables += mistakes_tables(results["model"], title)
    return tables


def test_data(run: Run) -> dict[str, Any]:
    """The test of a supervised run: its accuracy, that of each class, its mistakes; of a run on
    masks, intersections over union and a picture."""
    result, picture = run.evaluation or {}, None
    if run.is_segmenter and (run.folder / SHEET).is_file():
        text = "Test images, the classes of their pixels as told and as they are, and errors"
        caption = f"{text}. Where the truth is white, nothing counts; errors are black."
        picture = figure_of(run, run.folder / SHEET, alt=text, caption=caption)
    return {
        "stale": run.stale(run.evaluation),
        "segmenter": run.is_segmenter,
        "picture": picture,
        "tables": _mask_tables(result) if run.is_segmenter else _test_tables(result),
    }


def mistakes_tables(result: Mapping[str, Any], caption: str) -> list[Table]:
    """A table of the most frequent mistakes of a result; none where none were written down."""
    entries = result.get("top_confusions")
    body = [
        [text_cell(entry.get("true")), text_cell(entry.get("predicted")), number_cell(count, ",d")]
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(count := entry.get("count"), int)
    ]
    heads = ["True class", "Taken for", "Test images"]
    return [Table(caption=caption, heads=heads, rows=body)] if body else []


def _were_seen(run: Run, tested_on: str) -> bool:
    """Whether the test images are a part of what pre-training was given."""
    return tested_on.endswith(" held out") and str(run.data.get("source")) in tested_on


def _test_tables(result: Mapping[str, Any]) -> list[Table]:
    if not is_number(result.get("accuracy")):
        return []
    ends = interval(result)
    low, high = ends or (None, None)
    rows = [
        ("Accuracy", percent_cell(result["accuracy"], interval=ends)),
        ("95 % interval, low", percent_cell(low)),
        ("95 % interval, high", percent_cell(high)),
        ("Always the most frequent class", percent_cell(result.get("chance"))),
        ("Right class among the five highest scores", percent_cell(result.get("top5_accuracy"))),
        ("Test images", number_cell(result.get("num_test"), ",d")),
        ("Training images", number_cell(result.get("num_train"), ",d")),
        ("Classes", number_cell(result.get("num_classes"), ",d")),
        ("Tested on", text_cell(result.get("tested_on"))),
        ("Weights of step", number_cell(result.get("step"), ",d")),
    ]
    tables = [named_values("The test", rows)]
    if isinstance(result.get("per_class"), dict):
        tables.append(_per_class({"model": result}, "Accuracy by class"))
    return [*tables, *mistakes_tables(result, "Most frequent mistakes")]


def _mask_tables(result: Mapping[str, Any]) -> list[Table]:
    if not is_number(result.get("mean_iou")):
        return []
    rows = [
        ("Mean IoU", number_cell(result["mean_iou"])),
        ("Pixel accuracy", percent_cell(result.get("pixel_accuracy"))),
        ("Most frequent class everywhere", text_cell(result.get("majority"))),
        ("Its mean IoU", number_cell(result.get("majority_mean_iou"))),
        ("Its pixel accuracy", percent_cell(result.get("majority_pixel_accuracy"))),
        ("Pixels that do not count", percent_cell(result.get("ignored_share"))),
        ("Head", text_cell(result.get("head"))),
        ("Encoder", text_cell("as it was" if result.get("frozen") else "trained with it")),
        ("Test images", number_cell(result.get("num_test"), ",d")),
        ("Training images", number_cell(result.get("num_train"), ",d")),
        ("Classes", number_cell(result.get("num_classes"), ",d")),
        ("Tested on", text_cell(result.get("tested_on"))),
        ("Weights of step", number_cell(result.get("step"), ",d")),
    ]
    tables = [named_values("The test", rows)]
    iou, recall = result.get("iou"), result.get("recall")
    if isinstance(iou, dict):
        shares = recall if isinstance(recall, dict) else {}
        names = list(iou)
        body = [
            [text_cell(name), number_cell(iou[name]), percent_cell(shares.get(name))]
            for name in names[:MAX_CLASSES]
        ]
        left = len(names) - len(body)
        notes = [f"{left} more classes are in evaluation.json."] if left > 0 else []
        heads = ["Class", "IoU", "Its pixels told right"]
        tables.append(Table(caption="By class", heads=heads, rows=body, notes=notes))
    return tables


def _per_class(results: Mapping[str, Mapping[str, Any]], caption: str) -> Table:
    names = list(results["model"]["per_class"])
    body = []
    for name in names[:MAX_CLASSES]:
        shares = [result["per_class"].get(name) for result in results.values()]
        body.append([text_cell(name), *(percent_cell(share) for share in shares)])
    left = len(names) - len(body)
    return Table(
        caption=caption,
        heads=["Class", *results],
        rows=body,
        notes=[f"{left} more classes are in evaluation.json."] if left > 0 else [],
    )
