"""What happens beside the training steps: progress, checkpoints, weights, pictures."""

import logging
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from crate_mae.data.batches import Batch, MaskedImages
from crate_mae.evaluation.reconstruction import reconstruct
from crate_mae.figures.reconstruction import reconstruction_sheet
from crate_mae.files import replacing
from crate_mae.models.weights import save_model
from crate_mae.progress import duration
from crate_mae.training.config import RecordConfig
from crate_mae.training.masked import MaskedCompletion

logger = logging.getLogger(__name__)

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that exist whole or not at all, even when the machine dies while writing."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Nothing; writes beside the target, flushes to disk, then replaces the target."""
        with replacing(Path(path)) as fresh:
            torch.save(checkpoint, fresh)


class StopRequestedError(Exception):
    """Raised to leave a run that has been saved, on a signal or after `stop_after` steps."""


class StopSignals(Callback):
    """Turns signals that ask a run to end into a wish to save and stop, agreed on between batches.

    SIGTERM, SIGUSR1 (clusters announce the end with it), SIGHUP (a closed terminal) and the first
    Ctrl-C; a second Ctrl-C interrupts at once. To be used around the whole fit.
    """

    NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in self.NAMES if hasattr(signal, name)]
            self._before = {number: signal.getsignal(number) for number in numbers}
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing; takes the signals back from the Trainer.

        Its own handlers communicate from inside the signal in a distributed run, and on SLURM
        write a checkpoint of their own that a later run would pick up.
        """
        self._install()

    def _install(self) -> None:
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # nohup, say, wants it ignored
                signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
        logger.warning("signal %d: saving after this batch, then stopping", number)


class Checkpoints(Callback):
    """`last.ckpt` every few steps and every epoch, `best.ckpt`, one kept every n epochs; weights.

    When the module is asked to stop, or after `stop_after` steps of this session, it saves and
    leaves the run with StopRequestedError before the next batch.
    """

    def __init__(
        self, folder: Path, record: RecordConfig, *, stop_after: int | None = None
    ) -> None:
        if stop_after is not None and stop_after < 1:
            raise ValueError(f"stop_after must be at least 1, not {stop_after}")
        self.folder = folder / "checkpoints"
        self.weights = folder / "weights"
        self.best_weights = folder / "weights-best"
        self.record = record
        self.stop_after = stop_after
        self.best = float("inf")
        self.last_saved: str | None = None
        self._started_at = 0
        self._leaving = False

    def state_dict(self) -> dict[str, Any]:
        """The lowest validation loss so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing; takes over the lowest validation loss."""
        self.best = float(state_dict["best"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing; notes where this session started."""
        self._started_at = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Nothing; leaves the run when the last batch was saved for that."""
        if self._leaving:
            raise StopRequestedError

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Nothing; saves within the epoch when due."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        step = trainer.global_step
        enough = self.stop_after is not None and step - self._started_at >= self.stop_after
        assert isinstance(pl_module, MaskedCompletion)
        self._leaving = self._leaving or pl_module.stopping or enough
        due = self.record.checkpoint_steps and step % self.record.checkpoint_steps == 0
        # The last batch of an epoch is saved after its validation, with the epoch.
        if (due or self._leaving) and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer, LAST)
            if self._leaving:
                self._save_weights(trainer, pl_module, self.weights)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing; saves the last, the best and the kept checkpoints and the weights."""
        assert isinstance(pl_module, MaskedCompletion)
        epoch = trainer.current_epoch + 1
        loss = trainer.callback_metrics.get("val/loss")
        improved = loss is not None and float(loss) < self.best
        if loss is not None and improved:
            self.best = float(loss)
        self._save(trainer, LAST)
        if improved:
            self._save(trainer, BEST)
            self._save_weights(trainer, pl_module, self.best_weights)
        if epoch % self.record.checkpoint_epochs == 0:
            self._save(trainer, f"epoch-{epoch:04d}.ckpt")
        self._save_weights(trainer, pl_module, self.weights)

    def _save(self, trainer: Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / name)
        self.last_saved = str(self.folder / name)

    def _save_weights(self, trainer: Trainer, module: MaskedCompletion, folder: Path) -> None:
        # Sharded strategies gather here, so every rank takes part and one writes.
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            prefix = "model."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            try:
                save_model(module.model, folder, state=own, overwrite=True)
            except OSError as error:  # the checkpoint holds them too: no reason to stop training
                logger.warning("weights not written to %s: %s", folder, error)


