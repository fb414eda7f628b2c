"""Results of the targets as pages, and the table of docs/speed.md made from them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crate_mae.common.files import write_atomically
from speed.result_text import result_text

PAGE, PLACE = "docs/speed.md", "targets"
"""The page that holds the table, between <!-- targets --> and <!-- /targets -->."""


def result_page(result: dict[str, Any]) -> str:
    """A result as Markdown: what was wanted and measured, then every part's own tables."""
    lines = ["# Speed targets", "", _where(result), ""]
    if result["quick"]:
        lines += ["A quick try on tiny sizes: no evidence of anything.", ""]
    lines += [*targets_table(result["targets"]), ""]
    for name, part in result["parts"].items():
        lines += [f"## {name}", "", "```text", result_text(part), "```", ""]
    return "\n".join(lines)


def targets_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table: target, wanted, measured (median), quartiles, met."""
    lines = ["| target | wanted | measured | quartiles | met |", rule_below(5)]
    for row in rows:
        sign = "at most" if row["at_most"] else "at least"
        value = "not measured" if row["measured"] is None else f"{row['measured']:.2f}"
        spread = f"{row['lower']:.2f} to {row['upper']:.2f}" if "lower" in row else ""
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        lines.append(f"| {row['target']} | {sign} {row['wanted']:g} | {value} | {spread} | {met} |")
    return lines


def rule_below(columns: int) -> str:
    """The line below the head of a Markdown table, as `make format` lays it out."""
    return f"|{' -- |' * columns}"


def fill_page(path: Path, root: Path) -> str:
    """What was done, in a line: the table of docs/speed.md below `root` holds the result at `path`.

    A page without the pair of comments is left as it is, and so said. Raises ValueError where only
    one of the pair stands.
    """
    result = json.loads(path.read_text(encoding="utf-8"))
    document = root / PAGE
    record = path.with_suffix(".md").name
    source = f"[All numbers](../benchmarks/results/{record})."
    content = "\n".join([*targets_table(result["targets"]), "", _where(result), "", source])
    filled = between_markers(document.read_text(encoding="utf-8"), PLACE, content, PAGE)
    if filled is None:
        return f"{PAGE} has no place for the table: <!-- {PLACE} --> <!-- /{PLACE} -->"
    write_atomically(document, filled)
    return f"{PAGE} holds {path.name}"


def fill_between(page: Path, place: str, content: str) -> None:
    """Write the content between the markers of a page.

    Raises ValueError where they are missing, not whole or not once.
    """
    filled = between_markers(page.read_text("utf-8"), place, content, str(page))
    if filled is None:
        raise ValueError(f"{page} lacks <!-- {place} --> and <!-- /{place} -->")
    write_atomically(page, filled)


def between_markers(text: str, place: str, content: str, name: str) -> str | None:
    """The text with new content between a pair of comments; None where there is no pair.

    Raises ValueError, with the `name` of the document, where the pair is not whole or not once.
    """
    begin, end = f"<!-- {place} -->", f"<!-- /{place} -->"
    if begin not in text and end not in text:
        return None
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{name} needs {begin} and {end} once each, in this order")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def _where(result: dict[str, Any]) -> str:
    facts = result["machine"]
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads,"
        f" {facts['memory_gib']} GiB, torch {facts['torch']}; {result['date'][:10]}."
    )
