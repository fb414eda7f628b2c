"""Supervised training, from pre-trained weights or from nothing: of images, or of pixels."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import Dataset

from crate_mae.batches.data_module import BatchKind, ImageDataModule
from crate_mae.common.files import user_path
from crate_mae.common.progress import progress_bar
from crate_mae.evaluation.backbones import load_backbone
from crate_mae.models.backbone import Backbone
from crate_mae.models.config import ModelConfig, Preprocess, size_fault
from crate_mae.models.pools import head_width
from crate_mae.sources.base import ImageSource
from crate_mae.training.callbacks import is_main_process
from crate_mae.training.classify_task import ClassifyTask
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.dense_images import DenseImages
from crate_mae.training.head_start import fit_head
from crate_mae.training.labelled_images import LabelledImages
from crate_mae.training.run_folder import (
    Start,
    changed_keys,
    check_data_given,
    check_start,
    continuing,
    last_step,
    load_config_values,
    recorded_preprocess,
    recorded_start,
)
from crate_mae.training.segment_task import SegmentTask
from crate_mae.training.session import (
    RunSummary,
    Session,
    batch_per_device,
    training_environment,
)
from crate_mae.training.short_runs import opened_to_fit
from crate_mae.training.supervised_module import SupervisedModule
from crate_mae.training.trackers import check_followable

Images = LabelledImages | DenseImages
TASKS: dict[str, Any] = {"classify": ClassifyTask(), "segment": SegmentTask()}
"""What the runs of each task do differently, by its name in the settings."""

logger = logging.getLogger(__name__)


def finetune(
    config: FinetuneConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    command: list[str] | None = None,
    dataset: Dataset[Any] | ImageSource | None = None,
    test_dataset: Dataset[Any] | ImageSource | None = None,
    loggers: Sequence[Logger] = (),
) -> RunSummary:
    """How a supervised run ended; everything else is in the run folder.

    It starts from `config.weights`, of any kind, or else from a freshly drawn `config.model`, and
    trains what `config.task` names: a classifier, or a segmenter on masks. `resume` continues the
    run in `folder` exactly where it was, without those weights. `stop_after` saves and leaves after
    so many optimiser steps. Python datasets of (image, label) pairs replace the sources of a
    classifier's configuration, both together. `loggers` of Lightning are given all that
    `trainer.loggers` are, beside them.

    Where there are fewer images than a batch, batch and rate are adapted (`fitted_to_images`). At
    the end the test images are used once and `evaluation.json` is written. Everything is
    checked before anything is written. Raises FileExistsError when `folder` is taken,
    FileNotFoundError when there is nothing to resume or there are no weights, ValueError for
    settings, weights or data that do not fit, FolderInUseError when another process writes to
    `folder`, NonFiniteError, TooManyBrokenImagesError.
    """
    folder = user_path(folder)
    check_followable(config)
    if resume and config.model is None:
        recorded = load_config_values(folder).get("model")
        config = replace(config, model=ModelConfig.from_dict(recorded) if recorded else None)
    origin, start = None, None
    if config.weights is not None and not (resume and last_step(folder) is not None):
        origin, sha256 = load_backbone(config.weights)
        start = Start(weights=config.weights, sha256=sha256)
        if resume:
            start.check_same(recorded_start(folder), folder)
    config = resolved(config, origin)
    task = TASKS[config.task]
    changes = check_start(config, folder, resume=resume, again="--weights")
    if resume:
        check_data_given(folder, dataset)
    with (
        continuing(folder, config.data.source) if resume else nullcontext(),
        training_environment(config),
        Session(
            config,
            folder,
            monitor=task.monitor,
            stop_after=stop_after,
            loggers=loggers,
        ) as session,
    ):
        images = task.open(config, dataset, test_dataset)
        if origin is not None and not config.new_head:
            task.check_head(origin, images, config)
        preprocess = recorded_preprocess(folder) if resume else None
        if preprocess is None and origin is not None:
            preprocess = replace(origin.preprocess, size=config.image_hw or origin.preprocess.size)

        def data_of(asked: FinetuneConfig) -> ImageDataModule:
            kind = task.batches(asked, images, batch_per_device(asked, session.world_size))
            return _data_module(asked, images, kind, preprocess, session)

        config, data = opened_to_fit(config, data_of, world_size=session.world_size, resume=resume)
        data.keep_on(session.device)
        seed_everything(config.seed, verbose=False)
        model = task.model(config, origin, images)
        model.preprocess = data.preprocess
        head = None
        if config.head_start == "probe" and not (resume and last_step(folder) is not None):
            head = fit_head(model.to(session.device), images.train, seed=config.seed)
        module = _module(config, task, model, session)
        with session.recording(
            config,
            data,
            facts=images.facts(),
            resume=resume,
            start=start,
            changes=changes,
            command=command,
        ):
            if is_main_process():
                _announce(config, task, images, data)
                if head is not None:
                    logger.info("%s", head)
            finished = session.fit(module, data, resume=resume)
            test = {}
            if finished and is_main_process():
                test = task.conclude(config, folder, images, session.device)
                session.follow_up(test)
        return session.summary(finished=finished, further=test)


def resolved(config: FinetuneConfig, origin: Backbone | None) -> FinetuneConfig:
    """The configuration with its architecture filled in, from the weights or by `image_size`.

    Weights of a ViT-MAE make it a run of that kind. Raises ValueError when there is neither
    architecture nor weights, when they disagree, and for settings that do not suit the
    architecture.
    """
    if origin is not None and origin.match is not None:
        config = replace(config, vitmae=origin.match)
    elif origin is not None and config.vitmae is not None:
        raise ValueError(f"{config.weights} holds no ViT-MAE: leave vitmae out")
    model = config.model
    if origin is not None:
        if model is not None:
            differing = changed_keys(origin.config.to_dict(), model.to_dict(), "model.")
            if differing:
                raise ValueError(
                    f"the weights in {config.weights} have another architecture:"
                    f" {'; '.join(differing)}. Leave the model section out to take theirs"
                )
        model = origin.config
        if config.data.mean is not None:
            raise ValueError(
                "the weights bring the mean and std that their images had: leave data.mean and"
                " data.std out"
            )
    if model is None:
        raise ValueError(
            "name weights to fine-tune, or an architecture to train from scratch (--from-scratch)"
        )
    if config.image_hw is not None:
        fault = size_fault(config.image_hw, model.patch_hw)
        if fault:
            raise ValueError(f"image_size: {fault}")
        if config.vitmae is not None and config.image_hw != model.image_hw:
            raise ValueError(
                f"a ViT-MAE takes images of its own size, {model.image_hw}, only: image_size"
                f" {config.image_hw} cannot be had (--image_size null takes its own)"
            )
        if config.weights is None:
            model = replace(model, image_size=config.image_hw)
    head_width(config.pool, model)  # raises where the two do not fit
    return replace(config, model=model)


def _data_module(
    config: FinetuneConfig,
    images: Images,
    kind: BatchKind,
    preprocess: Preprocess | None,
    session: Session,
) -> ImageDataModule:
    assert config.model is not None
    # Which images they are has been decided: nothing more is cut or held out.
    loading = replace(config.data, limit=None, val_limit=None, val_share=0.0)
    return ImageDataModule(
        loading,
        model=config.model,
        kind=kind,
        size=None if preprocess is None else preprocess.size,
        batch_size=batch_per_device(config, session.world_size),
        accumulate=config.trainer.accumulate,
        world_size=session.world_size,
        seed=config.seed,
        dataset=images.train,
        val_dataset=images.val,
        preprocess=preprocess,
        progress=progress_bar if is_main_process() else None,
    )


def _module(config: FinetuneConfig, task: Any, model: Any, session: Session) -> SupervisedModule:
    if config.trainer.recompute:
        model.recompute_layers()
    if config.trainer.compile:
        cast("nn.Module", model).compile()
    module: SupervisedModule = task.module(
        model,
        optim=config.optim,
        seed=config.seed,
        last_checkpoint=session.last_checkpoint,
        stop_wanted=session.stop_wanted,
    )
    return module


def _announce(config: FinetuneConfig, task: Any, images: Images, data: ImageDataModule) -> None:
    logger.info(
        "%s; %d images validate, %d test at the end; %s",
        task.announcement(images), 0 if images.val is None else len(images.val), len(images.test),
        f"from {config.weights}" if config.weights is not None else "from scratch",
    )  # fmt: skip
    optim, ema = config.optim, config.optim.ema
    frozen = config.task == "segment" and config.segment.freeze
    if optim.layer_decay < 1 and config.model is not None and not frozen:
        lowest = optim.peak_lr * optim.layer_decay ** (config.model.depth + 1)
        logger.info("learning rates from %.3g (embedding) to %.3g (head)", lowest, optim.peak_lr)
    steps = data.num_samples // optim.batch_size * optim.epochs
    if ema is not None and 2 / (1 - ema) > steps:
        logger.warning(
            "the average of the weights (optim.ema %g) reaches back about %d steps, the whole run"
            " has %d: it will keep much of the first ones",
            ema, round(1 / (1 - ema)), steps,
        )  # fmt: skip
