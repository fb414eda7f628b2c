"""Trackers: where a run is followed beside its own files, and goes on after it was resumed.

The identity of each tracked run is kept in the run folder; settings, data facts and pictures are
handed over; what a tracker cannot take while the run trains is told in a line, without ending it.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lightning.pytorch.loggers import Logger

from crate_mae.common.escaping import printable
from crate_mae.common.files import read_json_object, write_atomically
from crate_mae.common.randomness import random_state, set_random_state
from crate_mae.training.callbacks import expect_nodes, is_main_process
from crate_mae.training.config import RunConfig
from crate_mae.training.metrics_log import read_metrics
from crate_mae.training.tracker_kinds import KINDS, Tracker, first_line
from crate_mae.training.tracker_names import check_trackers

IDENTITIES = "trackers.json"
"""Which tracked runs are this run's, by tracker."""

_IDENTITY = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)

logger = logging.getLogger(__name__)


class Trackers:
    """The trackers of a session, in its main process alone.

    A context: it opens them, hands over settings and data facts, to `brought` loggers of the
    caller's too, and closes them. RuntimeError names one that cannot be opened.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        brought: Sequence[Logger],
        facts: Mapping[str, Any],
        *,
        resume: bool,
    ) -> None:
        self._config, self._folder, self._brought = config, folder, brought
        # A name for every image that cannot be read would be too much.
        shortened = {**facts, "unreadable": len(facts.get("unreadable", ()))}
        self._settings = {**config.to_dict(), "data_facts": shortened}
        self._known = recorded_identities(folder) if resume else {}
        self.members: list[Tracker] = []
        self.finished = False
        """Whether the run has come to its end."""

    def __enter__(self) -> Self:
        state = random_state()  # libraries may draw names
        for name in self._config.trainer.loggers:
            tracker = KINDS[name](self._config, self._folder, self._known.get(name))
            try:
                tracker.open()
                self.members.append(tracker)
                tracker.follow(self._settings)
            except Exception as error:
                self._close(failed=True)
                raise RuntimeError(
                    f"{name} cannot follow this run: {first_line(error)}. Mend that, or leave it"
                    f" out with --trainer.loggers, and go on with --resume {self._folder}"
                ) from error
        kept = {t.kind: t.identity for t in self.members if t.identity is not None}
        if kept:
            known = {**self._known, **kept}
            write_atomically(self._folder / IDENTITIES, json.dumps(known, indent=2) + "\n")
        for other in self._brought:
            other.log_hyperparams(self._settings)
        set_random_state(state)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._close(failed=kind is not None)

    def catch_up(self) -> None:
        """Hand what former sessions have recorded to trackers that lack it."""
        late = [tracker for tracker in self.members if tracker.lacks_the_past]
        for record in read_metrics(self._folder) if late else ():
            numbers = {key: value for key, value in record.items() if key not in ("step", "time")}
            for tracker in late:
                tracker.log_metrics(numbers, record["step"])
        for tracker in late:
            tracker.save()

    def _close(self, *, failed: bool) -> None:
        for tracker in self.members:
            tracker.attempt(tracker.close, finished=self.finished, failed=failed)
        self.members = []


def check_followable(config: RunConfig) -> None:
    """Raise what `check_trackers` raises, in the process that will follow the run."""
    expect_nodes(config.trainer.num_nodes)
    if is_main_process():
        check_trackers(config.trainer.loggers)


def recorded_identities(folder: Path) -> dict[str, str]:
    """The tracked runs of a run folder, by tracker; ValueError for a file that tells no such."""
    path = folder / IDENTITIES
    if not path.exists():
        return {}
    known = read_json_object(path)
    for name, identity in known.items():
        if not isinstance(identity, str) or not _IDENTITY.fullmatch(identity):
            raise ValueError(
                f"{path} is damaged: the run of {printable(name)} cannot be called {identity!r};"
                " without the file, new tracked runs are begun"
            )
    return known


def hand_picture(loggers: Sequence[Logger], name: str, path: Path, step: int) -> None:
    """Hand a picture to every tracker, and to others that take images as W&B's logger does."""
    for follower in loggers:
        if isinstance(follower, Tracker):
            follower.picture(name, path, step)
        elif callable(log_image := getattr(follower, "log_image", None)):
            try:
                log_image(key=name, images=[str(path)], step=step)
            except Exception as error:  # the same of somebody else's
                logger.warning("%s took no picture: %s", type(follower).__name__, error)
