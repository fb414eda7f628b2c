"""Pre-training: from a resolved configuration to a finished run folder."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn
from torch.utils.data import Dataset

from crate_mae.batches.crops import CropBatches
from crate_mae.batches.data_module import BatchKind, ImageDataModule
from crate_mae.batches.masked import MaskedBatches
from crate_mae.common.progress import progress_bar
from crate_mae.evaluation.backbones import build_autoencoder
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.backbone import MaskedAutoencoder
from crate_mae.models.config import Preprocess
from crate_mae.models.masks import num_kept
from crate_mae.sources.base import ImageSource
from crate_mae.training.callbacks import Monitor, is_main_process
from crate_mae.training.config import PretrainConfig
from crate_mae.training.masked_completion import MaskedCompletion
from crate_mae.training.online import OnlineMeasures
from crate_mae.training.rate_term import coding_rate_of
from crate_mae.training.reconstructions import Reconstructions
from crate_mae.training.run_folder import changed_keys, check_start, recorded_preprocess
from crate_mae.training.self_distillation import self_distillation, view_network
from crate_mae.training.session import (
    RunSummary,
    Session,
    batch_per_device,
    training_environment,
)
from crate_mae.training.training_module import TrainingModule
from crate_mae.vitmae.model import vitmae_config
from crate_mae.weights.tensors import check_match
from crate_mae.weights.weights_folder import load_autoencoder

FEW_STEPS = 1000
"""Optimiser steps below which pre-training is warned of."""

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
) -> RunSummary:
    """How pre-training, by masks or by SimDINO, ended; everything else is in the run folder.

    `resume` continues the run in `folder` exactly where it was (from the start when it had saved
    nothing yet); only what leaves the result alone may differ then: hardware, records, loading.
    `init_from` starts a new masked run from the weights of another. `stop_after` saves and leaves
    after so many optimiser steps. A Python `dataset` (images, or images with labels) replaces the
    source of the configuration.

    Everything is checked before anything is written. Raises FileExistsError when `folder` is taken,
    FileNotFoundError when there is nothing to resume, ValueError for settings or data that do not
    fit, NonFiniteError when training breaks down, TooManyBrokenImagesError.
    """
    folder = Path(folder)
    _check_origin(config, init_from, resume=resume)
    changes = check_start(config, folder, resume=resume, again="--init-from")
    origin = None if init_from is None else _starting_weights(config, init_from)
    with training_environment(config):
        session = Session(
            config,
            folder,
            monitor=Monitor(metric="val/loss"),
            callbacks=_callbacks(config, folder),
            stop_after=stop_after,
        )
        data = ImageDataModule(
            config.data,
            model=config.model,
            kind=_batches(config),
            batch_size=batch_per_device(config, session.world_size),
            accumulate=config.trainer.accumulate,
            world_size=session.world_size,
            seed=config.seed,
            dataset=dataset,
            val_dataset=val_dataset,
            preprocess=recorded_preprocess(folder) if resume else None,
            progress=progress_bar if is_main_process() else None,
            whole_steps=config.looks_ahead,
        )
        data.open()
        data.keep_on(session.device)
        seed_everything(config.seed, verbose=False)
        module = _module(config, origin, data.preprocess, session)
        with session.recording(data, resume=resume, changes=changes, command=command):
            if is_main_process():
                _warn_of_few_steps(config, data)
            finished = session.fit(module, data, resume=resume)
        return session.summary(finished=finished)


def _check_origin(config: PretrainConfig, init_from: str | Path | None, *, resume: bool) -> None:
    """Raise ValueError for settings that exclude each other."""
    if resume and init_from is not None:
        raise ValueError("--resume continues a run with its own weights; leave --init-from out")
    if config.method == "simdino" and init_from is not None:
        raise ValueError("method simdino starts from fresh weights: leave --init-from out")
    if config.vitmae is not None:
        if init_from is not None:
            raise ValueError("a ViT-MAE baseline starts from fresh weights: leave --init-from out")
        vitmae_config(config.model, config.vitmae)


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


def model_of(
    config: PretrainConfig, origin: CrateMAE | None, preprocess: Preprocess
) -> MaskedAutoencoder:
    """The model that a run begins with: weights of `origin`, else random ones."""
    model = build_autoencoder(config.model, vitmae=config.vitmae, seed=config.seed)
    if origin is not None:
        cast("nn.Module", model).load_state_dict(origin.state_dict())
    model.preprocess = preprocess
    return model


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
    return [sheets, measures()]


def _module(
    config: PretrainConfig, origin: CrateMAE | None, preprocess: Preprocess, session: Session
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
    kept = num_kept(config.model.num_patches, config.masking.ratio)
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
