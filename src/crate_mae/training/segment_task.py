"""What a supervised run does that learns the classes of pixels."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from crate_mae.batches.dense import DenseBatches
from crate_mae.common.progress import progress_bar
from crate_mae.evaluation.backbones import as_segmenter, build_segmenter
from crate_mae.models.backbone import Backbone
from crate_mae.models.depict import CrateSegmenter, head_name
from crate_mae.models.mask_classes import MaskClasses, shortened_names
from crate_mae.sources.base import ImageSource
from crate_mae.training.callbacks import Monitor, is_main_process
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.dense_images import DenseImages, open_dense
from crate_mae.training.mask_test import conclude_with_masks
from crate_mae.training.segmentation import Segmentation


class SegmentTask:
    """Images with a mask each: a segmentation head on patch tokens."""

    monitor = Monitor(metric="val/mean_iou", higher_is_better=True)
    module = Segmentation

    def open(
        self,
        config: FinetuneConfig,
        dataset: Dataset[Any] | ImageSource | None,
        test_dataset: Dataset[Any] | ImageSource | None,
    ) -> DenseImages:
        """The images of the run; raises as `open_dense`, and ValueError for Python data sets."""
        if dataset is not None or test_dataset is not None:
            raise ValueError(
                "training on masks reads images and masks from files: name data.source and"
                " segment.masks, and give no Python dataset"
            )
        return open_dense(config, progress=progress_bar if is_main_process() else None)

    def check_head(self, origin: Backbone, images: DenseImages, config: FinetuneConfig) -> None:
        """Raise ValueError for weights whose head is not the run's."""
        check_pixel_classes(origin, images.classes, config)

    def batches(self, config: FinetuneConfig, images: DenseImages, batch: int) -> DenseBatches:
        """What is made of the samples."""
        return DenseBatches(augment=config.data.augment, drop_path=config.optim.drop_path)

    def model(
        self, config: FinetuneConfig, origin: Backbone | None, images: DenseImages
    ) -> CrateSegmenter:
        """The segmenter, on a copy of the encoder of `origin` when there is one."""
        assert config.model is not None
        model = build_segmenter(
            config.model, origin=origin, head=config.segment.head, classes=images.classes
        )
        known = as_segmenter(origin)
        if known is not None and not config.new_head:
            model.decoder.load_state_dict(known.decoder.state_dict())
        if config.segment.freeze:
            model.encoder.requires_grad_(False)
        return model

    def conclude(
        self, config: FinetuneConfig, folder: Path, images: DenseImages, device: torch.device
    ) -> dict[str, float]:
        """The test metrics, once the test images have been segmented."""
        return conclude_with_masks(config, folder, images, device)

    def announcement(self, images: DenseImages) -> str:
        """What the run learns from, in words."""
        total = max(1, sum(images.pixels))
        shares = ", ".join(
            f"{name} {count / total:.1%}"
            for name, count in list(zip(images.class_names, images.pixels, strict=True))[:10]
        )
        more = ", ..." if images.class_names[10:] else ""
        ignored = ", ".join(map(str, images.classes.ignored)) or "nothing"
        return (
            f"{len(images.class_names)} classes of pixels ({shares}{more}); ignored: {ignored}"
            f" ({images.ignored:.1%} of the training masks)"
        )


def check_pixel_classes(origin: Backbone, classes: MaskClasses, config: FinetuneConfig) -> None:
    """Raise ValueError for weights of a segmenter of other classes or with another head."""
    segmenter = as_segmenter(origin)
    if segmenter is None:
        return
    head = head_name(segmenter.decoder)
    if head != config.segment.head:
        raise ValueError(
            f"{config.weights} has a head {head!r}, not {config.segment.head!r}: set segment.head,"
            " or new_head=true for another head"
        )
    if not segmenter.classes.same_pixels(classes):
        known, names = segmenter.classes.names, classes.names
        raise ValueError(
            f"{config.weights} tells {len(known)} classes of pixels apart"
            f" ({shortened_names(known)}), the masks have {len(names)}"
            f" ({shortened_names(names)}): set new_head=true for another head, or start from"
            " pre-trained weights"
        )
