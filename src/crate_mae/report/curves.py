"""How the training went: curves, the same in numbers, warnings."""

import math

from crate_mae.report.blocks import Block, Code, Details, Figure, Paragraph, Table, number_cell
from crate_mae.report.pictures import curves_uri
from crate_mae.runs.contents import Run

NAMES = {
    "train/loss": "Training loss",
    "val/loss": "Validation loss",
    "train/accuracy": "Training accuracy",
    "val/accuracy": "Validation accuracy",
    "train/lr": "Learning rate",
}
MAX_VALIDATIONS = 12
MAX_WARNINGS = 20


def training_blocks(run: Run) -> list[Block]:
    """The training section of a run."""
    units = (
        "The loss is the mean squared error on the removed patches, in units of the data's standard"
        " deviation: 1 is what predicting their mean reaches, 0 is perfect."
    )
    if run.setting("model.norm_pix_loss"):
        units = (
            "The loss is the mean squared error on the removed patches, each normalised by its own"
            " mean and contrast: just below 1 is what predicting its mean reaches, 0 is perfect."
        )
    if run.is_classifier:
        units = "The loss is the cross-entropy of the classes: lower is better, 0 is perfect."
    blocks: list[Block] = [
        Paragraph(
            text=f"{units} A validation loss that falls with the training loss is learning; one"
            " that rises while the training loss falls is learning by heart."
        )
    ]
    try:
        uri = curves_uri(run.records)
    except (OSError, ValueError) as error:
        reason = str(error) if run.records else "no metrics have been recorded yet"
        return [*blocks, Paragraph(text=f"There are no curves: {reason}.", tone="note")]
    blocks.append(
        Figure(uri=uri, alt=_curves_in_words(run), caption="Loss and learning rate by step.")
    )
    table = _validations(run)
    blocks += [table] if table else []
    if run.warnings:
        shown = "\n".join(run.warnings[-MAX_WARNINGS:])
        more = len(run.warnings) - MAX_WARNINGS
        title = f"Warnings in the log ({len(run.warnings):,})"
        label = "The last lines" if more > 0 else "All of them"
        blocks.append(Details(title=title, blocks=[Code(label=label, text=shown)]))
    return blocks


def _validations(run: Run) -> Table | None:
    keys = [key for key in NAMES if run.last_value(key) is not None]
    seen: dict[str, float] = {}
    lines = []
    for record in run.records:
        seen.update(record)
        if any(key.startswith("val/") for key in record):
            lines.append(dict(seen))
    if not lines:
        return None
    last = len(lines) - 1
    count = min(len(lines), MAX_VALIDATIONS)
    chosen = [lines[round(i * last / max(1, count - 1))] for i in range(count)]
    note = f"{count} of {len(lines):,} validations, evenly spread; metrics.csv has all."
    counted = ["Epoch, from 0"] if "epoch" in chosen[-1] else []
    heads = ["Step", *counted, *(NAMES[key] for key in keys)]
    body = []
    for line in chosen:
        cells = [number_cell(_whole(line.get("step")), ",d")]
        cells += [number_cell(_whole(line.get("epoch")), ",d")] if counted else []
        body.append([*cells, *(number_cell(line.get(key)) for key in keys)])
    return Table(
        caption="The same in numbers",
        heads=heads,
        rows=body,
        note=note if count < len(lines) else "",
    )


def _curves_in_words(run: Run) -> str:
    parts = []
    for key, name in (("train/loss", "training loss"), ("val/loss", "validation loss")):
        values = [(r["step"], r[key]) for r in run.records if key in r and math.isfinite(r[key])]
        if values:
            (first, start), (last, end) = values[0], values[-1]
            parts.append(f"{name} from {start:.3g} at step {first:,} to {end:.3g} at step {last:,}")
    return f"Line chart: {'; '.join(parts)}"


def _whole(value: float | None) -> float | int | None:
    return int(value) if isinstance(value, float) and value.is_integer() else value
