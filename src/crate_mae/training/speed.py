"""What a run shows while it trains: speed, a bar on a terminal, lines anywhere else."""

import sys
from contextlib import suppress
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_only

from crate_mae.common.escaping import unescaped_output
from crate_mae.common.text import duration

SHOWN = {
    "loss": "train/loss",
    "val": "val/loss",
    "accuracy": "val/accuracy",
    "miou": "val/mean_iou",
    "knn": "val/knn",
    "probe": "val/probe",
    "rank": "val/effective_rank",
    "R/max": "val/coding_rate_share",
}


class Speed(Callback):
    """Images per second, share of time spent waiting for data, and seconds left, as metrics."""

    def __init__(self, *, epochs: int, window: int = 50) -> None:
        self.epochs, self.window = epochs, window
        self.values: dict[str, float] = {}
        self._marks: list[tuple[float, int, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start timing afresh, so that validation does not count as training."""
        self._marks = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the speed over the last steps."""
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

    def init_train_tqdm(self) -> Tqdm:
        """The bar of an epoch, on the terminal itself: it steers that, and shows no names."""
        with unescaped_output():
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        """The bar of a validation, likewise."""
        with unescaped_output():
            return super().init_validation_tqdm()

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        metrics = {
            short: f"{float(trainer.callback_metrics[key]):.4f}"
            for short, key in SHOWN.items()
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
        """Print when half a minute has passed."""
        if perf_counter() >= self._next:
            self._line(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line."""
        self._line(trainer)

    @rank_zero_only
    def _line(self, trainer: Trainer) -> None:
        self._next = perf_counter() + self.seconds
        metrics = trainer.callback_metrics
        parts = [f"epoch={trainer.current_epoch + 1}/{trainer.max_epochs}"]
        parts.append(f"step={trainer.global_step}")
        for key in SHOWN.values():
            if key in metrics:
                parts.append(f"{key}={float(metrics[key]):.4f}")
        parts += [f"{key}={text}" for key, text in _speed_texts(self.speed, trainer).items()]
        with suppress(OSError, ValueError):  # nobody reads any more: no reason to stop training
            print(" ".join(parts), flush=True)


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
