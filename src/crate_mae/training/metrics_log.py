"""What a run writes down as it goes: the metrics files."""

import csv
import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from crate_mae.common.files import replacing, write_atomically, writing
from crate_mae.common.values import is_count

JSONL, CSV = "metrics.jsonl", "metrics.csv"


class MetricsLog(Logger):
    """`metrics.jsonl`, a line per record as it happens, and `metrics.csv`, made from it.

    A resumed run drops the lines after its checkpoint and goes on: each step stands there once.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._lines: list[str] = []

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.name

    @property
    def version(self) -> int:
        """Always 0: a run has one log."""
        return 0

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: the run folder holds the whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line with step, time and metrics."""
        record = {"step": step, "time": round(time(), 3), **metrics}
        self._lines.append(json.dumps(record))

    @rank_zero_only
    def save(self) -> None:
        """Write the waiting lines."""
        if not self._lines:
            return
        path = self.folder / JSONL
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in self._lines))
        validated = any('"val/' in line for line in self._lines)
        self._lines = []
        if validated:  # often enough for a CSV that is made anew each time
            write_csv(self.folder)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what waits and the CSV."""
        self.save()
        write_csv(self.folder)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop records of optimiser steps after `step`, and a half-written line."""
        records = read_metrics(self.folder)
        kept = [json.dumps(record) + "\n" for record in records if record["step"] < step]
        write_atomically(self.folder / JSONL, "".join(kept))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder's `metrics.jsonl`; a line that was cut or damaged is left out."""
    path = folder / JSONL
    records = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and is_count(record.get("step")):
            records.append(record)
    return records


def write_csv(folder: Path) -> None:
    """Write `metrics.csv`, one column for every metric of the run."""
    records = read_metrics(folder)
    columns = list(dict.fromkeys(key for record in records for key in record))
    with replacing(folder / CSV) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
