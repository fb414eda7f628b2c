"""What a run folder says, read as it is: a missing or damaged file is reported, never fatal."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crate_mae.common.files import user_path
from crate_mae.common.values import is_finite, is_number, named_values_at, text_of
from crate_mae.evaluation.backbones import describe_weights
from crate_mae.training.metrics_log import JSONL, read_metrics
from crate_mae.training.run_folder import (
    CONFIG,
    START,
    Start,
    load_config_values,
    recorded_start,
)
from crate_mae.weights.weights_folder import weights_hash
from crate_mae.whitebox.table import JSON as LAYERS
from crate_mae.whitebox.table import Measurement, read_table

EVALUATION, RECONSTRUCTION, ANALYSIS = "evaluation.json", "reconstruction.json", "analysis"
SHEET = "reconstruction.png"
STALE = "measured on other weights than those that lie in the run folder now"
NOT_EVALUATED = "probe and nearest neighbours"
"""What a problem calls what could not be measured of a run's features."""
MAX_BYTES = 256 << 20
MAX_TEXT = 256 << 10
"""Of a text that is shown whole; beyond that its end is left out, and the page says so."""


@dataclass(kw_only=True)
class Run:
    """A run folder's contents, as far as they can be read."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    commands: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    start: Start | None = None
    """The weights that it began with; None for random ones and for runs that did not record it."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Lines of metrics, each with a number as its "step"."""
    summary: dict[str, Any] | None = None
    """None while the run is not finished."""
    nonfinite: dict[str, Any] | None = None
    """What broke, when a number stopped being finite."""
    warnings: list[str] = field(default_factory=list)
    """Lines of the log at level WARNING or above."""
    weights: dict[str, Any] | None = None
    """Facts of `describe_weights`, or None when there are no whole weights."""
    evaluation: dict[str, Any] | None = None
    reconstruction: dict[str, Any] | None = None
    layers: list[Measurement] = field(default_factory=list)
    layer_facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What could not be read, or was left out and why, in sentences."""

    @property
    def is_classifier(self) -> bool:
        """Whether this is a supervised run, of images or of pixels: fine-tuned, or from scratch."""
        return not (self.is_masked or self.is_simdino)

    @property
    def is_segmenter(self) -> bool:
        """Whether it is a supervised run that learned classes of pixels, from masks."""
        return self.is_classifier and self.config.get("task") == "segment"

    @property
    def is_masked(self) -> bool:
        """Whether it learned to complete masked images."""
        return "masking" in self.config

    @property
    def is_simdino(self) -> bool:
        """Whether an encoder learned from views of images, by SimDINO."""
        return "simdino" in self.config

    @property
    def name(self) -> str:
        """The run's name, that of its folder if it has none."""
        return str(self.config.get("name") or self.folder.resolve().name)

    def setting(self, key: str) -> Any:
        """The value of a setting such as "optim.epochs", or None."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def looked_at(self) -> tuple[str | None, str | None]:
        """(address, split) of the images that are not trained on, as the settings name them.

        A split that they leave open is the one that the run found; None for a part held out.
        """
        kind = "test" if self.is_classifier else "val"
        source, split = self.setting(f"data.{kind}_source"), self.setting(f"data.{kind}_split")
        return source, self._found_split(source) if split is None else split

    def _found_split(self, source: str | None) -> str | None:
        """The split of the validation or test images that the run noted, where it is their own."""
        if not self.is_classifier:
            return text_of(self.data.get("validation_split")) if source else None
        found = text_of(named_values_at(self.data, "test").get("split"))
        if not source and found == self.data.get("split"):
            return None  # a part held out of the training images
        return found

    def number(self, key: str) -> float:
        """The value of a setting that is a number; ValueError when it is none."""
        value = self.setting(key)
        if not is_finite(value):
            raise ValueError(f"the run's setting {key} is no number but {value!r}")
        return float(value)

    def count(self, key: str) -> int | None:
        """The value of a setting that is a whole number or null; ValueError for anything else."""
        value = self.setting(key)
        return None if value is None else int(self.number(key))

    def last_value(self, key: str) -> float | None:
        """The last finite value of a metric, or None."""
        for record in reversed(self.records):
            if is_finite(record.get(key)):
                return float(record[key])
        return None

    def stale(self, result: dict[str, Any] | None) -> bool:
        """Whether a result was measured on other weights than those that lie in the folder now."""
        if result is None:
            return False
        measured = result.get("weights")
        name = measured if measured in ("weights", "weights-best") else "weights"
        weights = self.folder / name
        if not weights.is_dir():  # of what is no folder, such as run/weights, the Hub is asked
            return True
        try:
            return bool(result.get("sha256") != weights_hash(weights))
        except (OSError, ValueError):
            return True


def read_run(folder: str | Path) -> Run:
    """The contents of a run folder.

    Raises FileNotFoundError when the folder is no run and ValueError when its settings are damaged;
    anything else that cannot be read becomes one of the `problems`.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; name the folder of a run")
    run = Run(folder=folder, config=load_config_values(folder), config_text="")
    run.config_text = _text(run, CONFIG)
    run.commands = [line for line in _text(run, "command.txt").splitlines() if line.strip()]
    run.data = _values(run, "data.json") or {}
    run.environment = _values(run, "environment.json") or {}
    try:
        run.start = recorded_start(folder)
    except (OSError, ValueError) as error:
        _problem(run, f"{START} cannot be read: {error}.")
    run.summary = _values(run, "summary.json", expected=False)
    run.nonfinite = _values(run, "nonfinite.json", expected=False)
    run.warnings = _warnings(run)
    run.records = _records(run)
    _read_weights(run)
    read_results(run)
    return run


