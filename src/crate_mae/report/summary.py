"""The top of the page: what this run is, and its numbers in one glance."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from crate_mae.common.text import duration
from crate_mae.report.blocks import (
    Block,
    Items,
    KeyNumber,
    KeyNumbers,
    Paragraph,
    Table,
    Tone,
    number_cell,
    text_cell,
)
from crate_mae.report.feature_tables import METHODS
from crate_mae.runs.contents import Run, comparison_rows, headline, interval, is_finite, is_number


def status(run: Run) -> tuple[str, bool]:
    """How far the run has come, in a sentence, and whether it is finished."""
    if run.summary is not None:
        return f"Finished after {_counted(run.summary.get('step'), 'optimiser steps')}.", True
    step = run.last_value("step")
    done = "No step has been recorded" if step is None else f"Step {int(step) + 1:,}"
    total = planned_steps(run)
    if step is not None and total:
        done += f" of {total:,}"
    if run.nonfinite is not None:
        return (
            f"{done}. This run stopped because a number was not finite: see nonfinite.json.",
            False,
        )
    return f"{done}. This run is not finished: every number below may still change.", False


def planned_steps(run: Run) -> int | None:
    """Optimiser steps of the whole run, as its settings and data have it; None when unknown."""
    images, batch = run.data.get("images"), run.setting("optim.batch_size")
    epochs = run.setting("optim.epochs")
    if not all(isinstance(value, int) and value > 0 for value in (images, batch, epochs)):
        return None
    return int(images // batch * epochs)


def summary_blocks(run: Run) -> list[Block]:
    """Status, key numbers, verdicts and what the run was made with."""
    sentence, finished = status(run)
    blocks: list[Block] = [Paragraph(text=sentence, tone="good" if finished else "bad")]
    blocks.append(KeyNumbers(numbers=key_numbers(run)))
    blocks += verdicts(run)
    blocks.append(_facts(run))
    if run.problems:
        title = "What this page cannot tell"
        blocks.append(Items(title=title, sentences=run.problems, tone="note"))
    return blocks


def key_numbers(run: Run) -> list[KeyNumber]:
    """The numbers that a glance should find; those that are not there are left out."""
    found = []
    loss, colour = run.last_value("val/loss"), run.last_value("val/mean_colour")
    if loss is not None:
        note = "classification, held-out images; lower is better"
        if not run.is_classifier:
            note = "on removed patches of held-out images; lower is better"
            note += f", one colour gets {colour:.4g}" if colour is not None else ""
        found.append(KeyNumber(label="validation loss", value=f"{loss:.4g}", note=note))
    if run.is_classifier:
        found += _test_number(run)
    else:
        found += _probe_numbers(run)
    if run.weights is not None:
        count = run.weights["parameters"]
        found.append(
            KeyNumber(label="parameters", value=_short(count), note=f"{count:,} trained numbers")
        )
    if isinstance(images := run.data.get("images"), int):
        epochs = run.setting("optim.epochs")
        note = f"seen up to {epochs:,} times each" if isinstance(epochs, int) else ""
        found.append(KeyNumber(label="training images", value=f"{images:,}", note=note))
    speed = _median([record.get("speed/images_per_s") for record in run.records])
    if speed is not None:
        found.append(
            KeyNumber(label="images per second", value=f"{speed:,.0f}", note="median of training")
        )
    return found


def _probe_numbers(run: Run) -> list[KeyNumber]:
    rows = comparison_rows(run)
    found = []
    for method, name in METHODS.items():
        model = headline(rows, method, "model")
        if model is None:
            continue
        others = [
            f"{subject} {row['accuracy']:.1%}"
            for subject in ("random twin", "raw pixels")
            if (row := headline(rows, method, subject))
        ]
        found.append(
            KeyNumber(label=name, value=f"{model['accuracy']:.1%}", note=", ".join(others))
        )
    return found


def _test_number(run: Run) -> list[KeyNumber]:
    found = run.evaluation or {}
    if not is_number(found.get("accuracy")):
        return []
    chance = found.get("chance")
    note = f"most frequent class {chance:.1%}" if is_number(chance) else ""
    return [KeyNumber(label="test accuracy", value=f"{found['accuracy']:.1%}", note=note)]


def _facts(run: Run) -> Table:
    kind = "Masked pre-training" if not run.is_classifier else "Fine-tuning"
    if run.is_classifier and not run.setting("weights"):
        kind = "Supervised training from scratch"
    times = [r["time"] for r in run.records if is_number(r.get("time"))]
    rows: list[tuple[str, Any]] = [
        ("Kind", kind),
        ("Data", " ".join(str(run.data[key]) for key in ("source", "split") if run.data.get(key))),
        ("Validation images", _grouped(run.data.get("validation_images"))),
        ("Image size", _size(run)),
        ("Starts from", run.setting("weights") if run.is_classifier else None),
        ("Patches removed", _removed(run)),
        ("First record", moment(times[0]) if times else None),
        ("Last record", moment(times[-1]) if times else None),
        ("Last session", _session(run)),
        ("Made with", f"crate-mae {run.environment.get('crate_mae', '?')}"),
    ]
    unreadable = run.data.get("unreadable")
    if isinstance(unreadable, dict) and unreadable:
        rows.append(("Unreadable images", f"{len(unreadable):,}"))
    return Table(
        caption="What this run is",
        heads=["What", "Value"],
        rows=[[text_cell(name), text_cell(value)] for name, value in rows if value],
        sortable=False,
    )


def moment(seconds: float) -> str:
    """A time in seconds since 1970 as a date and time in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _session(run: Run) -> str | None:
    seconds = (run.summary or {}).get("seconds_of_last_session")
    return duration(seconds) if is_finite(seconds) else None


