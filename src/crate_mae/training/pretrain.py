"""Pre-training: from a resolved configuration to a finished run folder."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import Dataset

from crate_mae.batches.crops import CropBatches
from crate_mae.batches.data_module import BatchKind, ImageDataModule
from crate_mae.batches.masked import MaskedBatches
from crate_mae.common.files import user_path
from crate_mae.common.progress import progress_bar
from crate_mae.evaluation.answers import FEW_STEPS
from crate_mae.evaluation.backbones import build_autoencoder
from crate_mae.models.backbone import MaskedAutoencoder
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import ImageSource
from crate_mae.training.callbacks import Monitor, is_main_process
from crate_mae.training.config import PretrainConfig
from crate_mae.training.masked_completion import MaskedCompletion
from crate_mae.training.online import OnlineMeasures
from crate_mae.training.rate_term import coding_rate_of, loss_in_words
from crate_mae.training.reconstructions import Reconstructions
from crate_mae.training.run_folder import (
    check_data_given,
    check_start,
    continuing,
    last_step,
    recorded_preprocess,
    recorded_start,
)
from crate_mae.training.self_distillation import self_distillation, view_network
from crate_mae.training.session import (
    RunSummary,
    Session,
    batch_per_device,
    training_environment,
)
from crate_mae.training.short_runs import opened_to_fit
from crate_mae.training.starting_weights import check_origin, start_of, starting_tensors
from crate_mae.training.trackers import check_followable
from crate_mae.training.training_module import TrainingModule

logger = logging.getLogger(__name__)


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
    loggers: Sequence[Logger] = (),
) -> RunSummary:
    """How pre-training, by masks or by SimDINO, ended; everything else is in the run folder.

    `resume` continues the run in `folder` exactly where it was (from the start when it had saved
    nothing yet); only what leaves the result alone may differ then: hardware, records, loading.
    `init_from` starts a new masked run from the weights of another, whose architecture it must
    have, up to image size and channels (`starting_tensors`). Where there are fewer images than a
    batch, batch and rate are adapted (`fitted_to_images`). `stop_after` saves and leaves after so
    many optimiser steps. A Python `dataset` (images, or images with labels) replaces the source of
    the configuration. `loggers` of Lightning are given all that `trainer.loggers` are, beside them.

    Everything is checked before anything is written. Raises FileExistsError when `folder` is taken,
    FileNotFoundError when there is nothing to resume, ValueError for settings or data that do not
    fit, FolderInUseError when another process writes to `folder`, NonFiniteError when training
    breaks down, TooManyBrokenImagesError.
    """
    folder = user_path(folder)
    check_followable(config)
    check_origin(config, init_from, resume=resume)
    changes = check_start(config, folder, resume=resume, again="--init-from")
    if resume:
        check_data_given(folder, dataset)
    before = recorded_start(folder) if resume and last_step(folder) is None else None
    if before is not None:  # it was stopped before it saved anything, so it begins anew
        init_from = before.weights
    start = None if init_from is None else start_of(init_from)
    if start is not None:
        start.check_same(before, folder)
    origin = None if init_from is None else starting_tensors(config, init_from)
    with ExitStack() as stack:
        if resume:
            stack.enter_context(continuing(folder, config.data.source))
        stack.enter_context(training_environment(config))
        session = Session(
            config,
            folder,
            monitor=Monitor(metric="val/loss"),
            callbacks=_callbacks(config, folder),
            stop_after=stop_after,
            loggers=loggers,
        )
        stack.enter_context(session)
        config, data = opened_to_fit(
            config,
            partial(
                _data_module,
                world_size=session.world_size,
                dataset=dataset,
                val_dataset=val_dataset,
                preprocess=recorded_preprocess(folder) if resume else None,
            ),
            world_size=session.world_size,
            resume=resume,
        )
        data.keep_on(session.device)
        seed_everything(config.seed, verbose=False)
        module = _module(config, origin, data.preprocess, session)
        with session.recording(
            config, data, resume=resume, start=start, changes=changes, command=command
        ):
            if is_main_process():
                logger.info("loss: %s", loss_in_words(config, data.batch_size))
                _warn_of_few_steps(config, data)
            finished = session.fit(module, data, resume=resume)
        return session.summary(finished=finished)


def model_of(
    config: PretrainConfig, origin: Mapping[str, Tensor] | None, preprocess: Preprocess
) -> MaskedAutoencoder:
    """The model that a run begins with: tensors of `origin`, else random ones."""
    model = build_autoencoder(config.model, vitmae=config.vitmae, seed=config.seed)
    if origin is not None:
        cast("nn.Module", model).load_state_dict(origin)
    model.preprocess = preprocess
    return model


def _data_module(
    config: PretrainConfig,
    *,
    world_size: int,
    dataset: Dataset[Any] | ImageSource | None,
    val_dataset: Dataset[Any] | ImageSource | None,
    preprocess: Preprocess | None,
) -> ImageDataModule:
    return ImageDataModule(
        config.data,
        model=config.model,
        kind=_batches(config),
        batch_size=batch_per_device(config, world_size),
        accumulate=config.trainer.accumulate,
        world_size=world_size,
        seed=config.seed,
        dataset=dataset,
        val_dataset=val_dataset,
        preprocess=preprocess,
        progress=progress_bar if is_main_process() else None,
        whole_steps=config.looks_ahead,
    )


def _batches(config: PretrainConfig) -> BatchKind:
    if config.method == "simdino":
        return CropBatches(crops=config.simdino.crops)
    return MaskedBatches(masking=config.masking)


def _callbacks(config: PretrainConfig, folder: Path) -> list[Callback]:
    record = config.record
    measures = partial(
        OnlineMeasures,
        every=record.measure_epochs,
        eps_squared=config.objective.eps_squared,
        seed=config.seed,
    )
    if config.method == "simdino":  # the loss is of class tokens
        return [measures(pool="cls", advice="lower simdino.eps or the learning rate")]
    sheets = Reconstructions(
        folder, every=record.reconstruct_epochs, count=record.reconstruct_images
    )
    gamma = config.objective.gamma
    more = f"raise objective.gamma above {gamma:g}" if gamma else "set objective.gamma to 0.1"
    return [sheets, measures(advice=f"{more} or lower the learning rate")]


def _module(
    config: PretrainConfig,
    origin: Mapping[str, Tensor] | None,
    preprocess: Preprocess,
    session: Session,
) -> TrainingModule:
    stopping = {"last_checkpoint": session.last_checkpoint, "stop_wanted": session.stop_wanted}
    if config.method == "simdino":
        network = view_network(config, preprocess)
        if config.trainer.recompute:
            network.backbone.recompute_layers()
        if config.trainer.compile:
            network.compile()
        return self_distillation(config, network, **stopping)
    model = model_of(config, origin, preprocess)
    if config.trainer.recompute:
        model.recompute_layers()
    if config.trainer.compile:
        cast("nn.Module", model).compile()
    masking = config.masking
    kept = masking.kept(config.model.grid) if masking.one_count else None
    return MaskedCompletion(
        model,
        coding_rate=coding_rate_of(config),
        layer=config.objective.layer,
        kept=kept if config.visible_only else None,
        optim=config.optim,
        seed=config.seed,
        **stopping,
    )


def _warn_of_few_steps(config: PretrainConfig, data: ImageDataModule) -> None:
    steps = data.num_samples // config.optim.batch_size * config.optim.epochs
    if steps < FEW_STEPS:
        logger.warning(
            "%d optimiser steps in all is very few for pre-training; more epochs or a"
            " smaller batch usually help",
            steps,
        )
