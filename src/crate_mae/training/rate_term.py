"""The coding-rate term of a training step, the same however the step is split.

A step's images may be shared by W devices and accumulated over k batches of b images each. The rate
of features is no mean over images, so the rate of each part is not the rate of the whole. Here
every batch's term is the rate of all W k b features; the gradient through a batch's own features is
W k times as large, for gradients are averaged over devices and batches afterwards. With k > 1 all
features are computed once more without gradients before the step begins (gradient caching).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from crate_mae.models.coding_rate import largest_rate, rate_share
from crate_mae.models.masks import take_visible
from crate_mae.training.config import ObjectiveConfig, PretrainConfig

Encode = Callable[[Any], Tensor]
"""From a batch to the latent tokens (b, 1 + V, d) of its masked images."""


@dataclass(frozen=True, kw_only=True)
class RateTerm:
    """The term of one batch, a scalar tensor each."""

    loss: Tensor
    """gamma (1 - R / R_max), from 0 to gamma."""
    rate: Tensor
    """R in nats."""
    largest: float
    """R_max in nats: the largest that so many features can have."""


class CodingRate:
    """Computes the coding-rate term of the batches of a run, in their order.

    `kept` is how many patches every mask keeps, None where images differ; `visible_only`
    says that latent tokens are of visible patches alone; `accumulate` batches make a step.
    """

    def __init__(
        self,
        objective: ObjectiveConfig,
        *,
        kept: int | None,
        visible_only: bool,
        accumulate: int,
    ) -> None:
        self.objective, self.kept, self.visible_only = objective, kept, visible_only
        self.accumulate = accumulate
        self._step: list[Tensor] = []
        self._here = 0

    def __call__(self, batch: Any, latent: Tensor, encode: Encode) -> RateTerm:
        """The term of a batch with these latent tokens; `encode` gives those of other batches."""
        features = self.features(latent, batch["mask"])
        if self.objective.looks_ahead:
            features = self._whole_step(batch, features, encode)
        rate, share = rate_share(
            features,
            eps_squared=self.objective.eps_squared,
            dtype=torch.float64 if self.objective.float64 else torch.float32,
        )
        return RateTerm(
            loss=self.objective.gamma * (1 - share.mean()),
            rate=rate.detach().mean(),
            largest=largest_rate(*features.shape[-2:], eps_squared=self.objective.eps_squared),
        )

    def features(self, latent: Tensor, mask: Tensor) -> Tensor:
        """The features of the rate: (b, d), or (b, V, d) of each image's visible patches.

        From latent tokens (b, 1 + V, d), or (b, 1 + L, d) where mask tokens enter the encoder.
        """
        kind, patches = self.objective.features, latent[:, 1:]
        if kind == "class_token":
            return latent[:, 0]
        if kind == "tokens":
            return patches if self.visible_only else take_visible(patches, mask, self.kept)
        if self.visible_only:
            return patches.mean(dim=1)
        visible = (~mask).to(patches.dtype)[..., None]
        return (patches * visible).sum(dim=1) / visible.sum(dim=1)

    def _whole_step(self, batch: Any, own: Tensor, encode: Encode) -> Tensor:
        """The features (W k b, d) of the whole step; those of this batch alone have a gradient."""
        if self.accumulate == 1:
            self._step, self._here = [_gathered(own)], 0
        elif "whole_step" in batch:
            with torch.no_grad():
                self._step = [
                    _gathered(self.features(encode(part), part["mask"]))
                    for part in batch["whole_step"]
                ]
            self._here = 0
        else:
            self._here += 1
        of_devices = list(torch.split(self._step[self._here], len(own)))
        mine = own.view_as(own)  # a node of its own: the masked loss must not be weighted
        if mine.requires_grad:
            weight = len(of_devices) * self.accumulate
            cast("Any", mine).register_hook(lambda gradient: gradient * weight)
        of_devices[dist.get_rank() if len(of_devices) > 1 else 0] = mine
        return torch.cat([*self._step[: self._here], *of_devices, *self._step[self._here + 1 :]])


def coding_rate_of(config: PretrainConfig) -> CodingRate | None:
    """The coding rate that a run trains on; None where its weight is 0."""
    if config.objective.gamma == 0:
        return None
    return CodingRate(
        config.objective,
        kept=config.masking.kept(config.model.grid) if config.masking.one_count else None,
        visible_only=config.visible_only,
        accumulate=config.trainer.accumulate,
    )


def _gathered(features: Tensor) -> Tensor:
    """Features (b, d) of every device (W b, d), in the order of ranks, without gradients."""
    if not (dist.is_available() and dist.is_initialized()):
        return features.detach()
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.detach().contiguous())
    return torch.cat(parts)
