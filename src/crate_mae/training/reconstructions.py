"""Pictures that a masked run draws of itself."""

import logging
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from crate_mae.batches.assembly import Batch, SourceBatches
from crate_mae.common.extras import with_command
from crate_mae.evaluation.backbones import evaluating
from crate_mae.evaluation.reconstruction import reconstruct
from crate_mae.training.masked_completion import MaskedCompletion
from crate_mae.training.trackers import hand_picture

logger = logging.getLogger(__name__)


class Reconstructions(Callback):
    """Pictures of the same validation images under the same masks, every few epochs."""

    def __init__(self, folder: Path, *, every: int, count: int) -> None:
        self.folder = folder / "reconstructions"
        self.every, self.count = every, count

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw when due and at the end; a failed drawing is logged, not fatal."""
        epoch = trainer.current_epoch + 1
        due = self.every and (epoch % self.every == 0 or epoch == trainer.max_epochs)
        # Sharded weights are whole only inside a step, so they are not drawn here.
        if not due or not trainer.is_global_zero or "FSDP" in type(trainer.strategy).__name__:
            return
        try:
            path = self.draw(trainer, pl_module, f"epoch-{epoch:04d}.png", f"epoch {epoch}")
        except Exception as error:  # whatever drawing stumbles over, training goes on
            error = with_command(error) if isinstance(error, ImportError) else error
            logger.warning("no reconstruction drawn at epoch %d: %s", epoch, error)
            return
        if path is not None:
            hand_picture(trainer.loggers, self.folder.name, path, trainer.global_step)

    def draw(self, trainer: Trainer, module: LightningModule, name: str, title: str) -> Path | None:
        """The file of one sheet; None without images to draw, ImportError without matplotlib."""
        from crate_mae.figures.reconstruction_sheet import draw_reconstruction

        assert isinstance(module, MaskedCompletion)
        batch = self._batch(trainer)
        if batch is None:
            return None
        self.folder.mkdir(exist_ok=True)
        images, mask = batch["images"].to(module.device), batch["mask"].to(module.device)
        with evaluating(module.model), torch.no_grad():
            result = reconstruct(module.model, images, mask)
        path = self.folder / name
        draw_reconstruction(result, path, names=batch["names"], title=title, overwrite=True)
        return path

    def _batch(self, trainer: Trainer) -> Batch | None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        source = data.val_source
        if source is None or not len(source):
            return None
        count = min(self.count, len(source))
        keys = [(0, index * len(source) // count) for index in range(count)]
        batch: Batch = SourceBatches(source, data.kind.validation_maker(data)).__getitems__(keys)
        return batch
