"""What the experiment on known subspaces found, as files and as text."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crate_mae.environment import environment
from crate_mae.files import replacing, write_atomically
from crate_mae.whitebox.denoising_study import MEASURES, METHODS, Setting


def write_study(
    rows: Sequence[dict[str, Any]], folder: Path, *, parameters: Mapping[str, Any]
) -> tuple[Path, Path]:
    """The paths of `theory.csv` and `theory.json`; both hold every row.

    The JSON also holds the parameters, what methods and measures mean, and the versions used.
    """
    table, record = folder / "theory.csv", folder / "theory.json"
    with replacing(table) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    facts = environment()
    versions = {key: facts[key] for key in ("crate_mae", "git", "python", "torch", "platform")}
    content = {
        "parameters": dict(parameters),
        "methods": METHODS,
        "measures": MEASURES,
        "versions": versions,
        "rows": list(rows),
    }
    write_atomically(record, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return table, record


def study_table(rows: Sequence[dict[str, Any]]) -> str:
    """The default setting as aligned text: one line a method, the measures that tell most."""
    shown = ("alignment", "turning", "error", "best_error", "outside", "toward", "rate")
    base = asdict(Setting())
    cells = {
        (row["method"], row["measure"]): row["mean"]
        for row in rows
        if all(row[name] == value for name, value in base.items())
    }
    head = f"{'':<16}" + "".join(f"{name:>12}" for name in shown)
    lines = [
        f"{method:<16}" + "".join(f"{cells[method, name]:>12.3f}" for name in shown)
        for method in METHODS
        if (method, shown[0]) in cells
    ]
    size = ", ".join(f"{name} {value:g}" for name, value in base.items() if value is not None)
    return "\n".join([size, head, *lines])
