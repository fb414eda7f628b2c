"""How the training went: curves, the same in numbers, warnings."""

import math
from typing import Any

from crate_mae.report.blocks import Table, number_cell
from crate_mae.report.pictures import Figure, curves_uri
from crate_mae.runs.contents import Run

NAMES = {
    "train/loss": "Training loss",
    "val/loss": "Validation loss",
    "train/accuracy": "Training accuracy",
    "val/accuracy": "Validation accuracy",
    "val/mean_iou": "Validation mean IoU",
    "val/pixel_accuracy": "Validation pixel accuracy",
    "val/knn": "kNN",
    "val/probe": "Probe",
    "val/effective_rank": "Rank",
    "val/coding_rate_share": "R / max. R, held-out",
    "train/coding_rate": "R",
    "train/largest_rate": "Max. R",
    "val/compression": "Compression",
    "val/expansion": "Expansion",
    "val/largest_expansion": "Largest possible expansion",
    "train/lr": "Learning rate",
}
MAX_VALIDATIONS = 12
MAX_WARNINGS = 20


def training_data(run: Run) -> dict[str, Any]:
    """Curves of a run, or why there are none, its validations, and the end of its warnings."""
    curves, reason = None, None
    try:
        curves = Figure(
            uri=curves_uri(run.records),
            alt=_curves_in_words(run),
            caption="Loss and learning rate by step.",
        )
    except (OSError, ValueError) as error:
        reason = str(error) if run.records else "no metrics have been recorded yet"
    return {
        "classifier": run.is_classifier,
        "segmenter": run.is_segmenter,
        "simdino": run.is_simdino,
        "normalised_patches": bool(run.setting("model.norm_pix_loss")),
        "curves": curves,
        "no_curves": reason,
        "validations": _validations(run),
        "warnings": len(run.warnings),
        "cut": len(run.warnings) > MAX_WARNINGS,
        "last_warnings": "\n".join(run.warnings[-MAX_WARNINGS:]),
    }


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
    body = []
    for line in chosen:
        cells = [number_cell(_whole(line.get("step")), ",d")]
        cells += [number_cell(_whole(line.get("epoch")), ",d")] if counted else []
        body.append([*cells, *(number_cell(line.get(key)) for key in keys)])
    return Table(
        caption="The same in numbers",
        heads=["Step", *counted, *(NAMES[key] for key in keys)],
        rows=body,
        notes=[note] if count < len(lines) else [],
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
