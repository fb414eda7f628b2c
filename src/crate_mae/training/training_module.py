"""What every training run shares: its step, its guard, its optimiser, stopping together."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from crate_mae.batches.assembly import SampleBatch
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.common.randomness import random_state, set_random_state
from crate_mae.evaluation.backbones import save_backbone
from crate_mae.models.backbone import Backbone
from crate_mae.models.constraints import keep_constraints
from crate_mae.training.config import OptimConfig
from crate_mae.training.nonfinite import NonFiniteError, locate_nonfinite_gradient
from crate_mae.training.optim import can_fuse, decayed_names, parameter_groups, warmup_cosine


class TrainingModule(LightningModule, ABC):
    """Trains a model on the batches of an ImageDataModule; a subclass says with which loss.

    `stop_wanted` is asked after every batch, on all ranks together; `stopping` is the answer.
    """

    weights_prefix = "model."
    """Where the weights to be saved stand in the state of this module."""

    model: Any
    """What trains, a `torch.nn.Module`."""

    def __init__(
        self,
        model: Any,
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
        self.random_to_save: dict[str, Any] | None = None
        """The state of random generators that a checkpoint holds, where it is not that of now."""
        self.decayed = decayed_names(cast("nn.Module", model))
        self._losses: list[Tensor] = []
        self._watched: dict[str, list[Tensor]] = {}
        self._names: list[str] = []
        self.leave_buffers_alone()

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The loss (scalar) of a batch."""

    @abstractmethod
    def locate_nonfinite(self, batch: Any) -> str:
        """Where the way to a batch's loss stops being finite."""

    def watch(self, name: str, value: Tensor) -> None:
        """Have a number of this batch logged, averaged over the optimiser step as the loss is."""
        self._watched.setdefault(name, []).append(value)

    def learning_rate_share(self, name: str) -> float:
        """The share of the learning rate that a parameter trains with."""
        return 1.0

    @property
    def backbone(self) -> Backbone:
        """The model that is saved, and whose features are measured."""
        return cast("Backbone", self.model)

    @property
    def images(self) -> ImageDataModule:
        """The data module this run trains on."""
        return cast("ImageDataModule", cast("Any", self.trainer).datamodule)

    def leave_buffers_alone(self) -> None:
        """Keep a distributed run from broadcasting buffers, after one was added.

        They are the same on every rank. Without this, each forward pass would broadcast them, and
        ranks with one validation batch more would wait for ever.
        """
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def save_weights(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write or replace a weights folder with the tensors of a whole state."""
        prefix = self.weights_prefix
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        save_backbone(self.backbone, folder, state=own, overwrite=True)

    # -- training -----------------------------------------------------------------------------

    def training_step(self, batch: SampleBatch, _: int) -> Tensor:
        """The loss of a batch, once it is known to be finite on every rank."""
        data = self.images
        data.batches_seen += 1
        self._names = batch["names"]
        loss = self.loss(batch)
        broken = not bool(torch.isfinite(loss))
        some_broken, self.stopping, some_unread = self._agree(
            broken, self.stop_wanted(), bool(batch["broken"])
        )
        if some_unread:
            for part in self._gather(batch["broken"]):
                data.broken.note(part)
        data.broken.stop_if_too_many()
        if some_broken:
            where = self.locate_nonfinite(batch) if broken else None
            raise self._non_finite("the loss", where)
        self._losses.append(loss.detach())
        if len(self._losses) == data.accumulate:
            watched = {name: torch.stack(values).mean() for name, values in self._watched.items()}
            means = {"train/loss": torch.stack(self._losses).mean(), **watched}
            self._losses, self._watched = [], {}
            self.log_dict(means, on_step=True, on_epoch=False, sync_dist=True)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients; raise NonFiniteError when that norm is not finite."""
        clip = math.inf if self.optim.clip is None else self.optim.clip
        if isinstance(self.trainer.strategy, FSDPStrategy):
            norm = cast("Any", self.trainer.strategy.model).clip_grad_norm_(clip)
        else:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
        broken = not bool(torch.isfinite(norm))
        scaled = self.trainer.precision == "16-mixed"  # its loss scaler skips such steps
        if self._agree(broken)[0] and not scaled:
            where = locate_nonfinite_gradient(self.model) if broken else None
            raise self._non_finite("the gradient", where)
        rate = torch.tensor(optimizer.param_groups[0]["lr"])
        self.log_dict({"train/grad_norm": norm, "train/lr": rate}, on_step=True, on_epoch=False)

    def adamw(self, *, fused: bool) -> AdamW:
        """AdamW over all that trains, at the peak learning rate, decaying matrices alone."""
        optim = self.optim
        groups = parameter_groups(
            cast("nn.Module", self.model),
            optim.weight_decay,
            self.decayed,
            learning_rate=optim.peak_lr,
            share_of=self.learning_rate_share,
        )
        return AdamW(groups, betas=optim.betas, fused=fused)

    def configure_optimizers(self) -> Any:
        """AdamW with the per-step schedule."""
        optim = self.optim
        per_epoch = self.images.steps_per_epoch
        total = per_epoch * optim.epochs
        warmup = round(per_epoch * optim.warmup_epochs)
        optimizer = self.adamw(fused=can_fuse(self.device.type, self.trainer.precision))

        def share(step: int) -> float:
            return warmup_cosine(step, total=total, warmup=warmup, final=optim.min_lr_ratio)

        schedule = {"scheduler": LambdaLR(optimizer, share), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step, then put weights back to where the model's configuration keeps them."""
        step = self.global_step
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        keep_constraints(cast("nn.Module", self.model))
        self.after_step(step)

    def after_step(self, step: int) -> None:
        """Do what follows the optimiser step of that number, from 0, before anything is saved."""

    # -- stopping together, and the random state ------------------------------------------------

    def agree_to_stop(self) -> bool:
        """Whether some rank is asked to stop; to be called on all ranks together."""
        self.stopping = self._agree(self.stop_wanted())[0]
        return self.stopping

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
        """Add the state of all random generators as plain values."""
        checkpoint["random"] = self.random_to_save or random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set all random generators to where they were."""
        set_random_state(checkpoint["random"])
