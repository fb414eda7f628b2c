"""Tables of what was measured: classes told apart by frozen features, and the test of a run."""

from collections.abc import Sequence
from typing import Any

from crate_mae.evaluation.rows import SHOWN
from crate_mae.report.blocks import (
    NOTHING,
    Bar,
    Block,
    Cell,
    Details,
    Paragraph,
    Table,
    number_cell,
    percent_cell,
    text_cell,
)
from crate_mae.runs.contents import Run, headline, interval, is_number

SUBJECT = {"model": "this model", "random twin": "random twin", "raw pixels": "raw pixels"}
SETTINGS = ("k", "temperature", "penalty", "learning_rate", "weight_decay")
MAX_CLASSES = 200
METHODS = {
    "probe": "linear probe",
    "knn": "nearest neighbours",
}


def comparison_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The lines of a comparison, every number as it was written down."""
    layered = any(row.get("layer") is not None for row in rows)
    spread = any(is_number(row.get("std")) for row in rows)
    heads = ["Features of", "Method", "Accuracy", *(["Std over seeds"] if spread else [])]
    heads += ["95 % low", "95 % high", *(["Layer"] if layered else []), "Pool", "Width", "Setting"]
    body = []
    for row in rows:
        low, high = interval(row) or (None, None)
        line = [text_cell(SUBJECT.get(row["subject"], row["subject"]))]
        line.append(text_cell(SHOWN.get(row["method"], row["method"])))
        line.append(percent_cell(row["accuracy"], bar=_bar(row)))
        line += [percent_cell(row.get("std"))] if spread else []
        line += [percent_cell(low), percent_cell(high)]
        if layered:
            layer = row.get("layer")
            line.append(text_cell("final") if layer is None else number_cell(layer, "d"))
        line += [text_cell(row.get("pool")), number_cell(row.get("dim"), ",d")]
        body.append([*line, text_cell(_setting(row))])
    return Table(
        caption="Images told apart by frozen features",
        heads=heads,
        rows=body,
        note=_table_note(rows),
    )


def class_blocks(rows: Sequence[dict[str, Any]]) -> list[Block]:
    """Accuracy by class, beside the baselines, and the most frequent mistakes; on demand."""
    blocks: list[Block] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        found = {
            subject: row
            for subject in SUBJECT
            if (row := headline(rows, method, subject)) and isinstance(row.get("per_class"), dict)
        }
        if "model" not in found:
            continue
        name = METHODS.get(method, method)
        blocks.append(_per_class(found, f"Accuracy by class, {name}"))
        mistakes = mistakes_table(found["model"], f"Most frequent mistakes of the model, {name}")
        blocks += [mistakes] if mistakes else []
    return (
        [Details(title="By class, and the most frequent mistakes", blocks=blocks)] if blocks else []
    )


def test_blocks(run: Run) -> list[Block]:
    """The test of a supervised run: its accuracy, that of each class, its mistakes."""
    found = run.evaluation or {}
    if not is_number(found.get("accuracy")):
        return []
    low, high = interval(found) or (None, None)
    cells: list[tuple[str, Cell]] = [
        ("Accuracy", percent_cell(found["accuracy"], bar=_bar(found))),
        ("95 % interval, low", percent_cell(low)),
        ("95 % interval, high", percent_cell(high)),
        ("Always the most frequent class", percent_cell(found.get("chance"))),
        ("Right class among the five highest scores", percent_cell(found.get("top5_accuracy"))),
        ("Test images", number_cell(found.get("num_test"), ",d")),
        ("Training images", number_cell(found.get("num_train"), ",d")),
        ("Classes", number_cell(found.get("num_classes"), ",d")),
        ("Tested on", text_cell(found.get("tested_on"))),
        ("Weights of step", number_cell(found.get("step"), ",d")),
    ]
    blocks: list[Block] = [
        Paragraph(
            text="The test images were used once, at the end. The interval is what chance in the"
            " choice of test images alone allows; another seed may move the result further."
        ),
        Table(
            caption="The test",
            heads=["What", "Value"],
            rows=[[text_cell(name), cell] for name, cell in cells if cell.text != NOTHING],
            sortable=False,
        ),
    ]
    if isinstance(found.get("per_class"), dict):
        blocks.append(_per_class({"model": found}, "Accuracy by class"))
    mistakes = mistakes_table(found, "Most frequent mistakes")
    return [*blocks, mistakes] if mistakes else blocks


def mistakes_table(row: dict[str, Any], caption: str) -> Table | None:
    """The most frequent mistakes of a result, or None."""
    entries = row.get("top_confusions")
    body = [
        [text_cell(entry.get("true")), text_cell(entry.get("predicted")), number_cell(count, ",d")]
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(count := entry.get("count"), int)
    ]
    if not body:
        return None
    return Table(caption=caption, heads=["True class", "Taken for", "Test images"], rows=body)


def _per_class(found: dict[str, dict[str, Any]], caption: str) -> Table:
    names = list(found["model"]["per_class"])
    body = []
    for name in names[:MAX_CLASSES]:
        shares = [row["per_class"].get(name) for row in found.values()]
        body.append([text_cell(name), *(percent_cell(share) for share in shares)])
    left = len(names) - len(body)
    return Table(
        caption=caption,
        heads=["Class", *(SUBJECT[subject] for subject in found)],
        rows=body,
        note=f"{left} more classes are in evaluation.json." if left > 0 else "",
    )


def _bar(row: dict[str, Any]) -> Bar | None:
    ends = interval(row)
    return None if ends is None else Bar(value=row["accuracy"], low=ends[0], high=ends[1])


def _setting(row: dict[str, Any]) -> str:
    parts = [f"{key.replace('_', ' ')} {row[key]:g}" for key in SETTINGS if is_number(row.get(key))]
    if row.get("converged") is False:
        parts.append("not converged")
    return ", ".join(parts)


def _table_note(rows: Sequence[dict[str, Any]]) -> str:
    first = rows[0]
    parts = [
        f"{first[key]:,} {words}"
        for key, words in (
            ("num_train", "training images"),
            ("num_test", "test images"),
            ("num_classes", "classes"),
        )
        if isinstance(first.get(key), int)
    ]
    if isinstance(first.get("tested_on"), str):
        parts.append(f"tested on {first['tested_on']}")
    if is_number(first.get("chance")):
        parts.append(f"always answering the most frequent class gives {first['chance']:.2%}")
    sentences = [f"{'; '.join(parts)}."] if parts else []
    edges = [
        f"{SHOWN.get(row['method'], row['method'])}, {row['subject']}: {text}"
        for row in rows
        for text in (row["on_edge"] if isinstance(row.get("on_edge"), list) else [])
    ]
    if edges:
        told = "; ".join(edges)
        sentences.append(f"A better setting may lie outside those that were tried: {told}.")
    return " ".join(sentences)
