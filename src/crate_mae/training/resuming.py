"""What a resumed run needs of its folder, each part checked by name before anything starts.

A part that is missing would not always be missed: without its counters a run would begin again at
step 0 with trained weights, without a word.
"""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crate_mae.common.files import read_json_object
from crate_mae.common.values import is_count
from crate_mae.training.callbacks import BEST, LAST
from crate_mae.training.training_module import TrainingModule
from crate_mae.weights.shipped import CONFIG as WEIGHTS_CONFIG
from crate_mae.weights.shipped import PREPROCESS, TENSORS
from crate_mae.weights.tensors import check_finite, check_match, check_zip, read_safetensors

DATA = "data.json"
WEIGHTS = {LAST: "weights", BEST: "weights-best"}
"""The weights folder of each checkpoint."""

_PARTS: dict[str, type] = {
    "global_step": int,
    "epoch": int,
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "ImageDataModule": dict,
    "random": dict,
}
_COUNTERS = "epoch_loop.automatic_optimization.optim_progress"

_READINGS = 5
"""How often a checkpoint that changes while it is read is read, at most."""

logger = logging.getLogger(__name__)


def check_resumable(folder: Path) -> int | None:
    """The step from which a run folder goes on; None when it has never saved anything.

    Raises ValueError naming the part that is missing or damaged, and what to do.
    """
    checkpoint = folder / "checkpoints" / LAST
    if not checkpoint.is_file():
        if saved := _traces(folder):
            raise ValueError(
                f"{checkpoint} is missing, though the run has saved before"
                f" ({', '.join(saved[:5])}): {_remedy(folder)}"
            )
        return None
    recorded_data(folder)
    return check_checkpoint(checkpoint)


def recorded_data(folder: Path) -> dict[str, Any]:
    """What `data.json` of a run holds; ValueError naming it where it is missing or damaged."""
    path = folder / DATA
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: it holds the mean and std that the run began with and tells"
            " whether its images are still the same; copy it back, or start a new run from these"
            " weights"
        )
    known = read_json_object(path, max_bytes=1 << 28)  # it lists every unreadable image
    missing = [key for key in ("images", "fingerprint", "preprocess") if key not in known]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return known


def check_checkpoint(path: Path) -> int:
    """The step of a checkpoint; ValueError naming it and its part that is missing or damaged.

    A run that still lives may replace it meanwhile, and torch opens it twice, for its index and for
    its tensors: a file that changed while it was read is read again.
    """
    for _ in range(_READINGS - 1):
        before = _identity(path)
        with contextlib.suppress(ValueError):
            return _step_of(path)
        if _identity(path) == before:
            break
    return _step_of(path)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of its name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _step_of(path: Path) -> int:
    try:
        if not check_zip(path):
            raise ValueError("it is no archive of PyTorch's")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _check_parts(state)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        reason = str(error).strip().splitlines()[0] if isinstance(error, ValueError) else ""
        raise ValueError(
            f"{path} is damaged or no checkpoint of a run ({reason or type(error).__name__}):"
            f" {_remedy(path.parent.parent)}"
        ) from error
    return int(state["global_step"])


def check_fits(path: Path, module: TrainingModule) -> None:
    """Raise ValueError unless a checkpoint's tensors are those of the model that is trained.

    Optimiser states are compared where they are kept by number, not by name as sharded ones are.
    """
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    shapes = {key: tuple(value.shape) for key, value in state["state_dict"].items()}
    check_match(shapes, module, origin=str(path))
    check_finite(state["state_dict"].items(), origin=str(path))
    optimizer = state["optimizer_states"][0]
    numbered: Mapping[Any, Any] = optimizer["state"]
    trained = [p for p in module.parameters() if p.requires_grad]
    if not all(isinstance(key, int) for key in numbered):
        return
    found = sorted(tuple(entry["exp_avg"].shape) for entry in numbered.values())
    if found != sorted(tuple(p.shape) for p in trained):
        raise ValueError(
            f"{path}: its optimizer_states hold averages for {len(found)} tensors of other shapes"
            f" than the {len(trained)} that are trained: {_remedy(path.parent.parent)}"
        )
    for number, entry in numbered.items():
        names = ((f"exp_avg of parameter {number}", entry["exp_avg"]),
                 (f"exp_avg_sq of parameter {number}", entry["exp_avg_sq"]))  # fmt: skip
        check_finite(names, origin=f"{path}, optimizer_states,")