class Speed(Callback):
    """Images per second, share of time spent waiting for data, and seconds left, as metrics."""

    def __init__(self, *, epochs: int, window: int = 50) -> None:
        self.epochs, self.window = epochs, window
        self.values: dict[str, float] = {}
        self._marks: list[tuple[float, int, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing; starts timing afresh, so that validation does not count as training."""
        self._marks = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Nothing; logs the speed over the last steps."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._marks = [
            *self._marks[-self.window :],
            (perf_counter(), data.batches_seen, data.waited),
        ]
        (begin, first, waited), (end, last, waited_now) = self._marks[0], self._marks[-1]
        if end <= begin or last == first:
            return
        per_batch = (end - begin) / (last - first)
        total = data.steps_per_epoch * data.accumulate * self.epochs
        self.values = {
            "speed/images_per_s": data.batch_size * trainer.world_size / per_batch,
            "speed/waiting": (waited_now - waited) / (end - begin),
            "speed/seconds_left": (total - last) * per_batch,
        }
        pl_module.log_dict(self.values, on_step=True, on_epoch=False)


class Bar(TQDMProgressBar):
    """A bar with loss, learning rate, images/s, share of waiting and time left in the run."""

    def __init__(self, speed: Speed) -> None:
        super().__init__(refresh_rate=1)
        self.speed = speed

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        metrics = {
            short: f"{float(trainer.callback_metrics[key]):.4f}"
            for short, key in (("loss", "train/loss"), ("val", "val/loss"))
            if key in trainer.callback_metrics
        }
        return {**metrics, **_speed_texts(self.speed, trainer)}


class Lines(Callback):
    """Progress for files and pipes: one `key=value` line every epoch and every half minute."""

    def __init__(self, speed: Speed, *, seconds: float = 30.0) -> None:
        self.speed, self.seconds = speed, seconds
        self._next = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Nothing; prints when half a minute has passed."""
        if perf_counter() >= self._next:
            self._line(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing; prints the epoch's line."""
        self._line(trainer)

    @rank_zero_only
    def _line(self, trainer: Trainer) -> None:
        self._next = perf_counter() + self.seconds
        metrics = trainer.callback_metrics
        parts = [f"epoch={trainer.current_epoch + 1}/{trainer.max_epochs}"]
        parts.append(f"step={trainer.global_step}")
        for key in ("train/loss", "val/loss"):
            if key in metrics:
                parts.append(f"{key}={float(metrics[key]):.4f}")
        parts += [f"{key}={text}" for key, text in _speed_texts(self.speed, trainer).items()]
        with suppress(OSError, ValueError):  # nobody reads any more: no reason to stop training
            print(" ".join(parts), flush=True)


class Reconstructions(Callback):
    """Pictures of the same validation images under the same masks, every few epochs."""

    def __init__(self, folder: Path, *, every: int, count: int) -> None:
        self.folder = folder / "reconstructions"
        self.every, self.count = every, count

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing; draws when due and at the end; a failed drawing is logged, not fatal."""
        epoch = trainer.current_epoch + 1
        due = self.every and (epoch % self.every == 0 or epoch == trainer.max_epochs)
        # Sharded weights are whole only inside a step, so they are not drawn here.
        if not due or not trainer.is_global_zero or "FSDP" in type(trainer.strategy).__name__:
            return
        try:
            self.draw(trainer, pl_module, f"epoch-{epoch:04d}.png", f"epoch {epoch}")
        except (OSError, ValueError, RuntimeError) as error:
            logger.warning("no reconstruction drawn at epoch %d: %s", epoch, error)

    def draw(self, trainer: Trainer, module: LightningModule, name: str, title: str) -> None:
        """Nothing; writes one sheet."""
        assert isinstance(module, MaskedCompletion)
        batch = self._batch(trainer)
        if batch is None:
            return
        self.folder.mkdir(exist_ok=True)
        training = module.model.training
        module.model.eval()
        images, mask = batch["images"].to(module.device), batch["mask"].to(module.device)
        with torch.no_grad():
            result = reconstruct(module.model, images, mask)
        module.model.train(training)
        reconstruction_sheet(
            result, self.folder / name, names=batch["names"], title=title, overwrite=True
        )

    def _batch(self, trainer: Trainer) -> Batch | None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        source = data.val_source
        if source is None or not len(source):
            return None
        count = min(self.count, len(source))
        keys = [(0, index * len(source) // count) for index in range(count)]
        return MaskedImages(source, data.validation_maker()).__getitems__(keys)


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return getattr(rank_zero_only, "rank", 0) == 0


def progress_callbacks(speed: Speed) -> list[Callback]:
    """A bar on a terminal, plain lines anywhere else."""
    return [Bar(speed)] if sys.stderr.isatty() else [Lines(speed)]


def _speed_texts(speed: Speed, trainer: Trainer) -> dict[str, str]:
    texts = {}
    with suppress(IndexError, AttributeError):
        texts["lr"] = f"{trainer.optimizers[0].param_groups[0]['lr']:.2e}"
    if speed.values:
        texts["img/s"] = f"{speed.values['speed/images_per_s']:.0f}"
        texts["wait"] = f"{speed.values['speed/waiting']:.0%}"
        texts["left"] = duration(speed.values["speed/seconds_left"])
    return texts
