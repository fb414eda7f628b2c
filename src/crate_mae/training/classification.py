"""Classification as a LightningModule: the loss, and validation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.batches.labelled import LabelledBatch
from crate_mae.models.backbone import ImageClassifier
from crate_mae.training.nonfinite import locate_nonfinite
from crate_mae.training.supervised_module import SupervisedModule


class Classification(SupervisedModule):
    """Trains a classifier, of any family, on labelled batches."""

    model: ImageClassifier

    def loss(self, batch: LabelledBatch) -> Tensor:
        """Cross-entropy with the smoothed, mixed targets of a batch."""
        scores = self.model(batch["images"], batch["keep"])
        return F.cross_entropy(
            scores, batch["targets"], label_smoothing=self.settings.label_smoothing
        )

    def locate_nonfinite(self, batch: LabelledBatch) -> str:
        """Where the way to a batch's loss stops being finite."""
        images = batch["images"]
        where = locate_nonfinite(self.model, images, self.model.tensors_to_scores(images))
        return "loss" if where == "not found" else where  # its scores are still finite

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last validation."""
        # summed loss, images answered correctly, images
        self._val_sums = torch.zeros(3, dtype=torch.float64)

    def validation_step(self, batch: LabelledBatch, _: int) -> None:
        """Add a batch to the loss, without smoothing, and to the accuracy."""
        self.images.broken.note(batch["broken"])
        scores, labels = self.best_guess(batch["images"]), batch["labels"]
        loss = F.cross_entropy(scores, labels, reduction="sum")
        right = (scores.argmax(dim=1) == labels).sum()
        count = torch.tensor(len(labels))
        self._val_sums += torch.stack([loss.cpu(), right.cpu(), count]).double()

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy over all ranks."""
        self.gather_broken()
        loss, right, count = torch.stack(self._gather(self._val_sums)).sum(dim=0).tolist()
        self.log_dict({"val/loss": loss / count, "val/accuracy": right / count}, sync_dist=True)
