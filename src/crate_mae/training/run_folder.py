"""The folder of a run: what it may be, what stands in it, what a resumed run may change."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from crate_mae.common.environment import environment
from crate_mae.common.escaping import EscapingFilter, printable
from crate_mae.common.files import (
    PATH_SCHEMES,
    read_json_object,
    user_path,
    write_atomically,
    writing,
)
from crate_mae.common.folder_lock import COMMAND, LOG, holding, is_unborn, unborn_hint
from crate_mae.common.litter import sweep_below
from crate_mae.common.yaml_files import read_yaml
from crate_mae.models.config import Preprocess
from crate_mae.training.callbacks import LAST, expect_nodes, is_main_process
from crate_mae.training.config import RunConfig
from crate_mae.training.metrics_log import read_metrics
from crate_mae.training.resuming import DATA, check_checkpoint, check_resumable, recorded_data

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
START = "start.json"
FROM_PYTHON = "(called from Python)"
"""What stands in the record of commands where a run was started or resumed from Python."""
FREE_ON_RESUME = (
    "name:", "record.", "trainer.accelerator:", "trainer.devices:", "trainer.num_nodes:",
    "trainer.strategy:", "trainer.compile:", "trainer.recompute:", "trainer.deterministic:",
    "data.source:", "data.val_source:", "data.test_source:", "data.workers:", "data.cache_gib:",
    "data.max_broken:", "segment.masks:", "segment.val_masks:", "segment.test_masks:",
    "trainer.loggers:",
)  # fmt: skip
"""Settings that a resumed run may change: hardware, records, where the same data lie."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights that a run begins with, as its `start.json` holds them."""

    weights: str
    """The name by which they were found: a folder, a run, a shipped model, a Hub repository."""
    sha256: str
    """Of their tensor file."""

    def check_same(self, before: "Start | None", folder: Path) -> None:
        """Raise ValueError where a run in `folder` that never saved began with other weights."""
        if before is not None and before.sha256 != self.sha256:
            raise ValueError(
                f"{folder} began with the weights of {before.weights} as they were then (SHA-256"
                f" {before.sha256[:12]}), and now they are others ({self.sha256[:12]}); it has"
                " saved nothing yet: start a new run in another folder"
            )


def check_start(config: RunConfig, folder: Path, *, resume: bool, again: str) -> list[str]:
    """Settings that differ from those the run began with, all of them harmless to its result.

    `again` is the option that starts a new run from old weights. Raises FileExistsError for a
    folder that is taken, FileNotFoundError when there is nothing to resume, and ValueError for
    settings that would make it another run.
    """
    expect_nodes(config.trainer.num_nodes)
    if resume:
        recorded, settings = load_config_values(folder), config.to_dict()
        if missing := [key for key in _ALWAYS if key not in recorded]:
            raise ValueError(f"{folder / CONFIG} is damaged: it lacks {', '.join(missing)}")
        # Settings that did not exist when the run began had their defaults.
        recorded = _filled(recorded, settings, type(config)(name=config.name).to_dict())
        changes = changed_keys(recorded, settings)
        fatal = [line for line in changes if not line.startswith(FREE_ON_RESUME)]
        if fatal:
            raise ValueError(
                f"these settings would make {folder} another run: {'; '.join(fatal)}. Leave them as"
                f" they were, or start a new run with {again} {folder}"
            )
        check_resumable(folder)
        return changes
    if not is_main_process():
        return []
    if folder.exists() and not is_unborn(folder):
        raise FileExistsError(
            f"{folder} exists and is never overwritten; continue it with --resume {folder}, or"
            " name another folder with --out"
        )
    return []


_ALWAYS = ("seed", "model", "data", "optim", "trainer", "record")
"""Sections that every version has written."""


def _filled(
    recorded: dict[str, Any], settings: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, Any]:
    """Recorded settings, with the default of every one of `settings` that is missing there."""
    found = dict(recorded)
    for key, value in settings.items():
        if key not in found and key in defaults:
            found[key] = defaults[key]
        elif isinstance(value, dict) and isinstance(found.get(key), dict):
            default = defaults.get(key)
            found[key] = _filled(found[key], value, default if isinstance(default, dict) else {})
    return found


def with_recorded_start(run: Path, words: Sequence[str]) -> list[str]:
    """The words of a command line, with the weights that the run in a folder began with in front.

    The words alone where they name weights, and for what is no run folder or began with random
    ones.
    """
    start = recorded_start(run) if run.is_dir() else None
    if start is None or any(word.partition("=")[0] == "--init-from" for word in words):
        return list(words)
    return ["--init-from", start.weights, *words]


def check_data_given(folder: Path, dataset: object | None) -> None:
    """Raise ValueError where a run learned from a data set in Python, and none is given now.

    Its settings name no source of these images, only the default one.
    """
    if dataset is not None or not (folder / DATA).is_file():
        return
    source = str(recorded_data(folder).get("source"))
    if source.startswith("dataset:"):
        raise ValueError(
            f"{folder} learned from a data set given in Python ({source}), which no setting opens:"
            " go on in Python, with the same dataset and resume=True"
        )


