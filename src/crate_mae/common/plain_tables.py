"""A table as plain data: laid out once, then printed as text, HTML or Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from crate_mae.common.text_tables import aligned


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands at one place of a table."""

    text: str
    value: float | None = None
    """The number that the text shows, by which a column can be sorted; None for text."""
    interval: tuple[float, float] | None = None
    """The ends of a share's 95 % interval, where it can be drawn."""
    best: bool = False
    """Whether it is marked."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Heads and rows; what the mark of the best cells means; sentences to stand below."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    best: str = ""
    notes: Sequence[str] = ()


def as_text(table: Table) -> str:
    """The table as aligned text: text begins and numbers end at one place, * marks the best."""
    columns = list(zip(*table.rows, strict=True))
    marked = [any(cell.best for cell in column) for column in columns]
    lines = [
        [
            f"{cell.text}{('*' if cell.best else ' ') if mark else ''}"
            for cell, mark in zip(row, marked, strict=True)
        ]
        for row in table.rows
    ]
    heads = [f"{head}{' ' if mark else ''}" for head, mark in zip(table.heads, marked, strict=True)]
    texts = [i for i, column in enumerate(columns) if all(cell.value is None for cell in column)]
    legend = [f"* {table.best}"] if any(marked) else []
    return "\n".join([*aligned([heads, *lines], left=texts), *legend, *table.notes])
