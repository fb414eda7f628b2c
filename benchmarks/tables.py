"""Results of the targets as pages, and the tables of the documents made from them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crate_mae.common.files import write_atomically
from speed.result_text import result_text

PLACES = {"docs/speed.md": "targets", "README.md": "speed"}
"""Which document holds which table, between <!-- NAME --> and <!-- /NAME -->."""
SHORT = (
    "base: step, times as fast as the reference arithmetic",
    "base: step, times as fast as ViT-MAE (published decoder)",
    "base: visible-only step, times as fast as ViT-MAE (published decoder)",
    "base: features, times as fast as the reference arithmetic",
    "base: features, times as fast as timm's ViT",
    "base: step, share of the limit",
    "base: peak memory of a step, over the reference's",
    "tiny, 32 px: step, times as fast as the reference arithmetic",
)
"""The targets that the short table of the README shows."""


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
    lines = ["| target | wanted | measured | quartiles | met |", "|---|---|---|---|---|"]
    for row in rows:
        sign = "at most" if row["at_most"] else "at least"
        value = "not measured" if row["measured"] is None else f"{row['measured']:.2f}"
        spread = f"{row['lower']:.2f} to {row['upper']:.2f}" if "lower" in row else ""
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        lines.append(f"| {row['target']} | {sign} {row['wanted']:g} | {value} | {spread} | {met} |")
    return lines


def speed_table(rows: Sequence[dict[str, Any]], source: str) -> list[str]:
    """The lines of a short Markdown table: what of `SHORT` was measured, the source as its head."""
    lines = [f"| {source} | measured |", "|---|---|"]
    return lines + [
        f"| {row['target']} | {row['measured']:.2f} |" for row in rows if row["target"] in SHORT
    ]


def fill_documents(path: Path, root: Path) -> list[str]:
    """What was done, a line a document below `root`: their tables now hold the result at `path`.

    A document without the pair of comments is left as it is, and so said. Raises ValueError where
    only one of the pair stands.
    """
    result = json.loads(path.read_text(encoding="utf-8"))
    told = []
    for name, place in PLACES.items():
        document = root / name
        text = document.read_text(encoding="utf-8")
        up = "../" * name.count("/")
        page = path.with_suffix(".md").name
        source = f"{_where(result)} All numbers: [{page}]({up}benchmarks/results/{page})."
        if place == "targets":
            lines = [*targets_table(result["targets"]), "", source]
        else:
            lines = speed_table(result["targets"], source)
        filled = between_markers(text, place, "\n".join(lines), name)
        if filled is None:
            told.append(f"{name} has no place for the table: <!-- {place} --> <!-- /{place} -->")
            continue
        write_atomically(document, filled)
        told.append(f"{name} holds {path.name}")
    return told


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
    return f"{before}{begin}\n{content}\n{end}{after}"


def _where(result: dict[str, Any]) -> str:
    facts = result["machine"]
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads,"
        f" {facts['memory_gib']} GiB, torch {facts['torch']}; {result['date'][:10]}."
    )