@contextmanager
def written_alone(folder: Path) -> Iterator[None]:
    """A context in which no other process writes to a run folder; it is made where it is missing.

    What processes that were killed have left in it is removed. Only the main process holds it.
    Raises FolderInUseError naming who writes to it, and FileExistsError where another run came
    first.
    """
    if not is_main_process():
        yield
        return
    new = not (folder / CONFIG).exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with holding(folder):
        if new and not is_unborn(folder):
            raise FileExistsError(f"{folder} has just been taken by another run: name another")
        for path in sweep_below(folder):
            logger.info("removed %s, left behind by a process that was killed", path)
        yield


@contextmanager
def continuing(folder: Path, source: str) -> Iterator[None]:
    """A context for a resumed run: `written_alone`, and data that are not found are explained.

    `source` is the address of its images.
    """
    with written_alone(folder):
        try:
            yield
        except FileNotFoundError as error:
            scheme, _, path = source.partition(":")
            lost = path and not user_path(path).exists()
            if scheme in PATH_SCHEMES and lost and not user_path(path).is_absolute():
                raise FileNotFoundError(
                    f"{error}. The run names its images relative to where it was started: resume it"
                    f" from there, or tell where they are now, with --data.source"
                    f" {scheme}:/WHOLE/PATH"
                ) from error
            raise


def load_config_values(run: str | Path) -> dict[str, Any]:
    """The nested values of a run folder's configuration; FileNotFoundError when it is no run."""
    path = user_path(run) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} is no run folder: it has no {CONFIG}{unborn_hint(user_path(run))}"
        )
    return load_settings(path)


def load_settings(path: Path) -> dict[str, Any]:
    """The nested values of a settings file; ValueError when it holds none."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings")
    return values


def changed_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every setting that differs, nested keys joined with dots."""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def write_facts(
    config: RunConfig,
    folder: Path,
    facts: dict[str, Any],
    *,
    command: list[str] | None,
    resume: bool,
    start: Start | None = None,
) -> None:
    """Write configuration, command, environment, what the data are and which weights came first.

    Raises ValueError when a resumed run meets another number of training images.
    """
    known = folder / DATA
    if resume and known.exists():
        before = recorded_data(folder)
        if before["images"] != facts["images"]:
            raise ValueError(
                f"this run began with {before['images']} training images, now there are"
                f" {facts['images']}: the order of its samples cannot be continued"
            )
        if before["fingerprint"] != facts["fingerprint"]:
            logger.warning("the data have changed since this run began: %s", facts["source"])
    words = " ".join(command) if command is not None else FROM_PYTHON
    kept = folder / COMMAND
    old = kept.read_text("utf-8", errors="backslashreplace") if kept.exists() else ""
    write_atomically(kept, f"{old}{printable(words)}\n")
    if start is not None:
        write_atomically(folder / START, json.dumps(asdict(start), indent=2) + "\n")
    write_atomically(
        folder / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    )
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    write_atomically(known, json.dumps(facts, indent=2) + "\n")


def recorded_start(folder: Path) -> Start | None:
    """The weights that a run began with, or None: random ones, or a run of an older version.

    Raises ValueError naming a file that is damaged.
    """
    path = folder / START
    if not path.is_file():
        return None
    known = read_json_object(path)
    weights, sha256 = known.get("weights"), known.get("sha256")
    if not isinstance(weights, str) or not isinstance(sha256, str):
        raise ValueError(f"{path} is damaged: it lacks the name or the SHA-256 of weights")
    return Start(weights=weights, sha256=sha256)


def record_unreadable(folder: Path, reasons: Mapping[str, str]) -> None:
    """Write down which images could not be read: training meets those that nothing had decoded."""
    known = recorded_data(folder)
    if known.get("unreadable") != dict(reasons):
        known["unreadable"] = dict(reasons)
        write_atomically(folder / DATA, json.dumps(known, indent=2) + "\n")


def recorded_preprocess(folder: Path) -> Preprocess | None:
    """The mean and std that a run began with; None when it had not come so far."""
    if not (folder / DATA).exists():
        return None
    return Preprocess.from_dict(recorded_data(folder)["preprocess"])


def last_step(folder: Path, name: str = LAST) -> int | None:
    """The step of a run's last checkpoint or of a named one, or None where there is none."""
    checkpoint = folder / "checkpoints" / name
    if not checkpoint.is_file():
        return None
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(state["global_step"])
    except Exception:  # torch raises many kinds for a file that is none of its own
        return check_checkpoint(checkpoint)  # which names what is wrong with it


def last_metrics(folder: Path) -> dict[str, float]:
    """The last value of every metric in a run folder, without step and time."""
    latest: dict[str, float] = {}
    for record in read_metrics(folder):
        latest.update(record)
    return {key: value for key, value in latest.items() if key not in ("step", "time")}


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Everything the package logs also goes to the run's `log.txt`."""
    root = logging.getLogger("crate_mae")
    level = root.level
    handler: logging.Handler = logging.NullHandler()
    if is_main_process():
        with writing(folder / LOG):
            handler = _LogFile(folder / LOG, encoding="utf-8", errors="backslashreplace")
    handler.addFilter(EscapingFilter())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        root.setLevel(level)


class _LogFile(logging.FileHandler):
    """A log file that says once that it cannot be written, where logging prints tracebacks."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Print one line, the first time."""
        if not self._told:
            self._told = True
            reason = str(sys.exc_info()[1])
            print(f"warning: {self.baseFilename} cannot be written: {reason}", file=sys.stderr)

    def close(self) -> None:
        """Close the file; lines that cannot be written any more are lost."""
        with suppress(OSError):
            super().close()
