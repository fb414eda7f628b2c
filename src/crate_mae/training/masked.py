"""Masked completion as a LightningModule: the loss, its guard, validation with baselines."""

import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from crate_mae.data.batches import Batch
from crate_mae.data.module import MaskedDataModule
from crate_mae.evaluation.reconstruction import BaselineSums
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.training.config import OptimConfig
from crate_mae.training.guard import NonFiniteError, locate_nonfinite, locate_nonfinite_gradient
from crate_mae.training.optim import parameter_groups, warmup_cosine


class MaskedCompletion(LightningModule):
    """Trains a CrateMAE to complete masked images.

    `stop_wanted` is asked after every batch, on all ranks together; `stopping` is the answer.
    """

    def __init__(
        self,
        model: CrateMAE,
        *,
        optim: OptimConfig,
        seed: int,
        last_checkpoint: Callable[[], str | None] = lambda: None,
        stop_wanted: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.seed = seed
        self.last_checkpoint = last_checkpoint
        self.stop_wanted = stop_wanted
        self.stopping = False
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.baselines = BaselineSums(model.config.channels)
        self._names: list[str] = []

    @property
    def images(self) -> MaskedDataModule:
        """The data module this run trains on."""
        return cast("MaskedDataModule", cast("Any", self.trainer).datamodule)

    # -- training -----------------------------------------------------------------------------

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The masked loss of a batch."""
        data = self.images
        data.batches_seen += 1
        data.note_broken(batch["broken"])
        data.stop_if_broken()
        self._names = batch["names"]
        output = self.model(batch["images"], mask=batch["mask"])
        loss: Tensor = output.loss
        broken, self.stopping = self._agree(not bool(torch.isfinite(loss)), self.stop_wanted())
        if broken:
            where = locate_nonfinite(self.model, batch["images"], batch["mask"])
            raise self._non_finite("the loss", where)
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Nothing; clips the norm of all gradients and raises when that norm is not finite."""
        if isinstance(self.trainer.strategy, FSDPStrategy):
            norm = cast("Any", self.trainer.strategy.model).clip_grad_norm_(self.optim.clip)
        else:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.optim.clip)
        broken, _ = self._agree(not bool(torch.isfinite(norm)), False)
        if broken and self.trainer.precision != "16-mixed":  # its loss scaler skips such steps
            raise self._non_finite("the gradient", locate_nonfinite_gradient(self.model))
        rate = torch.tensor(optimizer.param_groups[0]["lr"])
        self.log_dict({"train/grad_norm": norm, "train/lr": rate}, on_step=True, on_epoch=False)

    def configure_optimizers(self) -> Any:
        """AdamW with the per-step schedule."""
        optim = self.optim
        per_epoch = self.images.steps_per_epoch
        total = per_epoch * optim.epochs
        warmup = round(per_epoch * optim.warmup_epochs)
        optimizer = AdamW(
            parameter_groups(self.model, optim.weight_decay), lr=optim.peak_lr, betas=optim.betas
        )

        def share(step: int) -> float:
            return warmup_cosine(step, total=total, warmup=warmup, final=optim.min_lr_ratio)

        schedule = {"scheduler": LambdaLR(optimizer, share), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    # -- validation ---------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Nothing; forgets the sums of the last validation."""
        self.val_loss.reset()
        self.baselines = BaselineSums(self.model.config.channels)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Nothing; adds a batch to the fixed-mask loss and to the trivial baselines."""
        output = self.model(batch["images"], mask=batch["mask"])
        removed = batch["mask"].sum()
        self.val_loss.update(output.loss, removed)
        self.baselines.update(self.model.target(batch["images"]), batch["mask"])

    def on_validation_epoch_end(self) -> None:
        """Nothing; logs the loss beside the two baselines, over all ranks."""
        sums = self.baselines.sums.to(self.device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        self.baselines.sums = sums.cpu()
        means = {
            "val/loss": self.val_loss.compute(),
            "val/mean_colour": torch.tensor(self.baselines.mean_colour()),
            "val/patch_mean": torch.tensor(self.baselines.patch_mean()),
        }
        values = {key: value.float().to(self.device) for key, value in means.items()}
        self.log_dict(values, prog_bar=False, sync_dist=False, rank_zero_only=False)

    # -- stopping together, and the random state ------------------------------------------------

    def _agree(self, *flags: bool) -> list[bool]:
        """Each flag, True on every rank as soon as it is True on one."""
        if not (dist.is_available() and dist.is_initialized()):
            return list(flags)
        joined = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(joined, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in joined.tolist()]

    def _non_finite(self, what: str, where: str) -> NonFiniteError:
        return NonFiniteError(
            {
                "what": what,
                "step": self.global_step,
                "epoch": self.current_epoch,
                "seed": self.seed,
                "rank": self.global_rank,
                "began_in": where,
                "samples": self._names,
                "checkpoint": self.last_checkpoint(),
            }
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Nothing; adds the state of all random generators as plain values."""
        checkpoint["random"] = random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Nothing; sets all random generators to where they were."""
        set_random_state(checkpoint["random"])


def random_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's generators, in tensors and plain values."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Nothing; restores what `random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([item.cpu() for item in state["cuda"]])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
