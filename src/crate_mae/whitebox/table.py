"""The table of a white-box analysis: one row for each measured number, naming what was measured."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

from crate_mae.common.files import write_atomically
from crate_mae.models.layers import Side

JSON, CSV = "layers.json", "layers.csv"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured number of one layer of one model."""

    model: str
    """Which of the compared models."""
    side: Side
    layer: int
    """Counted from 0; the features after the last encoder layer have the number of layers."""
    point: str
    """Where in the layer: "input"; "compress", "sparsify" (encoder); "expand", "decompress"
    (decoder); "features" (after the final encoder norm); "weights" (no images needed)."""
    measure: str
    head: int | None = None
    """Subspace, where a number is told for each; None otherwise."""
    mean: float
    """Mean over images, or the number itself where there is one only."""
    std: float | None = None
    """Unbiased standard deviation over images; None where there is nothing to spread."""
    images: int
    """How many images it was measured on; 0 for weights."""
    tensor: str
    """The tensor that was measured, in the symbols of docs/model.md."""
    eps_squared: float | None = None
    normalized: bool | None = None
    """Whether each token (each w_k) was scaled to length 1 first."""
    precision: str
    """Of the layers; measures are taken in float64."""


def write_table(
    rows: Sequence[Measurement], facts: dict[str, Any], folder: Path
) -> tuple[Path, Path]:
    """The JSON and the CSV file that now hold the rows; the JSON holds the facts as well."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Measurement)])
    writer.writeheader()
    plain = [asdict(row) for row in rows]
    writer.writerows(plain)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CSV, text.getvalue())
    write_atomically(folder / JSON, json.dumps({"facts": facts, "rows": plain}, indent=1) + "\n")
    return folder / JSON, folder / CSV


def read_table(folder: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """The rows and facts of an analysis folder.

    Raises FileNotFoundError when it holds no analysis and ValueError for a damaged one.
    """
    path = folder / JSON
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no analysis: {JSON} is missing")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return [Measurement(**row) for row in values["rows"]], dict(values["facts"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no analysis of ours: {error}") from error


def curve(
    rows: Iterable[Measurement], measure: str, *, model: str, side: Side, point: str
) -> list[Measurement]:
    """The rows of one measure at one point by layer, without those of single heads."""
    wanted = (measure, model, side, point)
    found = [
        row
        for row in rows
        if (row.measure, row.model, row.side, row.point) == wanted and row.head is None
    ]
    return sorted(found, key=lambda row: row.layer)


def models_of(rows: Iterable[Measurement]) -> list[str]:
    """Names of the compared models, in the order of the table."""
    return list(dict.fromkeys(row.model for row in rows))
