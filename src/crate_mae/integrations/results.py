"""What a model reaches, as a card says it."""

from typing import Any

from crate_mae.evaluation.rows import SHOWN
from crate_mae.integrations.words import counted, plain, section
from crate_mae.report.blocks import is_finite


def result_parts(found: dict[str, Any]) -> list[str]:
    """Paragraphs and tables on what METRICS holds, or the sentence that it holds nothing."""
    rows = [row for row in found.get("rows") or [] if is_finite(row.get("accuracy"))]
    parts = [
        *_losses(section(found, "validation")),
        *_completion(section(found, "psnr")),
        *_comparison(rows),
        *_test(section(found, "test")),
    ]
    if not parts:
        return ["Nothing that was measured on these very weights is recorded here."]
    if not any(isinstance(row.get("seeds"), list) and len(row["seeds"]) > 1 for row in rows):
        parts.append(
            "One training run and one seed: another seed moves every number by an unknown amount."
            " Intervals (95 %, Wilson) are the sampling error of the test images alone."
        )
    return parts


def _losses(values: dict[str, Any]) -> list[str]:
    if not is_finite(values.get("val/loss")):
        return []
    if is_finite(values.get("val/accuracy")):
        return [
            f"Held-out images at the end: loss {values['val/loss']:.4g}, accuracy"
            f" {values['val/accuracy']:.2%}."
        ]
    beside = [
        f"{words} {values[key]:.4g}"
        for key, words in (
            ("val/mean_colour", "the one best colour"),
            ("val/patch_mean", "the true mean of each patch, which no model is told,"),
        )
        if is_finite(values.get(key))
    ]
    told = f" ({'; '.join(beside)})" if beside else ""
    return [
        f"Mean squared error on removed patches of held-out images under fixed masks:"
        f" {values['val/loss']:.4g}{told}, in units of the model's normalised pixels."
    ]


def _completion(found: dict[str, Any]) -> list[str]:
    if not is_finite(found.get("mean")):
        return []
    count = counted(found.get("images"), "held-out image") or "held-out images"
    return [f"PSNR on removed patches: {found['mean']:.2f} dB, mean over {count}."]


def _comparison(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    heads = ["features of", "method", "accuracy", "95 % interval", "layer", "pool", "width"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        spread = f" ± {row['std']:.2%}" if is_finite(row.get("std")) else ""
        cells = [
            plain(row.get("subject")),
            SHOWN.get(str(row.get("method")), plain(row.get("method"))),
            f"{row['accuracy']:.2%}{spread}",
            _interval(row),
            _layer(row),
            plain(row.get("pool")),
            plain(row.get("dim")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [f"Frozen features: {_counts(rows[0])}.", "\n".join(lines)]


def _layer(row: dict[str, Any]) -> str:
    if row.get("pool") == "pixels":
        return ""
    return "final" if row.get("layer") is None else plain(row["layer"])


def _test(found: dict[str, Any]) -> list[str]:
    if not is_finite(found.get("accuracy")):
        return []
    return [
        f"Test, made once at the end: {found['accuracy']:.2%} ({_interval(found)}),"
        f" {_counts(found)}."
    ]


def _counts(row: dict[str, Any]) -> str:
    parts = [
        counted(row.get("num_train"), "training image"),
        counted(row.get("num_test"), "test image"),
    ]
    if isinstance(row.get("num_classes"), int):
        parts.append(f"{row['num_classes']} classes")
    if is_finite(row.get("chance")):
        parts.append(f"the most frequent class alone gives {row['chance']:.2%}")
    return ", ".join(filter(None, parts)) or "counts were not recorded"


def _interval(row: dict[str, Any]) -> str:
    ends = row.get("interval")
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(is_finite, ends)):
        return ""
    return f"{ends[0]:.1%} to {ends[1]:.1%}"
