"""Masked completion as a LightningModule: the losses, and validation with baselines."""

from typing import Any

import torch
from torch import Tensor

from crate_mae.batches.assembly import Batch
from crate_mae.models.backbone import MaskedAutoencoder
from crate_mae.models.loss import BaselineSums
from crate_mae.training.nonfinite import locate_nonfinite
from crate_mae.training.rate_term import CodingRate
from crate_mae.training.training_module import TrainingModule


class MaskedCompletion(TrainingModule):
    """Trains a masked autoencoder, of any family, to complete masked images."""

    model: MaskedAutoencoder
    baselines: dict[str, float] | None = None

    def __init__(
        self,
        model: MaskedAutoencoder,
        *,
        kept: int | None = None,
        layer: int | None = None,
        coding_rate: CodingRate | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        self.kept = kept
        """Patches that every mask keeps, where only those are encoded."""
        self.layer = layer
        """Encoder layers that the features of the coding rate have passed; None: all and norm."""
        self.coding_rate = coding_rate

    def loss(self, batch: Batch) -> Tensor:
        """The masked loss of a batch, with the coding-rate term where it has a weight."""
        output = self.model(batch["images"], mask=batch["mask"], kept=self.kept, layer=self.layer)
        loss: Tensor = output.loss
        if self.coding_rate is None:
            return loss
        term = self.coding_rate(batch, output.latent, self._latent)
        self.watch("train/masked_loss", loss.detach())
        self.watch("train/coding_rate", term.rate)
        self.watch("train/largest_rate", term.rate.new_tensor(term.largest))
        return loss + term.loss

    def _latent(self, batch: Any) -> Tensor:
        return self.model.encode_masked(batch["images"], batch["mask"], self.kept, self.layer)

    def locate_nonfinite(self, batch: Batch) -> str:
        """Where the way to a batch's loss stops being finite."""
        images = batch["images"]
        tensors = self.model.tensors_to_loss(images, batch["mask"])
        where = locate_nonfinite(self.model, images, tensors)
        return "coding rate" if where == "not found" and self.coding_rate is not None else where

    # -- validation ---------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last validation."""
        # loss x removed patches, removed patches
        self._val_sums = torch.zeros(2, dtype=torch.float64)
        self._sums = BaselineSums(self.model.config.channels)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Add a batch to the fixed-mask loss and to the trivial baselines."""
        self.images.broken.note(batch["broken"])
        output = self.model(batch["images"], mask=batch["mask"], kept=self.kept)
        removed = batch["mask"].sum()
        self._val_sums += torch.stack([output.loss * removed, removed]).cpu().double()
        if self.baselines is None:  # images and masks never change, so once is enough
            self._sums.update(self.model.target(batch["images"]).cpu(), batch["mask"].cpu())

    def on_validation_epoch_end(self) -> None:
        """Log the loss beside the two baselines, over all ranks."""
        for part in self._gather(list(self.images.broken.items())):
            self.images.broken.note(part)
        if self.baselines is None:
            self._sums.sums = torch.stack(self._gather(self._sums.sums)).sum(dim=0)
            self.baselines = {
                "val/mean_colour": self._sums.mean_colour(),
                "val/patch_mean": self._sums.patch_mean(),
            }
        total, removed = torch.stack(self._gather(self._val_sums)).sum(dim=0).tolist()
        # Already the same everywhere: Lightning's own reduction would only average equal numbers.
        self.log_dict({"val/loss": total / removed, **self.baselines}, sync_dist=True)