def restore_weights(folder: Path, module: TrainingModule) -> list[str]:
    """The weights folders of a finished run that were missing or damaged, written anew.

    From the checkpoints, which hold the same tensors.
    """
    written = []
    for name, weights in WEIGHTS.items():
        checkpoint = folder / "checkpoints" / name
        if not checkpoint.is_file() or _is_whole(folder / weights):
            continue
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        module.save_weights(folder / weights, state["state_dict"])
        logger.warning("%s was missing or damaged: written again from %s", weights, name)
        written.append(weights)
    return written


def _is_whole(weights: Path) -> bool:
    try:
        read_safetensors(weights / TENSORS)
        read_json_object(weights / WEIGHTS_CONFIG)
        read_json_object(weights / PREPROCESS)
    except (OSError, ValueError):
        return False
    return True


def _check_parts(state: Any) -> None:
    """Raise ValueError naming what a checkpoint lacks, or what does not agree within it."""
    if not isinstance(state, dict):
        raise ValueError("it holds no named parts")
    missing = [name for name in _PARTS if name not in state]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    wrong = [name for name, kind in _PARTS.items() if not isinstance(state[name], kind)]
    if wrong:
        raise ValueError(f"its {', '.join(wrong)} is of another kind")
    step = state["global_step"]
    for name, found in (
        ("loops", _at(state, "loops", "fit_loop", _COUNTERS, "optimizer", "step", "total",
                      "completed")),
        ("lr_schedulers", _at(state, "lr_schedulers", 0, "last_epoch")),
        ("optimizer_states", _optimiser_step(state)),
    ):  # fmt: skip
        if found != step:
            raise ValueError(f"its {name} tells step {found}, and its global_step {step}")
    for name, keys in (
        ("loops", ("fit_loop", "epoch_progress", "current", "completed")),
        ("loops", ("fit_loop", "epoch_loop.batch_progress", "current", "completed")),
        ("loops", ("fit_loop", "epoch_loop.state_dict", "_batches_that_stepped")),
        ("ImageDataModule", ("batches_seen",)),
    ):
        if not is_count(_at(state, name, *keys)):
            raise ValueError(f"its {name} lacks {' '.join(keys)}")
    if state["ImageDataModule"]["batches_seen"] < step:
        raise ValueError(f"its ImageDataModule has seen fewer batches than {step} steps")
    if not isinstance(state["ImageDataModule"].get("broken"), dict):
        raise ValueError("its ImageDataModule lacks broken")
    if not isinstance(_at(state, "callbacks", "Checkpoints", "best"), int | float):
        raise ValueError("its callbacks lack Checkpoints best")
    lacking = [name for name in ("torch", "numpy", "python") if name not in state["random"]]
    if lacking:
        raise ValueError(f"its random lacks {', '.join(lacking)}")
    if not all(isinstance(value, Tensor) for value in state["state_dict"].values()):
        raise ValueError("its state_dict holds more than tensors")


def _optimiser_step(state: Mapping[str, Any]) -> Any:
    """The step that all entries of the first optimiser agree on, or what they hold instead."""
    entries = _at(state, "optimizer_states", 0, "state")
    if not isinstance(entries, dict) or not entries:
        return None
    steps = set()
    for entry in entries.values():
        if not isinstance(entry, dict) or not {"step", "exp_avg", "exp_avg_sq"} <= set(entry):
            return None
        steps.add(int(entry["step"]))
    # Loss scaling skips steps that overflow, so that there may be fewer than were counted.
    at_most = max(steps) <= state["global_step"]
    return state["global_step"] if len(steps) == 1 and at_most else sorted(steps)


def _at(values: Any, *keys: str | int) -> Any:
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _traces(folder: Path) -> list[str]:
    """What only a run that has saved leaves behind, by name."""
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"))
    names = [f"checkpoints/{path.name}" for path in checkpoints]
    names += [name for name in WEIGHTS.values() if (folder / name / TENSORS).is_file()]
    return names + [name for name in ("summary.json",) if (folder / name).is_file()]


def _remedy(folder: Path) -> str:
    others = [path.name for path in sorted((folder / "checkpoints").glob("*.ckpt"))]
    usable = [name for name in others if name != LAST]
    if usable:
        listed = ", ".join(usable[:4])
        return f"copy another of the run's checkpoints over it ({listed}) and resume again"
    return "copy it back from elsewhere and resume again, or start a new run from the weights"