def read_results(run: Run) -> None:
    """Read what has been measured of the run, again when called again."""
    run.evaluation = _values(run, EVALUATION, expected=False)
    run.reconstruction = _values(run, RECONSTRUCTION, expected=False)
    if (run.folder / ANALYSIS / LAYERS).is_file() and _fits(run, f"{ANALYSIS}/{LAYERS}"):
        try:
            rows, run.layer_facts = read_table(run.folder / ANALYSIS)
            run.layers = [row for row in rows if _is_proper(row)]
            if left := len(rows) - len(run.layers):
                _problem(run, f"{left:,} lines of the layer analysis are no measurements.")
        except (OSError, ValueError) as error:
            _problem(run, f"The layer analysis cannot be read: {error}.")


def _is_proper(row: Measurement) -> bool:
    """Whether a line read from a file holds what its fields are meant to hold."""
    texts = (row.model, row.side, row.point, row.measure, row.tensor)
    numbers = (row.layer, row.mean, row.images)
    optional = (row.std, row.eps_squared)
    return (
        all(isinstance(value, str) for value in texts)
        and all(is_number(value) for value in numbers)
        and all(value is None or is_number(value) for value in optional)
        and isinstance(row.layer, int)
    )


def _problem(run: Run, sentence: str) -> None:
    if sentence not in run.problems:
        run.problems.append(sentence)


def _fits(run: Run, name: str) -> bool:
    size = (run.folder / name).stat().st_size
    if size > MAX_BYTES:
        _problem(run, f"{name} is left out: {size:,} bytes are more than a report reads.")
    return size <= MAX_BYTES


def _values(run: Run, name: str, *, expected: bool = True) -> dict[str, Any] | None:
    """The values of a JSON file, or None, with a problem noted where there is one."""
    path = run.folder / name
    if not path.is_file():
        if expected:
            _problem(run, f"{name} is missing.")
        return None
    if not _fits(run, name):
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        _problem(run, f"{name} cannot be read: {error}.")
        return None
    if not isinstance(values, dict):
        _problem(run, f"{name} holds no named values.")
        return None
    return values


def _text(run: Run, name: str) -> str:
    """The beginning of a text file, or "" with a problem noted."""
    path = run.folder / name
    if not path.is_file():
        _problem(run, f"{name} is missing.")
        return ""
    with path.open("rb") as file:
        content = file.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        _problem(run, f"Of {name} only the first {MAX_TEXT:,} bytes are shown.")
    return content[:MAX_TEXT].decode("utf-8", errors="replace")


def _warnings(run: Run) -> list[str]:
    path = run.folder / "log.txt"
    if not path.is_file() or not _fits(run, "log.txt"):
        return []
    marks = (" WARNING ", " ERROR ", " CRITICAL ")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if any(mark in line[:48] for mark in marks)]


def _records(run: Run) -> list[dict[str, Any]]:
    path = run.folder / JSONL
    if not path.is_file() or not _fits(run, JSONL):
        return []
    try:
        records: list[Any] = list(read_metrics(run.folder))
    except (OSError, ValueError) as error:
        _problem(run, f"{JSONL} cannot be read: {error}.")
        return []
    return [
        {key: value for key, value in record.items() if is_number(value)}
        for record in records
        if isinstance(record, dict) and is_number(record.get("step"))
    ]


def _read_weights(run: Run) -> None:
    if not (run.folder / "weights").is_dir():
        _problem(run, "There are no weights yet: nothing of the model itself can be shown.")
        return
    try:
        run.weights = describe_weights(str(run.folder / "weights"))
    except (OSError, ValueError, RuntimeError) as error:
        _problem(run, f"The weights cannot be loaded: {error}.")


def comparison_rows(run: Run) -> list[dict[str, Any]]:
    """The lines of a comparison that name a subject, a method and an accuracy."""
    rows = (run.evaluation or {}).get("rows")
    return [
        row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
        and is_number(row.get("accuracy"))
        and isinstance(row.get("subject"), str)
        and isinstance(row.get("method"), str)
    ]
