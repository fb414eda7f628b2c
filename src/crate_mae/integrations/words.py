"""Values as Markdown that cannot break a card."""

import re
from typing import Any


def section(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The named values below a key; none for anything else that stands there."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def table_of(rows: list[tuple[str, str]]) -> str:
    """A Markdown table of names and values; a value may hold Markdown, but no HTML."""
    lines = [f"| {what} | {in_cell(value)} |" for what, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def counted(number: Any, what: str) -> str:
    """Such as "1 image" and "2,000 images"; "" for what is no whole number."""
    if not isinstance(number, int) or isinstance(number, bool):
        return ""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def in_cell(text: str) -> str:
    """Markdown on one line that cannot leave its cell, and no HTML."""
    escaped = " ".join(text.split()).replace("|", r"\|")
    return escaped.replace("<", "&lt;").replace(">", "&gt;")


def plain(value: Any) -> str:
    """A value from a file on one line, with nothing in it that Markdown or HTML would act on."""
    text = re.sub(r"([\\`*_\[\]])", r"\\\1", str("" if value is None else value))
    return in_cell(text)
