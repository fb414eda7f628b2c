"""Which trackers there are, and what each needs: checked before anything else is done."""

import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

from crate_mae.common.extras import check_installed
from crate_mae.common.hints import did_you_mean

TrackerName = Literal["tensorboard", "csv", "wandb", "mlflow", "trackio"]

_PACKAGED = ("tensorboard", "wandb", "mlflow", "trackio")
"""Those that are packages of their own, each of the tracker's name."""


def tracker_names(given: Any) -> tuple[TrackerName, ...]:
    """The trackers that a setting names; a single name stands for a list of it.

    Raises ValueError for what is no tracker, and for one that is named twice.
    """
    names = (given,) if isinstance(given, str) else tuple(given)
    known = get_args(TrackerName)
    for name in names:
        if name not in known:
            raise ValueError(
                f"trainer.loggers knows no {name!r}{did_you_mean(str(name), known)}: it is a list"
                f" of any of {', '.join(known)}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"trainer.loggers names one twice: {', '.join(names)}")
    return cast("tuple[TrackerName, ...]", names)


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise what will keep a run from being followed, as far as it can be told at once.

    ModuleNotFoundError, with the command to install, for a package that is missing; ValueError for
    W&B without a login where nobody can be asked for one.
    """
    for name in names:
        if name in _PACKAGED:
            check_installed(name)
    if "wandb" in names:
        import wandb

        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        asks = mode in ("online", "shared") and not sys.stdin.isatty()
        if asks and not wandb.login(prompt=False, verify=False):
            raise ValueError(
                "trainer.loggers: W&B knows no login here: run wandb login, set WANDB_API_KEY, or"
                " keep the run on this machine with WANDB_MODE=offline"
            )
