"""The folder of a run: what it may be, what stands in it, what a resumed run may change."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from crate_mae.common.environment import environment
from crate_mae.common.files import read_json_object, write_atomically
from crate_mae.models.config import Preprocess
from crate_mae.training.callbacks import LAST, is_main_process
from crate_mae.training.config import RunConfig
from crate_mae.training.metrics_log import read_metrics

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
FREE_ON_RESUME = (
    "name:", "record.", "trainer.accelerator:", "trainer.devices:", "trainer.num_nodes:",
    "trainer.strategy:", "trainer.compile:", "trainer.recompute:", "trainer.deterministic:",
    "data.source:", "data.val_source:", "data.test_source:", "data.workers:", "data.cache_gib:",
    "data.max_broken:",
)  # fmt: skip
"""Settings that a resumed run may change: hardware, records, where the same data lie."""


def check_start(config: RunConfig, folder: Path, *, resume: bool, again: str) -> list[str]:
    """Settings that differ from those the run began with, all of them harmless to its result.

    `again` is the option that starts a new run from old weights. Raises FileExistsError for a
    folder that is taken, FileNotFoundError when there is nothing to resume, and ValueError for
    settings that would make it another run.
    """
    if resume:
        changes = changed_keys(load_config_values(folder), config.to_dict())
        fatal = [line for line in changes if not line.startswith(FREE_ON_RESUME)]
        if fatal:
            raise ValueError(
                f"these settings would make {folder} another run: {'; '.join(fatal)}. Leave them as"
                f" they were, or start a new run with {again} {folder}"
            )
        return changes
    if not is_main_process():
        return []
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists and is never overwritten; continue it with --resume {folder}, or"
            " name another folder with --out"
        )
    return []


def load_config_values(run: str | Path) -> dict[str, Any]:
    """The nested values of a run folder's configuration; FileNotFoundError when it is no run."""
    path = Path(run) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no {CONFIG}")
    return load_settings(path)


def load_settings(path: Path) -> dict[str, Any]:
    """The nested values of a settings file; ValueError when it holds none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
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
) -> None:
    """Write configuration, command, environment and what the data are.

    Raises ValueError when a resumed run meets another number of training images.
    """
    known = folder / "data.json"
    if resume and known.exists():
        before = _recorded_data(known)
        if before["images"] != facts["images"]:
            raise ValueError(
                f"this run began with {before['images']} training images, now there are"
                f" {facts['images']}: the order of its samples cannot be continued"
            )
        if before["fingerprint"] != facts["fingerprint"]:
            logger.warning("the data have changed since this run began: %s", facts["source"])
    words = " ".join(command) if command is not None else "(called from Python)"
    old = (folder / "command.txt").read_text() if (folder / "command.txt").exists() else ""
    write_atomically(folder / "command.txt", f"{old}{words}\n")
    write_atomically(
        folder / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    )
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    write_atomically(known, json.dumps(facts, indent=2) + "\n")


def recorded_preprocess(folder: Path) -> Preprocess | None:
    """The mean and std that a run began with; None when it had not come so far."""
    path = folder / "data.json"
    if not path.exists():
        return None
    return Preprocess.from_dict(_recorded_data(path)["preprocess"])


def _recorded_data(path: Path) -> dict[str, Any]:
    """What `data.json` of a run holds; ValueError naming the file where that is damaged."""
    known = read_json_object(path, max_bytes=1 << 28)  # it lists every unreadable image
    missing = [key for key in ("images", "fingerprint", "preprocess") if key not in known]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return known


def last_step(folder: Path, name: str = LAST) -> int | None:
    """The step of a run's last checkpoint or of a named one, or None where there is none."""
    checkpoint = folder / "checkpoints" / name
    if not checkpoint.is_file():
        return None
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(state["global_step"])
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise ValueError(
            f"{checkpoint} is damaged or no checkpoint of a run ({type(error).__name__}): copy"
            " another of the run's checkpoints over it and resume again"
        ) from error


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
        handler = logging.FileHandler(
            folder / "log.txt", encoding="utf-8", errors="backslashreplace"
        )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        root.setLevel(level)
