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

from crate_mae.data.batches import Batch
from crate_mae.data.module import MaskedDataModule
from crate_mae.evaluation.reconstruction import BaselineSums
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.training.config import OptimConfig
from crate_mae.training.guard import NonFiniteError, locate_nonfinite, locate_nonfinite_gradient
from crate_mae.training.optim import decayed_names, parameter_groups, warmup_cosine


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
        self.decayed = decayed_names(model)
        # Fixed tables, the same on every rank: without this, each forward pass of a distributed
        # run would broadcast them, and ranks with one validation batch more would wait for ever.
        self._ddp_params_and_buffers_to_ignore = [
            f"model.{name}" for name, _ in model.named_buffers()
        ]
        self._val_sums = torch.zeros(
            2, dtype=torch.float64
        )  # loss x removed patches, removed patches
        self.baselines: dict[str, float] | None = None
        self._sums = BaselineSums(model.config.channels)
        self._losses: list[Tensor] = []
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
        self._names = batch["names"]
        output = self.model(batch["images"], mask=batch["mask"])
        loss: Tensor = output.loss
        broken = not bool(torch.isfinite(loss))
        some_broken, self.stopping, some_unread = self._agree(
            broken, self.stop_wanted(), bool(batch["broken"])
        )
        if some_unread:
            for part in self._gather(batch["broken"]):
                data.note_broken(part)
        data.stop_if_broken()
        if some_broken:
            where = locate_nonfinite(self.model, batch["images"], batch["mask"]) if broken else None
            raise self._non_finite("the loss", where)
        self._losses.append(loss.detach())
        if len(self._losses) == data.accumulate:
            mean = torch.stack(self._losses).mean()
            self._losses = []
            self.log("train/loss", mean, on_step=True, on_epoch=False, sync_dist=True)
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
        broken = not bool(torch.isfinite(norm))
        scaled = self.trainer.precision == "16-mixed"  # its loss scaler skips such steps
        if self._agree(broken)[0] and not scaled:
            where = locate_nonfinite_gradient(self.model) if broken else None
            raise self._non_finite("the gradient", where)
        rate = torch.tensor(optimizer.param_groups[0]["lr"])
        self.log_dict({"train/grad_norm": norm, "train/lr": rate}, on_step=True, on_epoch=False)

    def configure_optimizers(self) -> Any:
        """AdamW with the per-step schedule."""
        optim = self.optim
        per_epoch = self.images.steps_per_epoch
        total = per_epoch * optim.epochs
        warmup = round(per_epoch * optim.warmup_epochs)
        optimizer = AdamW(
            parameter_groups(self.model, optim.weight_decay, self.decayed),
            lr=optim.peak_lr,
            betas=optim.betas,
        )

        def share(step: int) -> float:
            return warmup_cosine(step, total=total, warmup=warmup, final=optim.min_lr_ratio)

        schedule = {"scheduler": LambdaLR(optimizer, share), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    # -- validation ---------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Nothing; forgets the sums of the last validation."""
        self._val_sums = torch.zeros(2, dtype=torch.float64)
        self._sums = BaselineSums(self.model.config.channels)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Nothing; adds a batch to the fixed-mask loss and to the trivial baselines."""
        self.images.note_broken(batch["broken"])
        output = self.model(batch["images"], mask=batch["mask"])
        removed = batch["mask"].sum()
        self._val_sums += torch.stack([output.loss * removed, removed]).cpu().double()
        if self.baselines is None:  # images and masks never change, so once is enough
            self._sums.update(self.model.target(batch["images"]).cpu(), batch["mask"].cpu())

    def on_validation_epoch_end(self) -> None:
        """Nothing; logs the loss beside the two baselines, over all ranks."""
        for part in self._gather(list(self.images.broken.items())):
            self.images.note_broken(part)
        if self.baselines is None:
            self._sums.sums = torch.stack(self._gather(self._sums.sums)).sum(dim=0)
            self.baselines = {
                "val/mean_colour": self._sums.mean_colour(),
                "val/patch_mean": self._sums.patch_mean(),
            }
        total, removed = torch.stack(self._gather(self._val_sums)).sum(dim=0).tolist()
        # Already the same everywhere: Lightning's own reduction would only average equal numbers.
        self.log_dict({"val/loss": total / removed, **self.baselines}, sync_dist=True)

    # -- stopping together, and the random state ------------------------------------------------

    def _agree(self, *flags: bool) -> list[bool]:
        """Each flag, True on every rank as soon as it is True on one."""
        if not (dist.is_available() and dist.is_initialized()):
            return list(flags)
        joined = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(joined, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in joined.tolist()]

    def _gather(self, item: Any) -> list[Any]:
        """The item of every rank, in the order of ranks."""
        if not (dist.is_available() and dist.is_initialized()):
            return [item]
        items: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(items, item)
        return items

    def _non_finite(self, what: str, where: str | None) -> NonFiniteError:
        """The same error on every rank, about the first rank on which something broke."""
        report = {
            "what": what,
            "step": self.global_step,
            "epoch": self.current_epoch,
            "seed": self.seed,
            "rank": self.global_rank,
            "began_in": where,
            "samples": self._names,
            "checkpoint": self.last_checkpoint(),
        }
        reports = self._gather(report)
        return NonFiniteError(next(found for found in reports if found["began_in"] is not None))

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
