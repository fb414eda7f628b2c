"""What the templates show beside their prose, as plain values; every text is escaped there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crate_mae.common import plain_tables
from crate_mae.common.plain_tables import Cell
from crate_mae.common.values import is_finite


@dataclass(frozen=True, kw_only=True)
class Section:
    """A headed part of the page: `id` names its macro in sections.html, `data` fills it."""

    id: str
    title: str
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class KeyNumber:
    """One number that a glance should find."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first cell of each row names the row; its notes are sentences."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    sortable: bool = True


def captioned(caption: str, table: plain_tables.Table) -> Table:
    """A table under its caption, what its marks mean among the notes."""
    marked = any(cell.best for row in table.rows for cell in row)
    notes = [*([f"bold: {table.best}"] if marked else []), *table.notes]
    sentences = [f"{note[:1].upper()}{note[1:]}." for note in notes]
    return Table(caption=caption, heads=table.heads, rows=table.rows, notes=sentences)


def named_values(caption: str, rows: Sequence[tuple[str, Cell]]) -> Table:
    """A table of what there is of names and values."""
    return Table(
        caption=caption,
        heads=["What", "Value"],
        rows=[[text_cell(name), cell] for name, cell in rows if cell.text],
        sortable=False,
    )


def text_cell(value: Any) -> Cell:
    """A cell of text, empty for None."""
    return Cell(text="" if value is None else str(value))


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


def percent_cell(value: Any, *, interval: tuple[float, float] | None = None) -> Cell:
    """A cell of a share in per cent, with the interval that is drawn beside it."""
    if not is_finite(value):
        return text_cell(value)
    return Cell(text=f"{value:.2%}", value=float(value), interval=interval)
