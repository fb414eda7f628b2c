"""The parts that a page is made of, as plain values; every text in them is escaped later."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from crate_mae.runs.contents import is_finite

NOTHING = "\u2013"

Tone = Literal["plain", "good", "bad", "note"]


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """A few sentences."""

    text: str
    tone: Tone = "plain"
    kind: str = field(default="paragraph", init=False)


@dataclass(frozen=True, kw_only=True)
class Items:
    """Sentences in a list under a short heading."""

    title: str
    sentences: Sequence[str]
    tone: Tone = "plain"
    kind: str = field(default="items", init=False)


@dataclass(frozen=True, kw_only=True)
class KeyNumber:
    """One number of the summary."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True)
class KeyNumbers:
    """The numbers that a glance should find."""

    numbers: Sequence[KeyNumber]
    kind: str = field(default="numbers", init=False)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A number and its interval on a scale from 0 to 1, drawn behind a table's cell."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands in a table, and the number by which its column is sorted, if it is one."""

    text: str
    value: float | None = None
    bar: Bar | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first cell of each row names the row."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    sortable: bool = True
    kind: str = field(default="table", init=False)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture as a data URI, its caption, and its content in words."""

    uri: str
    alt: str
    caption: str
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines to copy, and what they are."""

    label: str
    text: str
    kind: str = field(default="code", init=False)


@dataclass(frozen=True, kw_only=True)
class Details:
    """Blocks that are shown on demand."""

    title: str
    blocks: Sequence["Block"]
    kind: str = field(default="details", init=False)


Block = Paragraph | Items | KeyNumbers | Table | Figure | Code | Details


@dataclass(frozen=True, kw_only=True)
class Section:
    """A headed part of the page."""

    id: str
    title: str
    blocks: Sequence[Block]


def text_cell(value: Any) -> Cell:
    """A cell of words, or a dash for nothing."""
    return Cell(text=NOTHING if value is None or value == "" else str(value))


def number_cell(value: Any, form: str = ".4g", *, spread: Any = None) -> Cell:
    """A cell of a number in a format, with its spread; other values as they are.

    A format of whole numbers is used for whole numbers only.
    """
    if not is_finite(value):
        return text_cell(value)
    text = format(value, form if isinstance(value, int) or not form.endswith("d") else ".4g")
    if is_finite(spread):
        text += f" ± {spread:.2g}"
    return Cell(text=text, value=float(value))


def percent_cell(value: Any, *, bar: Bar | None = None) -> Cell:
    """A cell of a share in per cent."""
    if not is_finite(value):
        return text_cell(value)
    return Cell(text=f"{value:.2%}", value=float(value), bar=bar)
