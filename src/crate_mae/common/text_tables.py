"""Tables as text: cells under each other, and names with their values.

A library such as `tabulate` would be one more package to install for these few lines.
"""

import textwrap
from collections.abc import Collection, Iterable, Sequence

GAP = "  "


def aligned(
    rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), indent: str = ""
) -> list[str]:
    """Lines whose cells stand under each other, with two spaces between columns.

    `left` names the columns that begin at one place; the others, of numbers, end at one place.
    Raises ValueError for rows of different lengths.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            indent
            + GAP.join(
                cell.ljust(width) if column in left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in rows
    ]


def named_values(
    rows: Iterable[tuple[str, str]], *, indent: str = "", wrap: int | None = None
) -> list[str]:
    """A line for each (name, value), values under each other.

    With `wrap`, a value that would make its line longer goes on below its beginning.
    """
    pairs = list(rows)
    name_width = max((len(name) for name, _ in pairs), default=0)
    begin = len(indent) + name_width + len(GAP)
    folded: list[tuple[str, str]] = []
    for name, value in pairs:
        parts = [value] if wrap is None else textwrap.wrap(value, wrap - begin) or [""]
        folded += zip((name, *[""] * (len(parts) - 1)), parts, strict=True)
    return aligned(folded, left=(0, 1), indent=indent)
