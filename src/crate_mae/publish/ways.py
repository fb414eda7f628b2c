"""How a published result was had, where that is not the usual way; and how a training masked.

Values come from files of others: what is missing or of another kind is passed over.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crate_mae.batches.config import Masking
from crate_mae.common.values import is_count, is_finite
from crate_mae.evaluation.comparison import method_name

LONGEST_NAME = 40
"""Characters of a name from a file that a metric's name may hold."""

NORMALISED = {"batch_norm": "batch norm", "none": "not standardised"}
"""What a probe may do to features in place of standardising them."""

Row = Mapping[str, Any]


def unusual(row: Row, size: tuple[int, int]) -> list[str]:
    """What sets a row apart from the plain measure, in words; nothing for the plain one.

    Plain are all labels, images of the model's own `size`, and the mean of the patch tokens after
    the last layer, not whitened, by the exact solver.
    """
    pool, layer, shots = row.get("pool"), row.get("layer"), row.get("shots")
    return [
        *([] if pool in (None, "mean") else [f"pool {_name(pool)}"]),
        *([] if layer is None else [f"layer {_name(layer)}"]),
        *_whitened(row),
        *_fitted(row),
        *([f"{shots:,} of every class"] if is_count(shots) else []),
        *_sized(row, size),
    ]


def plainest(rows: Iterable[Row], method: str, subject: str, size: tuple[int, int]) -> Row | None:
    """The first plain row of a method and a subject, else their first: never the best one.

    The best of several would be picked by test.
    """
    found = [row for row in rows if (row.get("method"), row.get("subject")) == (method, subject)]
    return next((row for row in found if not unusual(row, size)), found[0] if found else None)


def told(row: Row, size: tuple[int, int]) -> dict[str, Any]:
    """The row with what no column of a comparison says put beside its subject and its method."""
    subject = " ".join([str(row.get("subject")), *_sized(row, size)])
    method = ", ".join([method_name(row), *_fitted(row)])
    plain = method == method_name(row)
    return {**row, "subject": subject, "method": row.get("method") if plain else method}


def masking_text(masking: Mapping[str, Any]) -> str:
    """Which patches were removed, such as "75 %, random"; "" for settings that are none."""
    names = Masking.__dataclass_fields__
    low, high = masking.get("ratio"), masking.get("ratio_max")
    shares = [low] if high is None else [low, high]
    if not all(is_finite(share) and 0 <= share <= 1 for share in shares):
        return ""
    if not is_count(masking.get("square", 1)):
        return ""
    try:
        settings = Masking(**{key: value for key, value in masking.items() if key in names})
    except (ValueError, TypeError):
        return ""
    share = f"{100 * settings.ratio:.3g} %"
    if settings.ratio_max is not None:
        share += f" to {100 * settings.ratio_max:.3g} % (drawn for every {settings.ratio_per})"
    square = settings.square
    squares = f", squares of {square} x {square} patches" if square > 1 else ""
    return f"{share}, {settings.kind}{squares}"


def _whitened(row: Row) -> list[str]:
    """Whether features were whitened: with all seeds, with some of them, or with none."""
    runs = row.get("runs")
    results = [run for run in runs if isinstance(run, Mapping)] if isinstance(runs, list) else []
    answers = {_is_whitened(run) for run in results or [row]}
    return ["whitened with some seeds"] if len(answers) > 1 else ["whitened"] * answers.pop()


def _is_whitened(run: Row) -> bool:
    strength = run.get("whitening")
    return run.get("whitened") is True or (is_finite(strength) and strength > 0)


def _fitted(row: Row) -> list[str]:
    """How a probe was fitted, where it was not by the exact solver to standardised features."""
    epochs = row.get("epochs")
    passes = f", {epochs:,} epochs" if is_count(epochs) else ""
    return [
        *([f"SGD{passes}"] if row.get("solver") == "sgd" else []),
        *(words for value, words in NORMALISED.items() if row.get("normalise") == value),
    ]


def _sized(row: Row, size: tuple[int, int]) -> list[str]:
    """The size of the images, where it is not the model's own."""
    found = row.get("image_size")
    if not isinstance(found, Sequence) or len(found) != 2 or not all(map(is_count, found)):
        return []
    return [] if tuple(found) == size else [f"at {found[0]} x {found[1]} pixels"]


def _name(value: Any) -> str:
    return " ".join(str(value).split())[:LONGEST_NAME]
