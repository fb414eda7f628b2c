"""The model beside what needs no learning, in sentences: better, worse, or not told apart."""

from collections.abc import Sequence
from typing import Any

from crate_mae.report.blocks import Block, Items, Tone, is_finite
from crate_mae.report.results import METHODS, comparison_rows, headline, interval
from crate_mae.report.run import Run

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
