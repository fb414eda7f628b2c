"""From a resolved configuration to a finished run folder."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import Dataset

from crate_mae.data.module import MaskedDataModule
from crate_mae.data.sources import ImageSource
from crate_mae.environment import environment
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.tensors import load_exactly
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
from crate_mae.training.config import PretrainConfig
from crate_mae.training.guard import NonFiniteError
from crate_mae.training.masked import MaskedCompletion
from crate_mae.training.records import MetricsLog, read_metrics, write_atomically

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"


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

    `resume` continues the run in `folder` exactly where it was; `init_from` starts a new run from
    the weights of another. `stop_after` saves and leaves after so many optimiser steps. A Python
    `dataset` (images, or images with labels) replaces the configuration's source.

    Everything is checked before anything is written. Raises FileExistsError when `folder` is taken,
    FileNotFoundError when there is nothing to resume, ValueError for settings or data that do not
    fit, NonFiniteError when training breaks down, TooManyBrokenImagesError.
    """
    folder = Path(folder)
    started = perf_counter()
    _check_folder(folder, resume=resume)
    if resume and init_from is not None:
        raise ValueError("--resume continues a run with its own weights; leave --init-from out")
    stop = StopSignals()
    with _quiet_libraries():
        parts = _assemble(config, folder, stop_after=stop_after, stop=stop)
        data = MaskedDataModule(
            config.data,
            model=config.model,
            masking=config.masking,
            batch_size=batch_per_device(config, parts.trainer.world_size),
            accumulate=config.trainer.accumulate,
            seed=config.seed,
            dataset=dataset,
            val_dataset=val_dataset,
            progress=counter if is_main_process() else None,
        )
        data.open()
        module = _module(config, data, parts, init_from=init_from, stop=stop)
        if is_main_process():
            _write_facts(config, folder, data, command=command, resume=resume)
        with _log_file(folder):
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
    if is_main_process() and finished:
        facts = {"step": summary.step, "seconds": round(summary.seconds, 1), "metrics": metrics}
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


def load_config_values(run: str | Path) -> dict[str, Any]:
    """The nested values of a run folder's configuration; FileNotFoundError when it is no run."""
    path = Path(run) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no {CONFIG}")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
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


def last_metrics(folder: Path) -> dict[str, float]:
    """The last value of every metric in a run folder, without step and time."""
    latest: dict[str, float] = {}
    for record in read_metrics(folder):
        latest.update(record)
    return {key: value for key, value in latest.items() if key not in ("step", "time")}


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
    speed = Speed(epochs=config.optim.epochs, batch_size=config.optim.batch_size)
    checkpoints = Checkpoints(folder, record, stop_after=stop_after)
    metrics = MetricsLog(folder)
    devices = settings.devices
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=int(devices) if isinstance(devices, str) and devices.isdigit() else devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        deterministic=settings.deterministic or None,
        max_epochs=config.optim.epochs,
        log_every_n_steps=record.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=[metrics, TensorBoardLogger(folder, name="tensorboard", version="")],
        callbacks=[
            stop,
            speed,
            checkpoints,
            Reconstructions(
                folder, every=record.reconstruct_epochs, count=record.reconstruct_images
            ),
            *progress_callbacks(speed),
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=sys.stderr.isatty(),
    )
    return _Parts(trainer=trainer, metrics=metrics, checkpoints=checkpoints)


def _module(
    config: PretrainConfig,
    data: MaskedDataModule,
    parts: _Parts,
    *,
    init_from: str | Path | None,
    stop: StopSignals,
) -> MaskedCompletion:
    seed_everything(config.seed, verbose=False)
    model = CrateMAE(config.model)
    if init_from is not None:
        source = load_autoencoder(init_from)
        load_exactly(model, source.state_dict(), origin=str(init_from))
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
    checkpoint = folder / "checkpoints" / LAST if resume else None
    if checkpoint is not None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        parts.metrics.rewind(int(state["global_step"]))
        parts.checkpoints.last_saved = str(checkpoint)
        logger.info("resuming %s at step %d", folder, state["global_step"])
        del state
    try:
        parts.trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (StopRequestedError, SIGTERMException):
        logger.info("stopped and saved at step %d", parts.trainer.global_step)
        return False
    except NonFiniteError as error:
        if is_main_process():
            write_atomically(folder / "nonfinite.json", json.dumps(error.report, indent=2) + "\n")
        logger.error("%s", error)
        raise
    return True


# -- the run folder -----------------------------------------------------------------------------


def _check_folder(folder: Path, *, resume: bool) -> None:
    if not is_main_process():
        return
    if resume:
        if not (folder / "checkpoints" / LAST).is_file():
            raise FileNotFoundError(
                f"nothing to resume in {folder}: it has no checkpoints/{LAST}; start a new run"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists and is never overwritten; continue it with --resume {folder}, or"
            " name another folder with --out"
        )


def _write_facts(
    config: PretrainConfig,
    folder: Path,
    data: MaskedDataModule,
    *,
    command: list[str] | None,
    resume: bool,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = data.train_source.fingerprint()
    facts = {
        "source": data.train_source.address,
        "split": data.train_source.split,
        "images": data.num_samples,
        "validation_images": len(data.val_source) if data.val_source is not None else 0,
        "fingerprint": fingerprint,
        "preprocess": data.preprocess.to_dict(),
        "unreadable": data.broken,
    }
    known = folder / "data.json"
    if resume and known.exists():
        before = json.loads(known.read_text(encoding="utf-8"))
        if before.get("fingerprint") != fingerprint:
            logger.warning("the data have changed since this run began: %s", facts["source"])
    words = " ".join(command) if command is not None else "(called from Python)"
    old = (folder / "command.txt").read_text() if (folder / "command.txt").exists() else ""
    write_atomically(folder / "command.txt", f"{old}{words}\n")
    write_atomically(
        folder / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    )
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    write_atomically(known, json.dumps(facts, indent=2) + "\n")


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


# -- around the run -------------------------------------------------------------------------------


@contextmanager
def _log_file(folder: Path) -> Iterator[None]:
    """Everything the package logs also goes to the run's `log.txt`."""
    root = logging.getLogger("crate_mae")
    level = root.level
    handlers: list[logging.Handler] = []
    if is_main_process():
        handlers.append(logging.FileHandler(folder / "log.txt", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)


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
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero.*")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
