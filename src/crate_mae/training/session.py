"""One session of any run: assembled, checked, fitted to its end or until stopped, recorded."""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.fsdp import MixedPrecision

from crate_mae.batches.data_module import ImageDataModule
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
from crate_mae.training.config import RunConfig, TrainerConfig
from crate_mae.training.metrics_log import MetricsLog
from crate_mae.training.nonfinite import NonFiniteError
from crate_mae.training.run_folder import last_metrics, last_step, log_file, write_facts
from crate_mae.training.speed import Speed, progress_callbacks
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


@dataclass(frozen=True, kw_only=True)
class Links:
    """What a training module asks of the session around it."""

    last_checkpoint: Callable[[], str | None]
    stop_wanted: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a kind of run brings along: everything else is the same for all of them."""

    config: RunConfig
    open_data: Callable[[int], ImageDataModule]
    """The data module for so many devices."""
    build: Callable[[ImageDataModule, Links], TrainingModule]
    """The module to train, called with all generators seeded."""
    monitor: Monitor
    """Which epoch is the best one."""
    callbacks: Sequence[Callback] = ()
    announce: Callable[[ImageDataModule], None] = lambda _: None
    """Logs what is particular to this kind of run."""
    facts: Callable[[], dict[str, Any]] = dict
    """What else is known of the data."""
    conclude: Callable[[torch.device], dict[str, float]] = lambda _: {}
    """Further metrics of a finished run, measured by the main process."""


def conduct(
    plan: Plan,
    folder: Path,
    *,
    resume: bool,
    changes: Sequence[str],
    stop_after: int | None,
    command: list[str] | None,
) -> RunSummary:
    """How this session of a run ended; everything is checked before anything is written."""
    started = perf_counter()
    config, stop = plan.config, StopSignals()
    concluded: dict[str, float] = {}
    with quiet_libraries(), float32_products(tf32=config.trainer.tf32):
        parts = _assemble(plan, folder, stop_after=stop_after, stop=stop)
        data = plan.open_data(parts.trainer.world_size)
        data.open()
        data.keep_on(parts.trainer.strategy.root_device)
        seed_everything(config.seed, verbose=False)
        links = Links(
            last_checkpoint=lambda: parts.checkpoints.last_saved, stop_wanted=lambda: stop.wanted
        )
        module = plan.build(data, links)
        if is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
        with log_file(folder):
            with stop:
                for change in changes:
                    logger.info("changed since this run began: %s", change)
                if is_main_process():
                    facts = {**data.facts(), **plan.facts()}
                    write_facts(config, folder, facts, command=command, resume=resume)
                    _announce(config, data, parts.trainer)
                    plan.announce(data)
                finished = _fit(parts, module, data, folder, resume=resume)
            if finished and is_main_process():
                concluded = plan.conclude(parts.trainer.strategy.root_device)
    summary = RunSummary(
        folder=folder,
        finished=finished,
        step=parts.trainer.global_step,
        metrics={**last_metrics(folder), **concluded},
        seconds=perf_counter() - started,
    )
    if is_main_process() and finished and not (folder / "summary.json").exists():
        facts = {
            "step": summary.step,
            "seconds_of_last_session": round(summary.seconds, 1),
            "metrics": summary.metrics,
        }
        write_atomically(folder / "summary.json", json.dumps(facts, indent=2) + "\n")
    return summary


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


# -- assembling -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Parts:
    trainer: Trainer
    metrics: MetricsLog
    checkpoints: Checkpoints


def _assemble(plan: Plan, folder: Path, *, stop_after: int | None, stop: StopSignals) -> _Parts:
    config = plan.config
    settings, record = config.trainer, config.record
    speed = Speed(epochs=config.optim.epochs)
    checkpoints = Checkpoints(folder, record, monitor=plan.monitor, stop_after=stop_after)
    metrics = MetricsLog(folder)
    devices = settings.devices
    build = partial(
        Trainer,
        accelerator=settings.accelerator,
        devices=int(devices) if isinstance(devices, str) and devices.isdigit() else devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(settings),
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        deterministic=settings.deterministic or None,
        max_epochs=config.optim.epochs,
        log_every_n_steps=record.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,  # not the working directory, where runs would meet
        logger=[
            metrics,
            TensorBoardLogger(folder, name="tensorboard", version="", purge_step=last_step(folder)),
        ],
        callbacks=[stop, speed, *progress_callbacks(speed), *plan.callbacks, checkpoints],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=sys.stderr.isatty(),
    )
    try:
        trainer = build()
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"trainer settings do not fit this machine: {error}") from error
    return _Parts(trainer=trainer, metrics=metrics, checkpoints=checkpoints)


def _strategy(settings: TrainerConfig) -> str | Strategy:
    """The strategy, with sharded parameters kept in float32 (Lightning's mixed default is bf16)."""
    if settings.strategy != "fsdp" or settings.precision == "32-true":
        return settings.strategy
    wide = torch.float32
    whole = MixedPrecision(param_dtype=wide, reduce_dtype=wide, buffer_dtype=wide)
    return FSDPStrategy(mixed_precision=whole, state_dict_type="full")


def _fit(
    parts: _Parts, module: TrainingModule, data: ImageDataModule, folder: Path, *, resume: bool
) -> bool:
    """Whether training came to its end."""
    step = last_step(folder) if resume else None
    checkpoint = None if step is None else folder / "checkpoints" / LAST
    if resume:
        parts.metrics.rewind(step or 0)
        logger.info("resuming %s at step %d", folder, step or 0)
    if checkpoint is not None:
        parts.checkpoints.last_saved = str(checkpoint)
    try:
        parts.trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (StopRequestedError, SIGTERMException):
        saved = last_step(folder)
        logger.info("stopped; last saved at step %s", "none" if saved is None else saved)
        return False
    except NonFiniteError as error:
        if is_main_process():
            write_atomically(folder / "nonfinite.json", json.dumps(error.report, indent=2) + "\n")
        logger.info("stopped by a number that is not finite: see nonfinite.json")
        raise
    return True


def _announce(config: RunConfig, data: ImageDataModule, trainer: Trainer) -> None:
    optim, world = config.optim, trainer.world_size
    steps = data.num_samples // optim.batch_size
    logger.info(
        "%d images, batch %d (%d devices x %d accumulated x %d), %d steps x %d epochs = %d steps,"
        " %d samples seen",
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
    used = world if trainer.strategy.root_device.type == "cuda" else 0
    idle = torch.cuda.device_count() - used
    if torch.cuda.is_available() and idle > 0 and config.trainer.num_nodes == 1:
        logger.warning("%d GPUs stay idle; use --trainer.devices auto for all", idle)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Lightning's notices about itself off; its warnings about our own choices too."""
    names = ("lightning.pytorch", "lightning.fabric")
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
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
