"""Segmentation as a LightningModule: the loss of pixels, and validation by whole-set counts."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.batches.dense import DenseBatch
from crate_mae.evaluation.pixel_scores import PixelScore, pixel_counts
from crate_mae.models.depict import CrateSegmenter
from crate_mae.models.mask_classes import VOID
from crate_mae.training.nonfinite import locate_nonfinite
from crate_mae.training.supervised_module import SupervisedModule


class Segmentation(SupervisedModule):
    """Trains a segmenter on images with masks; a frozen encoder is left out of training.

    The loss of an image is the mean cross-entropy of its pixels that count, and a batch's the mean
    of its images, so that it does not depend on how many devices share the batch.
    """

    model: CrateSegmenter

    def learning_rate_share(self, name: str) -> float:
        """The share of the learning rate that a parameter trains with: the head's is 1."""
        return 1.0 if name.startswith("decoder.") else super().learning_rate_share(name)

    def loss(self, batch: DenseBatch) -> Tensor:
        """Mean over images of the mean cross-entropy of their pixels that count, smoothed."""
        scores = self.model(batch["images"], batch["keep"])
        return image_losses(
            scores, batch["masks"], label_smoothing=self.settings.label_smoothing
        ).mean()

    def locate_nonfinite(self, batch: DenseBatch) -> str:
        """Where the way to a batch's loss stops being finite."""
        images = batch["images"]
        walk: Iterator[tuple[str, Tensor]] = self.model.tensors_to_scores(images)
        where = locate_nonfinite(self.model, images, walk)
        return "loss" if where == "not found" else where  # its scores are still finite

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last validation."""
        count = len(self.model.classes.values)
        # summed loss of images, and images
        self._val_sums = torch.zeros(2, dtype=torch.float64)
        self._val_counts = torch.zeros(count, count, dtype=torch.int64)

    def validation_step(self, batch: DenseBatch, _: int) -> None:
        """Add a batch to the loss, without smoothing, and to the counts of pixels."""
        self.images.broken.note(batch["broken"])
        scores, masks = self.best_guess(batch["images"]), batch["masks"]
        losses = image_losses(scores, masks).double().sum().cpu()
        self._val_sums += torch.stack([losses, torch.tensor(float(len(masks))).double()])
        self._val_counts += pixel_counts(scores.argmax(dim=1), masks, len(self._val_counts))

    def on_validation_epoch_end(self) -> None:
        """Log loss, mean IoU, pixel accuracy and the IoU of every class, over all ranks."""
        self.gather_broken()
        loss, images = torch.stack(self._gather(self._val_sums)).sum(dim=0).tolist()
        score = PixelScore(counts=torch.stack(self._gather(self._val_counts)).sum(dim=0))
        values: dict[str, Any] = {
            "val/loss": loss / images,
            "val/mean_iou": score.mean_iou,
            "val/pixel_accuracy": score.accuracy,
        }
        for value, iou in zip(self.model.classes.values, score.iou, strict=True):
            if iou is not None:  # a class that is nowhere has none
                values[f"val/iou/{value}"] = iou
        self.log_dict(values, sync_dist=True)


def image_losses(scores: Tensor, masks: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy (B,) of each image's pixels that count; 0 where none does.

    Scores (B, C, H, W), class numbers (B, H, W), `VOID` where nothing counts.
    """
    pixels = F.cross_entropy(
        scores, masks, ignore_index=VOID, reduction="none", label_smoothing=label_smoothing
    )
    counted = (masks != VOID).sum(dim=(1, 2))
    return pixels.sum(dim=(1, 2)) / counted.clamp(min=1)
