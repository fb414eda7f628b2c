"""One sitting of any run: its Trainer assembled, fitted to its end or until stopped, recorded."""

import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.fsdp import MixedPrecision

from crate_mae.batches.data_module import ImageDataModule
from crate_mae.common.allocator import keep_freed_memory
from crate_mae.common.files import write_atomically
from crate_mae.common.precision import float32_products
from crate_mae.training.callbacks import (
    LAST,
    AtomicCheckpointIO,
    Checkpoints,
    Monitor,
    StopRequestedError,
    StopSignals,
    is_main_process,
)
from crate_mae.training.companions import Companions
from crate_mae.training.config import RunConfig, TrainerConfig
from crate_mae.training.metrics_log import MetricsLog
from crate_mae.training.nonfinite import NonFiniteError
from crate_mae.training.resuming import check_fits, restore_weights
from crate_mae.training.run_folder import (
    Start,
    last_metrics,
    last_step,
    log_file,
    record_unreadable,
    write_facts,
    written_alone,
)
from crate_mae.training.speed import Speed, progress_callbacks
from crate_mae.training.trackers import Trackers
from crate_mae.training.training_module import TrainingModule

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run, or this session of it, ended."""

    folder: Path
    finished: bool
    """False when the run was stopped early; it can be resumed."""
    step: int
    """Optimiser steps done so far."""
    metrics: dict[str, float]
    """The last value of every metric."""
    seconds: float
    """Wall time of this session."""


class Session:
    """One sitting of a run: its Trainer, what it records, and how it is stopped.

    Everything that every kind of run does alike. `training/pretrain.py` and `training/finetune.py`
    read top down: settings checked, session, data, model, fit, summary.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        monitor: Monitor,
        callbacks: Sequence[Callback] = (),
        stop_after: int | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        """Assemble the Trainer; nothing is written yet. `monitor` says which epoch is the best.

        `loggers` are followed beside those of `trainer.loggers`.

        Raises ValueError for trainer settings that do not fit this machine.
        """
        self.config, self.folder = config, folder
        self._started = perf_counter()
        self._stop = StopSignals()
        self._checkpoints = Checkpoints(
            folder, config.record, monitor=monitor, stop_after=stop_after
        )
        self._metrics = MetricsLog(folder)
        self._brought = tuple(loggers)
        self._trackers: Trackers | None = None
        self._trainer = self._assembled(callbacks)
        self._companions = Companions(self._trainer.strategy, self._stop, folder)

    def __enter__(self) -> Self:
        self._companions.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._companions.__exit__(kind, error, at)

    @property
    def world_size(self) -> int:
        """Number of devices, over all machines."""
        return self._trainer.world_size

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self._trainer.strategy.root_device
        return device

    def last_checkpoint(self) -> str | None:
        """The path of the last checkpoint that was saved, for messages."""
        return self._checkpoints.last_saved

    def stop_wanted(self) -> bool:
        """Whether a signal has asked this process to save and stop."""
        return self._stop.wanted

    @contextmanager
    def recording(
        self,
        config: RunConfig,
        data: ImageDataModule,
        *,
        resume: bool,
        start: Start | None,
        changes: Sequence[str],
        command: list[str] | None,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[None]:
        """A context in which the run folder is there, written by this run alone, and its log open.

        Configuration, command, environment and what is known of the data (with `facts`) are written
        first, and `start`, the weights that the run begins with; `changes` since then are logged.
        `config` is the one that the session was made with, or one of another batch and rate, of
        which the Trainer knows nothing.
        """
        self.config = config
        # A resumed run holds its folder already.
        with (
            nullcontext() if resume else written_alone(self.folder),
            log_file(self.folder),
            ExitStack() as stack,
        ):
            with self._stop:
                for change in changes:
                    logger.info("changed since this run began: %s", change)
                if is_main_process():
                    known = {**data.facts(), **facts}
                    write_facts(
                        self.config, self.folder, known, command=command, resume=resume, start=start
                    )
                    self._announce(data)
                    self._trackers = stack.enter_context(
                        Trackers(self.config, self.folder, self._brought, known, resume=resume)
                    )
                    self._trainer.loggers = [*self._trainer.loggers, *self._trackers.members]
            yield
            if is_main_process():
                record_unreadable(self.folder, data.broken)

    def fit(self, module: TrainingModule, data: ImageDataModule, *, resume: bool) -> bool:
        """Train from the last checkpoint, if there is one; whether training came to its end.

        Raises NonFiniteError, after `nonfinite.json` has been written, KeyboardInterrupt on a
        second Ctrl-C, and RuntimeError naming this process where another one of the run is lost.
        """
        step = last_step(self.folder) if resume else None
        checkpoint = None if step is None else self.folder / "checkpoints" / LAST
        if resume:
            self._metrics.rewind(step or 0)
            if self._trackers is not None:
                self._trackers.catch_up()
            logger.info("resuming %s at step %d", self.folder, step or 0)
        if checkpoint is not None:
            check_fits(checkpoint, module)
            self._checkpoints.last_saved = str(checkpoint)
        try:
            with self._stop:
                self._trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except (StopRequestedError, SIGTERMException):
            saved = last_step(self.folder)
            logger.info("stopped; last saved at step %s", "none" if saved is None else saved)
            return False
        except KeyboardInterrupt:
            saved = last_step(self.folder)
            logger.info("interrupted; last saved at step %s", "none" if saved is None else saved)
            raise
        except NonFiniteError as error:
            if is_main_process():
                report = json.dumps(error.report, indent=2) + "\n"
                write_atomically(self.folder / "nonfinite.json", report)
            logger.info("stopped by a number that is not finite: see nonfinite.json")
            raise
        except RuntimeError as error:
            raise self._companions.explained(error) from error
        if is_main_process() and self._trainer.global_step == step:
            restore_weights(self.folder, module)
        if self._trackers is not None:
            self._trackers.finished = True
        return True

    def follow_up(self, metrics: Mapping[str, float]) -> None:
        """Hand what was measured after training to whoever follows the run."""
        for follower in self._trainer.loggers:
            if follower is not self._metrics:
                follower.log_metrics(dict(metrics), self._trainer.global_step)
                follower.save()

    def summary(
        self, *, finished: bool, further: Mapping[str, float] = MappingProxyType({})
    ) -> RunSummary:
        """How this session ended, with `further` metrics; a finished run gets `summary.json`."""
        summary = RunSummary(
            folder=self.folder,
            finished=finished,
            step=self._trainer.global_step,
            metrics={**last_metrics(self.folder), **further},
            seconds=perf_counter() - self._started,
        )
        target = self.folder / "summary.json"
        if is_main_process() and finished and not target.exists():
            facts = {
                "step": summary.step,
                "seconds_of_last_session": round(summary.seconds, 1),
                "metrics": summary.metrics,
            }
            write_atomically(target, json.dumps(facts, indent=2) + "\n")
        return summary

    def _assembled(self, callbacks: Sequence[Callback]) -> Trainer:
        settings, record = self.config.trainer, self.config.record
        speed = Speed(epochs=self.config.optim.epochs)
        devices = settings.devices
        try:
            return Trainer(
                accelerator=settings.accelerator,
                devices=int(devices) if isinstance(devices, str) and devices.isdigit() else devices,
                num_nodes=settings.num_nodes,
                strategy=_strategy(settings),
                precision=settings.precision,
                accumulate_grad_batches=settings.accumulate,
                deterministic=settings.deterministic or None,
                max_epochs=self.config.optim.epochs,
                log_every_n_steps=record.log_every,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                default_root_dir=self.folder,  # not the working directory, where runs would meet
                logger=[self._metrics, *self._brought],
                callbacks=[
                    self._stop, speed, *progress_callbacks(speed), *callbacks, self._checkpoints
                ],
                plugins=[AtomicCheckpointIO()],
                enable_progress_bar=sys.stderr.isatty(),
            )  # fmt: skip
        except (MisconfigurationException, TypeError) as error:
            raise ValueError(f"trainer settings do not fit this machine: {error}") from error

    def _announce(self, data: ImageDataModule) -> None:
        config = self.config
        optim, world = config.optim, self.world_size
        steps = data.num_samples // optim.batch_size
        logger.info(
            "%d images, batch %d (%d devices x %d accumulated x %d), %d steps x %d epochs ="
            " %d steps, %d samples seen",
            data.num_samples, optim.batch_size, world, config.trainer.accumulate, data.batch_size,
            steps, optim.epochs, steps * optim.epochs, steps * optim.epochs * optim.batch_size,
        )  # fmt: skip
        logger.info(
            "learning rate %.3g = base %.3g x %d / 256, warm-up %d steps, precision %s",
            optim.peak_lr, optim.base_lr, optim.batch_size, round(steps * optim.warmup_epochs),
            config.trainer.precision,
        )  # fmt: skip
        if data.broken:  # found while decoding, before the log file was open
            logger.warning("%d unreadable images: %s", len(data.broken), "; ".join(data.broken))
        used = world if self.device.type == "cuda" else 0
        idle = torch.cuda.device_count() - used
        if torch.cuda.is_available() and idle > 0 and config.trainer.num_nodes == 1:
            logger.warning("%d GPUs stay idle; use --trainer.devices auto for all", idle)


def batch_per_device(config: RunConfig, world_size: int) -> int:
    """Images per device and batch; ValueError when the effective batch cannot be shared evenly."""
    shares = world_size * config.trainer.accumulate
    if config.optim.batch_size % shares:
        good = max(shares, config.optim.batch_size // shares * shares)
        raise ValueError(
            f"optim.batch_size {config.optim.batch_size} cannot be shared by {world_size} devices x"
            f" {config.trainer.accumulate} accumulation steps; nearest {good}"
        )
    return config.optim.batch_size // shares


@contextmanager
def training_environment(config: RunConfig) -> Iterator[None]:
    """A context for assembling and fitting: libraries are quiet, float32 rounds as configured.

    Memory that a step frees is kept for the next from then on.
    """
    keep_freed_memory()
    with quiet_libraries(), float32_products(tf32=config.trainer.tf32):
        yield


def _strategy(settings: TrainerConfig) -> str | Strategy:
    """The strategy, with sharded parameters kept in float32 (Lightning's mixed default is bf16)."""
    if settings.strategy != "fsdp" or settings.precision == "32-true":
        return settings.strategy
    wide = torch.float32
    whole = MixedPrecision(param_dtype=wide, reduce_dtype=wide, buffer_dtype=wide)
    return FSDPStrategy(mixed_precision=whole, state_dict_type="full")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Lightning's notices about itself off; its warnings about our own choices too."""
    names = ("lightning.pytorch", "lightning.fabric")
    failed = threading.excepthook

    def told(what: Any) -> None:
        """Say in a line what TensorBoard's thread, say, could not write."""
        if issubclass(what.exc_type, OSError):
            logger.warning("not written in the background: %s", what.exc_value)
        else:
            failed(what)

    threading.excepthook = told
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message="GPU available but not used.*")
        warnings.filterwarnings("ignore", message=".*ended before the epoch ended.*")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        warnings.filterwarnings("ignore", message="Total length of `.*` across ranks is zero.*")
        warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined.*")
        try:
            yield
        finally:
            threading.excepthook = failed
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
