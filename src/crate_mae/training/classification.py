"""Classification as a LightningModule: the loss, the average of the weights, validation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from crate_mae.batches.labelled import LabelledBatch
from crate_mae.models.backbone import ImageClassifier
from crate_mae.training.average import RunningAverage
from crate_mae.training.config import FinetuneOptimConfig
from crate_mae.training.nonfinite import locate_nonfinite
from crate_mae.training.optim import layer_decay_share
from crate_mae.training.training_module import TrainingModule


class Classification(TrainingModule):
    """Trains a classifier, of any family, on labelled batches.

    With `optim.ema`, an exponential moving average of the weights follows every optimiser step; it
    is what is validated and saved. Its first value is the weights after the first step.
    """

    model: ImageClassifier

    def __init__(
        self,
        model: ImageClassifier,
        *,
        optim: FinetuneOptimConfig,
        seed: int,
        last_checkpoint: Callable[[], str | None] = lambda: None,
        stop_wanted: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(
            model,
            optim=optim,
            seed=seed,
            last_checkpoint=last_checkpoint,
            stop_wanted=stop_wanted,
        )
        self.settings = optim
        self.average: RunningAverage | None = None
        if optim.ema is not None:
            self.average = RunningAverage(model)
            self.weights_prefix = "average.module."
            self.leave_buffers_alone()

    @property
    def best_guess(self) -> ImageClassifier | RunningAverage:
        """The model that is validated and saved: the average, where there is one."""
        return self.model if self.average is None else self.average

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

    def learning_rate_share(self, name: str) -> float:
        """The share of the learning rate that the layer of a parameter trains with."""
        return layer_decay_share(
            name, decay=self.settings.layer_decay, depth=self.model.config.depth
        )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step, then move the average, before anything is saved."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.update_average()

    def update_average(self) -> None:
        """Move the average toward the weights as they are now, where there is one."""
        if self.average is not None and self.settings.ema is not None:
            self.average.follow(self.model, self.settings.ema)

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
        for part in self._gather(list(self.images.broken.items())):
            self.images.broken.note(part)
        loss, right, count = torch.stack(self._gather(self._val_sums)).sum(dim=0).tolist()
        self.log_dict({"val/loss": loss / count, "val/accuracy": right / count}, sync_dist=True)
