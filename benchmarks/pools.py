"""What wider pools of tokens and whitening tell: one table of several files of probe and kNN.

python benchmarks/pools.py NAME=FILE ... --json FILE --docs docs/results-appendix.md

Each FILE is what `crate-mae probe` or `knn` wrote with --json, of a model that is called NAME;
several files may have the same name. A row is a pool of a model, or of a baseline beside it. With
--docs the table also goes between the markers of a Markdown page; --record takes it from an
earlier FILE.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crate_mae.cli.options import new_file
from crate_mae.common.files import write_atomically
from records import day_and_machine, named_path, parser_of
from tables import fill_between, rule_below

PLACE = "pools"
KEPT = (
    "method", "pool", "layer", "dim", "parameters", "shots", "num_train", "num_test", "accuracy",
    "interval", "std", "whitened", "k", "temperature", "penalty", "on_edge",
)  # fmt: skip
"""What is kept of a row of `probe` or `knn`, where it has it."""
COLUMNS = {"linear probe": ("probe", None), "kNN": ("knn", False), "kNN, whitened": ("knn", True)}
"""Method, and whether features were whitened, by the head of a column."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if bool(given.files) == (given.record is not None):
        parser.error("name files as NAME=FILE, or --record an earlier file")
    if given.record is not None:
        record = json.loads(given.record.read_text("utf-8"))
    else:
        target = new_file(given.json)
        record = recorded([named_path(word, "files as NAME=FILE") for word in given.files])
        if target is not None:
            write_atomically(target, json.dumps(record, indent=1) + "\n")
    lines = table_lines(record)
    print("\n".join(lines))
    if given.docs is not None:
        fill_between(given.docs, given.place, "\n".join(lines))
    return 0


def recorded(files: Sequence[tuple[str, Path]]) -> dict[str, Any]:
    """The record of named files: the day, the machine, and every row without its details.

    Raises ValueError for a file that was not finished, and for two rows of one cell.
    """
    rows: list[dict[str, Any]] = []
    for name, path in files:
        found = json.loads(path.read_text("utf-8"))
        if not found.get("complete"):
            raise ValueError(f"{path} was not finished: run its command again")
        for row in found["rows"]:
            own = row["subject"] == "model"
            subject = f"`{name}`" if own else f"{row['subject']} of `{name}`"
            subject = subject if row["pool"] != "pixels" else row["subject"]
            kept = {key: row[key] for key in KEPT if key in row}
            rows.append({"subject": subject, "sha256": found["sha256"] if own else None, **kept})
    cells = [_cell(row) for row in rows]
    twice = [cell for cell in cells if cells.count(cell) > 1]
    if twice:
        raise ValueError(f"{twice[0]} was measured twice: name one file of it")
    return {**day_and_machine(), "rows": rows}


def table_lines(record: Mapping[str, Any]) -> list[str]:
    """A Markdown table of a record: a row for every pool of every subject, as they came."""
    lines = [f"| features of | pool | width | {' | '.join(COLUMNS)} |", rule_below(6)]
    found = {_cell(row): row for row in record["rows"]}
    for subject, pool in dict.fromkeys((row["subject"], row["pool"]) for row in record["rows"]):
        own = {head: found.get((subject, pool, *column)) for head, column in COLUMNS.items()}
        widths = {row["dim"] for row in own.values() if row is not None}
        cells = ["" if row is None else f"{100 * row['accuracy']:.1f} %" for row in own.values()]
        (width,) = widths
        called = "" if pool == "pixels" else f"`{pool}`"
        lines.append(f"| {subject} | {called} | {width:,} | {' | '.join(cells)} |")
    return lines


def _cell(row: Mapping[str, Any]) -> tuple[str, str, str, bool | None]:
    return row["subject"], row["pool"], row["method"], row.get("whitened")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("files", nargs="*", metavar="NAME=FILE")
    parser.add_argument("--json", type=Path, help="also as JSON (new file)")
    parser.add_argument("--record", type=Path, help="an earlier JSON file in place of others")
    parser.add_argument("--docs", type=Path, help="page that takes the table")
    parser.add_argument("--place", default=PLACE, help=f"name of its markers ({PLACE})")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
