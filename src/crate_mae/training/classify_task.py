"""What a supervised run does that learns the classes of images."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from crate_mae.batches.labelled import LabelledBatches
from crate_mae.evaluation.backbones import as_classifier, build_classifier
from crate_mae.models.backbone import Backbone, ImageClassifier
from crate_mae.models.mask_classes import shortened_names
from crate_mae.sources.base import ImageSource
from crate_mae.training.callbacks import Monitor
from crate_mae.training.classification import Classification
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.final_test import conclude_with_test
from crate_mae.training.labelled_images import LabelledImages, open_labelled


class ClassifyTask:
    """Images with a class each: a linear head on pooled tokens."""

    monitor = Monitor(metric="val/accuracy", higher_is_better=True)
    module = Classification

    def open(
        self,
        config: FinetuneConfig,
        dataset: Dataset[Any] | ImageSource | None,
        test_dataset: Dataset[Any] | ImageSource | None,
    ) -> LabelledImages:
        """The images of the run; raises as `open_labelled`."""
        return open_labelled(
            config.data, seed=config.seed, dataset=dataset, test_dataset=test_dataset
        )

    def check_head(self, origin: Backbone, images: LabelledImages, config: FinetuneConfig) -> None:
        """Raise ValueError for weights whose head is not the run's."""
        check_classes(origin, images.class_names, config)

    def batches(
        self, config: FinetuneConfig, images: LabelledImages, batch: int
    ) -> LabelledBatches:
        """What is made of the samples; ValueError for a `batch` that cannot be mixed in pairs."""
        check_pairs(config, batch)
        return LabelledBatches(
            augment=config.data.augment,
            num_classes=len(images.class_names),
            drop_path=config.optim.drop_path,
        )

    def model(
        self, config: FinetuneConfig, origin: Backbone | None, images: LabelledImages
    ) -> ImageClassifier:
        """The classifier, on a copy of the encoder of `origin` when there is one."""
        assert config.model is not None
        model = build_classifier(
            config.model,
            origin=origin,
            vitmae=config.vitmae,
            seed=config.seed,
            num_classes=len(images.class_names),
            pool=config.pool,
            class_names=images.class_names,
        )
        known = as_classifier(origin)
        if known is not None and not config.new_head:
            model.head.load_state_dict(known.head.state_dict())
        return model

    def conclude(
        self, config: FinetuneConfig, folder: Path, images: LabelledImages, device: torch.device
    ) -> dict[str, float]:
        """The test metrics, once the test images have been classified."""
        return conclude_with_test(config, folder, images, device)

    def announcement(self, images: LabelledImages) -> str:
        """What the run learns from, in words."""
        counts = torch.bincount(images.train_labels, minlength=len(images.class_names))
        return (
            f"{len(images.class_names)} classes with {int(counts.min())} to {int(counts.max())}"
            " training images each"
        )


def check_classes(origin: Backbone, names: tuple[str, ...], config: FinetuneConfig) -> None:
    """Raise ValueError for weights of a classifier of other classes or another pool."""
    classifier = as_classifier(origin)
    if classifier is None:
        return
    if config.head_start != "random":
        raise ValueError(
            f"{config.weights} brings its head, and head_start={config.head_start} makes another:"
            " leave head_start out, or set new_head=true"
        )
    if classifier.pool != config.pool:
        raise ValueError(
            f"the head of {config.weights} was trained on pool {classifier.pool!r}, not"
            f" {config.pool!r}: set pool, or new_head=true for another head"
        )
    known, count = classifier.class_names, classifier.head.out_features
    if known != names if known is not None else count != len(names):
        told = "without names" if known is None else shortened_names(known)
        raise ValueError(
            f"{config.weights} is a classifier of {count} classes ({told}), the images have"
            f" {len(names)} ({shortened_names(names)}): set new_head=true for another head, or"
            " start from pre-trained weights"
        )


def check_pairs(config: FinetuneConfig, batch: int) -> None:
    """Raise ValueError where images are mixed in pairs and a batch on a device is odd."""
    if config.data.augment.mixes and batch % 2:
        raise ValueError(
            f"mixup and cutmix take images in pairs: {batch} per device and batch is odd; change"
            " optim.batch_size, or switch off data.augment.mixup and data.augment.cutmix"
        )
