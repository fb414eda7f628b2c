"""Supervised training of a classifier, from pre-trained weights or from nothing."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import Dataset

from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.labelled import LabelledBatches
from crate_mae.batches.opening import TooFewImagesError
from crate_mae.common.progress import progress_bar
from crate_mae.evaluation.backbones import as_classifier, build_classifier, load_backbone
from crate_mae.models.backbone import Backbone, ImageClassifier
from crate_mae.models.config import ModelConfig, Preprocess, size_fault
from crate_mae.sources.base import ImageSource
from crate_mae.training.callbacks import Monitor, is_main_process
from crate_mae.training.classification import Classification
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.final_test import conclude_with_test
from crate_mae.training.labelled_images import LabelledImages, open_labelled
from crate_mae.training.run_folder import (
    changed_keys,
    check_start,
    continuing,
    last_step,
    load_config_values,
    recorded_preprocess,
)
from crate_mae.training.session import (
    RunSummary,
    Session,
    batch_per_device,
    training_environment,
)
from crate_mae.training.short_runs import fitted_to_images
from crate_mae.training.trackers import check_followable

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

    It starts from `config.weights`, an autoencoder or a classifier, or else from a freshly drawn
    `config.model`. `resume` continues the run in `folder` exactly where it was, without those
    weights. `stop_after` saves and leaves after so many optimiser steps. Python datasets of
    (image, label) pairs replace the sources of the configuration, both together. `loggers` of
    Lightning are given all that `trainer.loggers` are, beside them.

    Where there are fewer images than a batch, batch and rate are adapted (`fitted_to_images`). At
    the end the test images are classified once and `evaluation.json` is written. Everything is
    checked before anything is written. Raises FileExistsError when `folder` is taken,
    FileNotFoundError when there is nothing to resume or there are no weights, ValueError for
    settings, weights or data that do not fit, FolderInUseError when another process writes to
    `folder`, NonFiniteError, TooManyBrokenImagesError.
    """
    folder = Path(folder)
    check_followable(config)
    if resume and config.model is None:
        recorded = load_config_values(folder).get("model")
        config = replace(config, model=ModelConfig.from_dict(recorded) if recorded else None)
    origin = None
    if config.weights is not None and not (resume and last_step(folder) is not None):
        origin, _ = load_backbone(config.weights)
    asked, config = config, resolved(config, origin)
    changes = check_start(config, folder, resume=resume, again="--weights")
    with (
        continuing(folder, config.data.source) if resume else nullcontext(),
        training_environment(config),
        Session(
            config,
            folder,
            monitor=Monitor(metric="val/accuracy", higher_is_better=True),
            stop_after=stop_after,
            loggers=loggers,
        ) as session,
    ):
        images = open_labelled(
            config.data, seed=config.seed, dataset=dataset, test_dataset=test_dataset
        )
        if origin is not None and not config.new_head:
            check_classes(origin, images.class_names, config)
        preprocess = recorded_preprocess(folder) if resume else None
        if preprocess is None and origin is not None:
            preprocess = replace(origin.preprocess, size=config.image_hw or origin.preprocess.size)
        data = _data_module(config, images, preprocess, session.world_size)
        try:
            data.open()
        except TooFewImagesError as error:
            shares = session.world_size * config.trainer.accumulate
            smaller = fitted_to_images(asked, error.images, shares)
            if resume or smaller is asked:
                raise
            return finetune(
                smaller,
                folder,
                stop_after=stop_after,
                command=command,
                dataset=dataset,
                test_dataset=test_dataset,
                loggers=loggers,
            )
        data.keep_on(session.device)
        seed_everything(config.seed, verbose=False)
        model = _classifier(config, origin, images.class_names)
        model.preprocess = data.preprocess
        module = _module(config, model, session)
        with session.recording(
            data, facts=images.facts(), resume=resume, changes=changes, command=command
        ):
            if is_main_process():
                _announce(config, images, data)
            finished = session.fit(module, data, resume=resume)
            test = {}
            if finished and is_main_process():
                test = conclude_with_test(config, folder, images, session.device)
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
    return replace(config, model=model)