def _removed(run: Run) -> str | None:
    ratio, top = run.setting("masking.ratio"), run.setting("masking.ratio_max")
    if not is_number(ratio):
        return None
    to = f" to {top:.0%}" if is_number(top) else ""
    return f"{ratio:.0%}{to}, {run.setting('masking.kind')}"


def _size(run: Run) -> str | None:
    preprocess = run.data.get("preprocess")
    size = preprocess.get("size") if isinstance(preprocess, dict) else None
    if not isinstance(size, list) or len(size) != 2:
        return None
    return f"{size[0]} x {size[1]}, channels: {preprocess.get('channels')}"  # type: ignore[union-attr]


def _median(values: list[Any]) -> float | None:
    numbers = sorted(float(value) for value in values if is_finite(value))
    return numbers[len(numbers) // 2] if numbers else None


def _short(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def _grouped(value: Any) -> str | None:
    return number_cell(value, ",d").text if isinstance(value, int) else None


def _counted(value: Any, what: str) -> str:
    return f"{value:,} {what}" if isinstance(value, int) else f"an unknown number of {what}"


Verdict = tuple[str, bool | None]
"""A sentence; True where the model is clearly better, False where it is clearly worse."""


def verdicts(run: Run) -> list[Block]:
    """Sentences that set the model beside what needs no learning: better, worse, undecided."""
    found: list[Verdict] = []
    if not run.is_classifier:
        found += _completion(run)
        rows = comparison_rows(run)
        for method in METHODS:
            found += beside_baselines(rows, method)
    elif run.evaluation is not None:
        accuracy, chance = run.evaluation.get("accuracy"), run.evaluation.get("chance")
        if is_finite(accuracy) and is_finite(chance):
            how = "above" if accuracy > chance else "not above"
            found.append(
                (
                    f"Test accuracy {accuracy:.1%}, {how} always answering the most frequent class"
                    f" ({chance:.1%}).",
                    accuracy > chance,
                )
            )
    kinds: tuple[tuple[str, Tone, bool | None], ...] = (
        ("Better than the baseline", "good", True),
        ("Worse than the baseline", "bad", False),
        ("No clear difference, or not a fair match", "plain", None),
    )
    return [
        Items(title=title, sentences=sentences, tone=tone)
        for title, tone, wanted in kinds
        if (sentences := [text for text, better in found if better is wanted])
    ]


def _completion(run: Run) -> list[Verdict]:
    loss = run.last_value("val/loss")
    found: list[Verdict] = []
    colour, mean = run.last_value("val/mean_colour"), run.last_value("val/patch_mean")
    if loss is None:
        return found
    if colour:
        share = 1 - loss / colour
        how = "below" if share >= 0 else "above"
        found.append(
            (
                f"Completion: its error on removed patches is {abs(share):.0%} {how} that of the"
                f" best single colour ({loss:.4g} against {colour:.4g}).",
                share > 0,
            )
        )
    if mean and not run.setting("model.norm_pix_loss"):
        better = loss < mean
        found.append(
            (
                f"Completion: {'below' if better else 'above'} the error of knowing each removed"
                f" patch's true mean, {mean:.4g}, which no model is told"
                f"{': it predicts structure within patches' if better else ''}.",
                True if better else None,
            )
        )
    return found


def beside_baselines(rows: Sequence[dict[str, Any]], method: str) -> list[Verdict]:
    """Sentences that set the model beside its baselines; True where it is clearly better, False
    where it is clearly worse, None where the intervals overlap."""
    model = headline(rows, method, "model")
    sentences = []
    for other in ("random twin", "raw pixels"):
        base = headline(rows, method, other)
        if model is None or base is None:
            continue
        gap = 100 * (model["accuracy"] - base["accuracy"])
        better = _clearly_better(model, base)
        how = "above" if gap >= 0 else "below"
        sure = ", but the intervals overlap: no clear difference" if better is None else ""
        sentences.append(
            (
                f"{METHODS.get(method, method).capitalize()}: {model['accuracy']:.1%},"
                f" {abs(gap):.1f} points {how} {other} ({base['accuracy']:.1%}){sure}.",
                better,
            )
        )
    return sentences


def _clearly_better(model: dict[str, Any], base: dict[str, Any]) -> bool | None:
    mine, other = interval(model), interval(base)
    if mine is None or other is None or (mine[0] <= other[1] and other[0] <= mine[1]):
        return None
    return bool(mine[0] > other[1])
