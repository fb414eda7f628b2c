"""From a resolved configuration to a finished run folder."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.fsdp import MixedPrecision
from torch.utils.data import Dataset

from crate_mae.data.module import MaskedDataModule
from crate_mae.data.sources import ImageSource
from crate_mae.files import write_atomically
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.tensors import check_match
from crate_mae.models.weights import load_autoencoder
from crate_mae.progress import counter
from crate_mae.training.callbacks import (
    LAST,
    AtomicCheckpointIO,
    Checkpoints,
    Reconstructions,
    Speed,
    StopRequestedError,
    StopSignals,
    is_main_process,
    progress_callbacks,
)
from crate_mae.training.config import PretrainConfig, TrainerConfig
from crate_mae.training.folder import (
    changed_keys,
    check_start,
    last_metrics,
    last_step,
    log_file,
    recorded_preprocess,
    write_facts,
)
from crate_mae.training.guard import NonFiniteError
from crate_mae.training.masked import MaskedCompletion
from crate_mae.training.records import MetricsLog

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


def pretrain(
    config: PretrainConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    init_from: str | Path | None = None,
    stop_after: int | None = None,
    command: list[str] | None = None,
    dataset: Dataset[Any] | ImageSource | None = None,
    val_dataset: Dataset[Any] | ImageSource | None = None,
) -> RunSummary:
    """How masked pre-training ended; everything else is in the run folder.

    `resume` continues the run in `folder` exactly where it was (from the start when it had saved
    nothing yet); only what leaves the result alone may differ then: hardware, records, loading.
    `init_from` starts a new run from the weights of another. `stop_after` saves and leaves after so
    many optimiser steps. A Python `dataset` (images, or images with labels) replaces the source of
    the configuration.

    Everything is checked before anything is written. Raises FileExistsError when `folder` is taken,
    FileNotFoundError when there is nothing to resume, ValueError for settings or data that do not
    fit, NonFiniteError when training breaks down, TooManyBrokenImagesError.
    """
    folder = Path(folder)
    started = perf_counter()
    changes = check_start(config, folder, resume=resume, init_from=init_from)
    origin = None if init_from is None else _starting_weights(config, init_from)
    stop = StopSignals()
    with _quiet_libraries():
        parts = _assemble(config, folder, stop_after=stop_after, stop=stop)
        world_size = parts.trainer.world_size
        data = MaskedDataModule(
            config.data,
            model=config.model,
            masking=config.masking,
            batch_size=batch_per_device(config, world_size),
            accumulate=config.trainer.accumulate,
            world_size=world_size,
            seed=config.seed,
            dataset=dataset,
            val_dataset=val_dataset,
            preprocess=recorded_preprocess(folder) if resume else None,
            progress=counter if is_main_process() else None,
        )
        data.open()
        module = _module(config, data, parts, origin=origin, stop=stop)
        if is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
        with log_file(folder), stop:
            for change in changes:
                logger.info("changed since this run began: %s", change)
            if is_main_process():
                write_facts(config, folder, data, command=command, resume=resume)
            _announce(config, data, parts.trainer)
            finished = _fit(parts, module, data, folder, resume=resume)
    metrics = last_metrics(folder)
    summary = RunSummary(
        folder=folder,
        finished=finished,
        step=parts.trainer.global_step,
        metrics=metrics,
        seconds=perf_counter() - started,
    )
    done_before = (folder / "summary.json").exists()
    if is_main_process() and finished and not done_before:
        facts = {
            "step": summary.step,
            "seconds_of_last_session": round(summary.seconds, 1),
            "metrics": metrics,
        }
        write_atomically(folder / "summary.json", json.dumps(facts, indent=2) + "\n")
    return summary


def batch_per_device(config: PretrainConfig, world_size: int) -> int:
    """Images per device and batch; ValueError when the effective batch cannot be shared evenly."""
    shares = world_size * config.trainer.accumulate
    if config.optim.batch_size % shares:
        good = max(shares, config.optim.batch_size // shares * shares)
        raise ValueError(
            f"optim.batch_size {config.optim.batch_size} cannot be shared by {world_size} devices x"
            f" {config.trainer.accumulate} accumulation steps; nearest {good}"
        )
    return config.optim.batch_size // shares


def _starting_weights(config: PretrainConfig, init_from: str | Path) -> CrateMAE:
    """The model to start from; ValueError when it computes something else than the new one."""
    source = load_autoencoder(init_from)
    with torch.device("meta"):
        wanted = CrateMAE(config.model)
    shapes = {key: tuple(value.shape) for key, value in source.state_dict().items()}
    check_match(shapes, wanted, origin=str(init_from))
    changes = changed_keys(source.config.to_dict(), config.model.to_dict(), "model.")
    free = ("model.image_size", "model.norm_pix_loss")
    fatal = [line for line in changes if not line.startswith(free)]
    if fatal:
        raise ValueError(
            f"the weights in {init_from} were trained with other settings: {'; '.join(fatal)}"
        )
    for line in changes:
        logger.warning("differs from the weights it starts from: %s", line)
    return source


# -- assembling -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Parts:
    trainer: Trainer
    metrics: MetricsLog
    checkpoints: Checkpoints


def _assemble(
    config: PretrainConfig, folder: Path, *, stop_after: int | None, stop: StopSignals
) -> _Parts:
    settings = config.trainer
    record = config.record
    speed = Speed(epochs=config.optim.epochs)
    checkpoints = Checkpoints(folder, record, stop_after=stop_after)
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
        callbacks=[
            stop,
            speed,
            *progress_callbacks(speed),
            Reconstructions(
                folder, every=record.reconstruct_epochs, count=record.reconstruct_images
            ),
            checkpoints,
        ],
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


def _module(
    config: PretrainConfig,
    data: MaskedDataModule,
    parts: _Parts,
    *,
    origin: CrateMAE | None,
    stop: StopSignals,
) -> MaskedCompletion:
    seed_everything(config.seed, verbose=False)
    model = CrateMAE(config.model)
    if origin is not None:
        model.load_state_dict(origin.state_dict())
    model.preprocess = data.preprocess
    if config.trainer.compile:
        model.compile()
    return MaskedCompletion(
        model,
        optim=config.optim,
        seed=config.seed,
        last_checkpoint=lambda: parts.checkpoints.last_saved,
        stop_wanted=lambda: stop.wanted,
    )


def _fit(
    parts: _Parts, module: MaskedCompletion, data: MaskedDataModule, folder: Path, *, resume: bool
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


def _announce(config: PretrainConfig, data: MaskedDataModule, trainer: Trainer) -> None:
    optim, world = config.optim, trainer.world_size
    steps = data.num_samples // optim.batch_size
    if not is_main_process():
        return
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
    if steps * optim.epochs < 1000:
        logger.warning(
            "%d optimiser steps in all is very few for masked pre-training; more epochs or a"
            " smaller batch usually help",
            steps * optim.epochs,
        )
    idle = torch.cuda.device_count() - world
    if torch.cuda.is_available() and idle > 0 and config.trainer.num_nodes == 1:
        logger.warning("%d GPUs stay idle; use --trainer.devices auto for all", idle)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Lightning's notices about itself off; its warnings about our own choices too."""
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*ended before the epoch ended.*")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        warnings.filterwarnings("ignore", message="Total length of `.*` across ranks is zero.*")
        warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined.*")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
