"""The top of the page: what this run is, and its numbers in one glance."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from crate_mae.common.text import count_text, duration
from crate_mae.common.values import is_finite, is_number
from crate_mae.evaluation.answers import (
    Answer,
    Place,
    classifier_answers,
    completion_answers,
    feature_answers,
    mask_answers,
    steps_answers,
)
from crate_mae.evaluation.comparison import BASELINES, LONG_NAMES, headline
from crate_mae.report.blocks import KeyNumber, Table, named_values, number_cell, text_cell
from crate_mae.runs.contents import STALE, Run, comparison_rows
from crate_mae.runs.run_images import known_masking, python_source, reading_options, run_reading

Verdict = tuple[str, bool | None]
"""A sentence; True where the model is clearly better, False where it is clearly worse."""


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


def summary_data(run: Run) -> dict[str, Any]:
    """Status, whether steps are few, key numbers, verdicts, facts, and what could not be shown."""
    sentence, finished = status(run)
    return {
        "status": sentence,
        "finished": finished,
        "numbers": key_numbers(run),
        "few_steps": next((a.text for a in run_answers(run) if a.rule == "few steps"), None),
        "verdicts": verdicts(run),
        "facts": _facts(run),
        "problems": run.problems,
    }


def key_numbers(run: Run) -> list[KeyNumber]:
    """The numbers that a glance should find; those that are not there are left out."""
    numbers = []
    loss, colour = run.last_value("val/loss"), run.last_value("val/mean_colour")
    if loss is not None:
        note = "classification, held-out images; lower is better"
        if run.is_segmenter:
            note = "classes of pixels, held-out images; lower is better"
        if run.is_simdino:
            note = "of SimDINO, held-out images; lower is better, and it is below 0"
        if run.is_masked:
            note = "on removed patches of held-out images; lower is better"
            note += f", one colour gets {colour:.4g}" if colour is not None else ""
        numbers.append(KeyNumber(label="validation loss", value=f"{loss:.4g}", note=note))
    if run.is_classifier:
        numbers += _test_number(run)
    else:
        numbers += _probe_numbers(run)
    if run.weights is not None:
        count = run.weights["parameters"]
        numbers.append(
            KeyNumber(
                label="parameters", value=count_text(count), note=f"{count:,} trained numbers"
            )
        )
    if isinstance(images := run.data.get("images"), int):
        epochs = run.setting("optim.epochs")
        note = f"seen up to {epochs:,} times each" if isinstance(epochs, int) else ""
        numbers.append(KeyNumber(label="training images", value=f"{images:,}", note=note))
    speed = _median([record.get("speed/images_per_s") for record in run.records])
    if speed is not None:
        numbers.append(
            KeyNumber(label="images per second", value=f"{speed:,.0f}", note="median of training")
        )
    return numbers


def _probe_numbers(run: Run) -> list[KeyNumber]:
    rows = [] if _is_stale(run) else comparison_rows(run)
    numbers = []
    for method, name in LONG_NAMES.items():
        model = headline(rows, method, "model")
        if model is None:
            continue
        others = [
            f"{subject} {row['accuracy']:.1%}"
            for subject in BASELINES
            if (row := headline(rows, method, subject))
        ]
        numbers.append(
            KeyNumber(label=name, value=f"{model['accuracy']:.1%}", note=", ".join(others))
        )
    return numbers


def _is_stale(run: Run) -> bool:
    """Whether there are accuracies, and they are not of the weights that lie there now."""
    return run.evaluation is not None and run.stale(run.evaluation)


def _test_number(run: Run) -> list[KeyNumber]:
    test = {} if _is_stale(run) else run.evaluation or {}
    if run.is_segmenter and is_number(test.get("mean_iou")):
        trivial = test.get("majority_mean_iou")
        note = f"most frequent class {trivial:.4f}" if is_number(trivial) else ""
        return [KeyNumber(label="test mean IoU", value=f"{test['mean_iou']:.4f}", note=note)]
    if not is_number(test.get("accuracy")):
        return []
    chance = test.get("chance")
    note = f"most frequent class {chance:.1%}" if is_number(chance) else ""
    return [KeyNumber(label="test accuracy", value=f"{test['accuracy']:.1%}", note=note)]


def _facts(run: Run) -> Table:
    kind = "Masked pre-training" if not run.is_classifier else "Fine-tuning"
    if run.is_simdino:
        kind = "SimDINO pre-training"
    if run.is_classifier and not run.setting("weights"):
        kind = "Supervised training from scratch"
    if run.is_segmenter:
        kind += ", classes of pixels"
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
    return named_values("What this run is", [(name, text_cell(value)) for name, value in rows])


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
    masking = known_masking(run)
    if masking is None:
        return None
    words = f"{masking.ratio:.0%}"
    if masking.ratio_max is not None:
        words += f" to {masking.ratio_max:.0%}, drawn for each {masking.ratio_per}"
    squares = f"squares of {masking.square} x {masking.square} patches"
    return f"{words}, {masking.kind}{f', {squares}' if masking.square > 1 else ''}"


def _size(run: Run) -> str | None:
    preprocess = run.data.get("preprocess")
    size = preprocess.get("size") if isinstance(preprocess, dict) else None
    if not isinstance(size, list) or len(size) != 2:
        return None
    return f"{size[0]} x {size[1]}, channels: {preprocess.get('channels')}"  # type: ignore[union-attr]


def _median(values: list[Any]) -> float | None:
    numbers = sorted(float(value) for value in values if is_finite(value))
    return numbers[len(numbers) // 2] if numbers else None


def _grouped(value: Any) -> str | None:
    return number_cell(value, ",d").text if isinstance(value, int) else None


def _counted(value: Any, what: str) -> str:
    return f"{value:,} {what}" if isinstance(value, int) else f"an unknown number of {what}"


def verdicts(run: Run) -> list[Verdict]:
    """Sentences that set the model beside what needs no learning: better, worse, undecided.

    That a run is very short stands above them: it qualifies all that follows.
    """
    return [(a.text, a.good) for a in run_answers(run) if a.rule != "few steps"]


@dataclass(frozen=True, kw_only=True)
class _RunPlace(Place):
    """What the next commands are about, with what they need to read images as the run does."""

    options: Sequence[str] = ()
    """For verbs that measure."""
    settings: Sequence[str] = ()
    """The same for verbs that train."""

    def command(self, *words: str) -> str:
        """A command line, quoted as a shell needs it."""
        trains = words[0] in ("plan", "pretrain", "finetune")
        return super().command(*words, *(self.settings if trains else self.options))


def _place(run: Run) -> Place:
    weights, address = str(run.folder), run.setting("data.source")
    if not isinstance(address, str) or python_source(run) is not None:
        return Place(weights=weights)  # the settings name other images than the run had
    reading = run_reading(run)
    settings = []
    for key, value in (("image_key", reading.image_key), ("label_key", reading.label_key)):
        settings += [] if value is None else [f"--data.{key}", str(value)]
    settings += ["--data.follow_links", "true"] if reading.follow_links else []
    return _RunPlace(
        weights=weights, address=address, options=reading_options(run), settings=settings
    )


def _stale_answer(run: Run) -> Answer:
    """That there are accuracies of other weights, and what to do."""
    folder, place = str(run.folder), Place()
    if run.is_classifier:
        text = f"The test was {STALE}"
        resume = place.command("finetune", "--resume", folder)
        again = f"move evaluation.json out of the folder, and {resume} tests these"
    else:
        text = f"Linear probe and nearest neighbours were {STALE}"
        again = f"{place.command('report', folder)} measures them again"
    # No verb opens a data set that was given in Python.
    text += "." if python_source(run) is not None else f": {again}."
    return Answer(rule="not measured", text=text, good=False)


def run_answers(run: Run) -> list[Answer]:
    """What the numbers of a run say, by the rules that every verb shares.

    Nothing is said of accuracies that were measured on other weights than lie in the folder now,
    but that they were.
    """
    steps = planned_steps(run)
    few = [] if steps is None else steps_answers(steps, supervised=run.is_classifier)
    stale = _is_stale(run)
    if not run.is_classifier:
        completion = completion_answers(
            run.last_value("val/loss"),
            one_colour=run.last_value("val/mean_colour"),
            patch_mean=run.last_value("val/patch_mean"),
            normalised=bool(run.setting("model.norm_pix_loss")),
        )
        if stale:
            return [*few, *completion, *([_stale_answer(run)] if comparison_rows(run) else [])]
        return [*few, *completion, *feature_answers(comparison_rows(run), _place(run))]
    if stale:
        return [*few, _stale_answer(run)]
    if run.is_segmenter:
        return [*few, *mask_answers(run.evaluation or {})]
    smoothing = run.setting("optim.label_smoothing")
    return [
        *few,
        *classifier_answers(
            run.evaluation or {},
            train_loss=run.last_value("train/loss"),
            smoothing=float(smoothing) if is_finite(smoothing) else 0.0,
            mixed=any(run.setting(f"data.augment.{way}") for way in ("mixup", "cutmix")),
        ),
    ]
