"""Labels as people store them (numbers, words, truth values, dictionaries, lists) to class numbers.

What is no class (fractions, several labels an image, records) gives no labels and the reason.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from crate_mae.common.hints import did_you_mean
from crate_mae.sources.base import LABEL_KEYS
from crate_mae.sources.found import Reading


@dataclass(frozen=True)
class Labels:
    """The labels of some images, or why there are none."""

    numbers: np.ndarray | None = None
    """(n,) int64, -1 where an image has none."""
    names: tuple[str, ...] | None = None
    """A name for every number; None where the numbers stand for themselves."""
    why_none: str | None = None


class NoClassError(ValueError):
    """A value that is no class."""


def class_labels(values: Iterable[object], names: Sequence[str] | None, where: str) -> Labels:
    """Labels of values as they are stored; `where` names the place in the reason for none.

    Whole numbers stand for themselves (or for `names`), below 0 for no label; words and truth
    values become classes in the order of their names. None, NaN and empty words are no label; a
    list of one label is that label, and a vector of zeros and one 1 the place of the 1.
    """
    try:
        plain = [plain_label(value) for value in values]
    except NoClassError as error:
        return Labels(why_none=f"{where} holds {error}")
    kinds = {type(value) for value in plain if value is not None}
    if not kinds:
        return Labels(why_none=f"{where} is empty")
    if kinds == {int}:
        whole = [-1 if value is None or not isinstance(value, int) else value for value in plain]
        return whole_labels(np.array(whole), names, where)
    if kinds == {bool}:
        return Labels(
            np.array([-1 if value is None else int(bool(value)) for value in plain]),
            ("false", "true") if names is None else tuple(names),
        )
    words = [None if value is None else str(value) for value in plain]
    found = {word for word in words if word is not None}
    known = tuple(names) if names is not None and found <= set(names) else in_order(found)
    number = {word: index for index, word in enumerate(known)}
    return Labels(np.array([-1 if word is None else number[word] for word in words]), known)


def whole_labels(numbers: np.ndarray, names: Sequence[str] | None, where: str) -> Labels:
    """Labels of whole numbers (n,), each the number of a class, below 0 none."""
    if numbers.size and int(numbers.max()) < 0:
        return Labels(why_none=f"{where} holds no class number of 0 or more")
    return Labels(numbers, None if names is None else tuple(names))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names sorted: as numbers where all are whole numbers, else as text."""
    found = list(names)
    if all(name.isdecimal() and name.isascii() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def plain_label(value: object) -> int | bool | str | None:
    """A label as a number, a truth value or a word; None for none, NoClassError for the rest."""
    if isinstance(value, np.ndarray | list | tuple):
        return _of_several(list(value))
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float | Decimal):
        if value != value:
            return None
        if value % 1 == 0:
            return int(value)
        raise NoClassError(f"fractions such as {value:g}, which are no classes")
    if isinstance(value, dict):
        parts = ", ".join(map(str, list(value)[:5]))
        first = next(iter(value), "part")
        raise NoClassError(
            f"records of {parts}: name one of them, as in `--label-key NAME.{first}`"
        )
    raise NoClassError(f"values of type {type(value).__name__}, which are no classes")


def _of_several(values: list[object]) -> int | bool | str | None:
    if len(values) <= 1:
        return plain_label(values[0]) if values else None
    flat = [value.item() if isinstance(value, np.generic) else value for value in values]
    numbers = [value for value in flat if isinstance(value, int | float)]
    if len(numbers) == len(flat) and sorted(numbers) == [0] * (len(flat) - 1) + [1]:
        return numbers.index(1)
    raise NoClassError("several labels an image, of which a class is one")


def chosen_key(key: str, present: Iterable[str], address: str, what: str) -> str:
    """The key that was asked for, once it is there; ValueError with those that are."""
    names = list(present)
    if key not in names:
        hint, shown = did_you_mean(key, names), ", ".join(names[:20]) or "nothing"
        raise ValueError(f"{address} has no {what} {key!r}{hint}: it has {shown}")
    return key


def usual_label(names: Iterable[str]) -> str | None:
    """The name among these that labels usually have, in any case, or None."""
    lower = {re.sub(r"[\s-]+", "_", name.lower()): name for name in reversed(list(names))}
    return next((lower[key] for key in LABEL_KEYS if key in lower), None)


def other_labels(columns: Iterable[str], label: str | None, reading: Reading) -> tuple[str, ...]:
    """A note where further columns are called labels, beside the one that was taken unasked."""
    others = [name for name in columns if name != label and name.lower() in LABEL_KEYS]
    if label is None or reading.label_key is not None or not others:
        return ()
    return (f"labels are those of {label}; {', '.join(others)} may be, too (--label-key)",)


def label_column(
    columns: Sequence[str], marked: Sequence[str], reading: Reading, address: str
) -> tuple[str | None, str | None]:
    """(The column that holds the labels or None, why there is none).

    The one asked for, else the one that the file marks as classes, else one that is called a label.
    """
    if reading.unlabelled:
        return None, "labels are not wanted (label key none)"
    if reading.label_key is not None:
        return chosen_key(reading.label_key, columns, address, "column"), None
    if len(marked) == 1:
        return marked[0], None
    found = usual_label(marked) or usual_label(columns)
    if found is not None:
        return found, None
    if marked:
        return (
            None,
            f"several columns hold classes: {', '.join(marked)}; choose one with --label-key",
        )
    shown = ", ".join(columns[:10]) + (", ..." if len(columns) > 10 else "")
    if not columns:
        return None, "there is no column beside that of the images"
    return None, f"no column is called a label ({shown}); choose one with --label-key"