def check_classes(origin: Backbone, names: tuple[str, ...], config: FinetuneConfig) -> None:
    """Raise ValueError for weights of a classifier of other classes or another pool."""
    classifier = as_classifier(origin)
    if classifier is None:
        return
    if classifier.pool != config.pool:
        raise ValueError(
            f"the head of {config.weights} was trained on pool {classifier.pool!r}, not"
            f" {config.pool!r}: set pool, or new_head=true for another head"
        )
    known, count = classifier.class_names, classifier.head.out_features
    if known != names if known is not None else count != len(names):
        raise ValueError(
            f"{config.weights} is a classifier of {count} classes"
            f" ({_shortened(known)}), the images have {len(names)} ({_shortened(names)}): set"
            " new_head=true for another head, or start from pre-trained weights"
        )


def _shortened(names: tuple[str, ...] | None) -> str:
    if names is None:
        return "without names"
    return ", ".join(names[:3]) + (", ..." if names[3:] else "")


def check_pairs(config: FinetuneConfig, batch: int) -> None:
    """Raise ValueError where images are mixed in pairs and a batch on a device is odd."""
    if config.data.augment.mixes and batch % 2:
        raise ValueError(
            f"mixup and cutmix take images in pairs: {batch} per device and batch is odd; change"
            " optim.batch_size, or switch off data.augment.mixup and data.augment.cutmix"
        )


def _data_module(
    config: FinetuneConfig,
    images: LabelledImages,
    preprocess: Preprocess | None,
    world_size: int,
) -> ImageDataModule:
    assert config.model is not None
    batch, augment = batch_per_device(config, world_size), config.data.augment
    check_pairs(config, batch)
    # Which images they are has been decided: nothing more is cut or held out.
    loading = replace(config.data, limit=None, val_limit=None, val_share=0.0)
    return ImageDataModule(
        loading,
        model=config.model,
        kind=LabelledBatches(
            augment=augment,
            num_classes=len(images.class_names),
            drop_path=config.optim.drop_path,
        ),
        size=None if preprocess is None else preprocess.size,
        batch_size=batch,
        accumulate=config.trainer.accumulate,
        world_size=world_size,
        seed=config.seed,
        dataset=images.train,
        val_dataset=images.val,
        preprocess=preprocess,
        progress=progress_bar if is_main_process() else None,
    )


def _classifier(
    config: FinetuneConfig, origin: Backbone | None, class_names: tuple[str, ...]
) -> ImageClassifier:
    """The classifier of a configuration, on a copy of the encoder of `origin` when there is one."""
    assert config.model is not None
    model = build_classifier(
        config.model,
        origin=origin,
        vitmae=config.vitmae,
        seed=config.seed,
        num_classes=len(class_names),
        pool=config.pool,
        class_names=class_names,
    )
    known = as_classifier(origin)
    if known is not None and not config.new_head:
        model.head.load_state_dict(known.head.state_dict())
    return model


def _module(config: FinetuneConfig, model: ImageClassifier, session: Session) -> Classification:
    if config.trainer.recompute:
        model.recompute_layers()
    if config.trainer.compile:
        cast("nn.Module", model).compile()
    return Classification(
        model,
        optim=config.optim,
        seed=config.seed,
        last_checkpoint=session.last_checkpoint,
        stop_wanted=session.stop_wanted,
    )


def _announce(config: FinetuneConfig, images: LabelledImages, data: ImageDataModule) -> None:
    counts = torch.bincount(images.train_labels, minlength=len(images.class_names))
    logger.info(
        "%d classes with %d to %d training images each; %d images validate, %d test at the end;"
        " %s",
        len(images.class_names), int(counts.min()), int(counts.max()),
        0 if images.val is None else len(images.val), len(images.test),
        f"from {config.weights}" if config.weights is not None else "from scratch",
    )  # fmt: skip
    optim, ema = config.optim, config.optim.ema
    if optim.layer_decay < 1 and config.model is not None:
        lowest = optim.peak_lr * optim.layer_decay ** (config.model.depth + 1)
        logger.info("learning rates from %.3g (embedding) to %.3g (head)", lowest, optim.peak_lr)
    steps = data.num_samples // optim.batch_size * optim.epochs
    if ema is not None and 2 / (1 - ema) > steps:
        logger.warning(
            "the average of the weights (optim.ema %g) reaches back about %d steps, the whole run"
            " has %d: it will keep much of the first ones",
            ema, round(1 / (1 - ema)), steps,
        )  # fmt: skip
