"""What happens beside the training steps: checkpoints, weights, signals."""

import contextlib
import copy
import logging
import math
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from crate_mae.common.files import replacing
from crate_mae.common.randomness import random_state
from crate_mae.training.config import CheckpointConfig
from crate_mae.training.training_module import TrainingModule

logger = logging.getLogger(__name__)

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that exist whole or not at all, even when the machine dies while writing."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside the target, flush to disk, then replace the target."""
        with replacing(Path(path)) as fresh:
            torch.save(checkpoint, fresh)


class StopRequestedError(Exception):
    """Raised to leave a run that has been saved, on a signal or after `stop_after` steps."""


class InterruptedAtOnceError(BaseException):
    """Raised by a second Ctrl-C. Not KeyboardInterrupt: the Trainer would end the process on it."""


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """A signal that came while the main thread was inside a library and did not hear it."""

    number: int
    seconds: float
    """Since it came."""
    interrupts: int
    """How often the run was asked to end, by Ctrl-C lately."""


class StopSignals(Callback):
    """Turns signals that ask a run to end into a wish to save and stop, agreed on between batches.

    SIGTERM, SIGUSR1 (clusters announce the end with it), SIGHUP (a closed terminal) and the first
    Ctrl-C; a second Ctrl-C interrupts at once. To be used around the whole fit.
    """

    NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._fd_before = -1
        self._pending: list[tuple[int, float]] = []
        self._asked = self._heard = 0.0

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in self.NAMES if hasattr(signal, name)]
            self._before = {number: signal.getsignal(number) for number in numbers}
            # The number of each signal arrives there even while no Python runs in this thread.
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            self._fd_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._asked = monotonic()
            self._install()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._fd_before)
            pipe, self._pipe = self._pipe, None
            for end in pipe:
                os.close(end)
        if kind is not None and issubclass(kind, InterruptedAtOnceError):
            raise KeyboardInterrupt from None

    def unanswered(self) -> Unanswered | None:
        """The first signal that the main thread has not heard yet, as asked in another thread."""
        pipe, numbers, now = self._pipe, b"", monotonic()
        if pipe is not None:
            with contextlib.suppress(OSError):
                numbers = os.read(pipe[0], 64)
        # All that is known of when they came: after it was asked before this.
        self._pending += [
            (number, self._asked)
            for number in numbers
            if self._before.get(number, signal.SIG_IGN) is not signal.SIG_IGN
        ]
        self._asked = now
        self._pending = [entry for entry in self._pending if entry[1] > self._heard]
        if not self._pending:
            return None
        number, since = self._pending[0]
        interrupts = sum(number == signal.SIGINT for number, _ in self._pending)
        return Unanswered(
            number=number, seconds=now - since, interrupts=interrupts + bool(self.wanted)
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from the Trainer.

        Its own handlers communicate from inside the signal in a distributed run, and on SLURM
        write a checkpoint of their own that a later run would pick up.
        """
        self._install()

    def _install(self) -> None:
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # nohup, say, wants it ignored
                signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._heard = monotonic()
        if self.wanted and number == signal.SIGINT:
            raise InterruptedAtOnceError
        self.wanted = True
        logger.warning("signal %d: saving after this batch, then stopping", number)


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """The metric whose best epoch is kept."""

    metric: str
    higher_is_better: bool = False

    def value(self, metrics: Mapping[str, Any]) -> float | None:
        """The metric, negated where higher is better; None before it was measured."""
        if self.metric not in metrics:
            return None
        value = float(metrics[self.metric])
        return -value if self.higher_is_better else value


class Checkpoints(Callback):
    """`last.ckpt` every few steps and every epoch, `best.ckpt`, one kept every n epochs; weights.

    When the module is asked to stop, or after `stop_after` steps of this session, it saves and
    leaves the run with StopRequestedError before the next batch.
    """

    def __init__(
        self,
        folder: Path,
        record: CheckpointConfig,
        *,
        monitor: Monitor,
        stop_after: int | None = None,
    ) -> None:
        if stop_after is not None and stop_after < 1:
            raise ValueError(f"stop_after must be at least 1, not {stop_after}")
        self.folder = folder / "checkpoints"
        self.weights = folder / "weights"
        self.best_weights = folder / "weights-best"
        self.record, self.monitor = record, monitor
        self.stop_after = stop_after
        self.best = math.inf
        self.last_saved: str | None = None
        self._started_at = 0
        self._leaving = False
        self._before_validation: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best monitored value so far, negated where higher is better."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best monitored value."""
        self.best = float(state_dict["best"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where this session started."""
        self._started_at = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave the run when the last batch was saved for that."""
        if self._leaving:
            raise StopRequestedError

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within the epoch when due."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        step = trainer.global_step
        enough = self.stop_after is not None and step - self._started_at >= self.stop_after
        assert isinstance(pl_module, TrainingModule)
        self._leaving = self._leaving or pl_module.stopping or enough
        due = self.record.checkpoint_steps and step % self.record.checkpoint_steps == 0
        # The last batch of an epoch is saved after its validation, with the epoch.
        if (due or self._leaving) and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer, LAST)
            if self._leaving:
                self._save_weights(trainer, pl_module, self.weights)

        if batch_idx + 1 == trainer.num_training_batches:
            pl_module.random_to_save = random_state()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note where the run is before its validation, so that this can be done all again."""
        if batch_idx == 0 and trainer.validating:
            loops = copy.deepcopy(trainer.fit_loop.state_dict())
            progress = loops["epoch_loop.val_loop.batch_progress"]
            for counts in (progress["current"], progress["total"]):
                counts["started"] = counts["ready"]  # as within its first batch
            self._before_validation = loops

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """When asked to stop, save the run as it was before its validation, and leave."""
        assert isinstance(pl_module, TrainingModule)
        if batch_idx >= pl_module.images.common_validation_batches:
            return  # other ranks have no such batch: nothing can be agreed on
        if pl_module.agree_to_stop():
            self._save(trainer, LAST)
            self._save_weights(trainer, pl_module, self.weights)
            raise StopRequestedError

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was noted before."""
        assert isinstance(pl_module, TrainingModule)
        self._before_validation = pl_module.random_to_save = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put what was noted before a validation in the place of what half of it has made."""
        if self._before_validation is not None:
            checkpoint["loops"]["fit_loop"] = self._before_validation

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last, the best and the kept checkpoints and the weights."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.random_to_save = None
        epoch = trainer.current_epoch + 1
        value = self.monitor.value(trainer.callback_metrics)
        improved = value is not None and value < self.best
        if value is not None and improved:
            self.best = value
        if improved:
            self._save(trainer, BEST)
            self._save_weights(trainer, pl_module, self.best_weights)
        if epoch % self.record.checkpoint_epochs == 0:
            self._save(trainer, f"epoch-{epoch:04d}.ckpt")
        self._save_weights(trainer, pl_module, self.weights)
        self._save(trainer, LAST)  # at the end, so that a run cut off here does all this again

    def _save(self, trainer: Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / name)
        self.last_saved = str(self.folder / name)

    def _save_weights(self, trainer: Trainer, module: TrainingModule, folder: Path) -> None:
        # Sharded strategies gather here, so every rank takes part and one writes.
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            try:
                module.save_weights(folder, state)
            except OSError as error:
                if (
                    trainer.max_epochs is not None
                    and trainer.current_epoch + 1 >= trainer.max_epochs
                ):
                    # Whoever reads the finished run's weights must not get those of an older step.
                    raise OSError(
                        f"the final weights could not be written to {folder} ({error}); with that"
                        " mended, --resume repeats the last epoch and writes them"
                    ) from error
                # The checkpoint holds them too: no reason to stop training.
                logger.warning("weights not written to %s: %s", folder, error)


_nodes = 1
"""Machines of the run that this process has begun last."""


def expect_nodes(count: int) -> None:
    """Note how many machines the run has that begins now, for `is_main_process`."""
    global _nodes
    _nodes = count


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    # Until a Trainer is there, the rank is read off variables that do not tell the node. Clusters
    # number their nodes for runs of one process, too, which are main wherever they are.
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) if _nodes > 1 else "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and node.strip() in ("", "0")
