"""Masked pre-training: from a resolved configuration to a finished run folder."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.masked import MaskedBatches
from crate_mae.common.progress import progress_bar
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import Preprocess
from crate_mae.models.masks import num_kept
from crate_mae.sources.base import ImageSource
from crate_mae.training.callbacks import Monitor, is_main_process
from crate_mae.training.config import PretrainConfig
from crate_mae.training.masked_completion import MaskedCompletion
from crate_mae.training.reconstructions import Reconstructions
from crate_mae.training.run_folder import changed_keys, check_start, recorded_preprocess
from crate_mae.training.session import Links, Plan, RunSummary, batch_per_device, conduct
from crate_mae.vitmae.model import ViTMAE, build_vitmae, twin_config
from crate_mae.weights.tensors import check_match
from crate_mae.weights.weights_folder import load_autoencoder

__all__ = ["RunSummary", "batch_per_device", "pretrain"]

FEW_STEPS = 1000
"""Optimiser steps below which masked pre-training is warned of."""

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
    if resume and init_from is not None:
        raise ValueError("--resume continues a run with its own weights; leave --init-from out")
    if config.vitmae is not None:
        if init_from is not None:
            raise ValueError("a ViT-MAE twin starts from fresh weights: leave --init-from out")
        twin_config(config.model, config.vitmae)
    changes = check_start(config, folder, resume=resume, again="--init-from")
    origin = None if init_from is None else _starting_weights(config, init_from)
    record = config.record

    def open_data(world_size: int) -> ImageDataModule:
        return ImageDataModule(
            config.data,
            model=config.model,
            kind=MaskedBatches(masking=config.masking),
            batch_size=batch_per_device(config, world_size),
            accumulate=config.trainer.accumulate,
            world_size=world_size,
            seed=config.seed,
            dataset=dataset,
            val_dataset=val_dataset,
            preprocess=recorded_preprocess(folder) if resume else None,
            progress=progress_bar if is_main_process() else None,
        )

    def build(data: ImageDataModule, links: Links) -> MaskedCompletion:
        return _module(config, data, links, origin=origin)

    plan = Plan(
        config=config,
        open_data=open_data,
        build=build,
        monitor=Monitor(metric="val/loss"),
        callbacks=[
            Reconstructions(
                folder, every=record.reconstruct_epochs, count=record.reconstruct_images
            )
        ],
        announce=lambda data: _warn_of_few_steps(config, data),
    )
    return conduct(
        plan, folder, resume=resume, changes=changes, stop_after=stop_after, command=command
    )


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


def _module(
    config: PretrainConfig, data: ImageDataModule, links: Links, *, origin: CrateMAE | None
) -> MaskedCompletion:
    model = model_of(config, origin, data.preprocess)
    if config.trainer.recompute:
        model.recompute_layers()
    if config.trainer.compile:
        model.compile()
    kept = num_kept(config.model.num_patches, config.masking.ratio)
    return MaskedCompletion(
        model,
        kept=kept if config.visible_only else None,
        optim=config.optim,
        seed=config.seed,
        last_checkpoint=links.last_checkpoint,
        stop_wanted=links.stop_wanted,
    )


def model_of(
    config: PretrainConfig, origin: CrateMAE | None, preprocess: Preprocess
) -> CrateMAE | ViTMAE:
    """The model that a run begins with: weights of `origin`, else random ones."""
    if config.vitmae is not None:
        twin = twin_config(config.model, config.vitmae)
        return build_vitmae(twin, preprocess=preprocess, seed=config.seed).train()
    model = CrateMAE(config.model)
    if origin is not None:
        model.load_state_dict(origin.state_dict())
    model.preprocess = preprocess
    return model


def _warn_of_few_steps(config: PretrainConfig, data: ImageDataModule) -> None:
    steps = data.num_samples // config.optim.batch_size * config.optim.epochs
    if steps < FEW_STEPS:
        logger.warning(
            "%d optimiser steps in all is very few for masked pre-training; more epochs or a"
            " smaller batch usually help",
            steps,
        )
