"""Features of a whole optimiser step, however devices and accumulation share it.

A step's images may be shared by W devices and accumulated over k batches of b images each. A rate
of features is no mean over images, so the rate of each part is not the rate of the whole. Here
every batch gets the features of all W k b images; the gradient through its own features is W k
times as large, for gradients are averaged over devices and batches afterwards. With k > 1 all
features are computed once more without gradients before the step begins (gradient caching).
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

FeaturesOf = Callable[[Any], Tensor]
"""From a batch to its features (b, ...)."""


class WholeStep:
    """Gathers the features of a step; `accumulate` batches make one, and come in their order."""

    def __init__(self, accumulate: int) -> None:
        self.accumulate = accumulate
        self._step: list[Tensor] = []
        self._here = 0

    def __call__(self, batch: Any, own: Tensor, features_of: FeaturesOf) -> Tensor:
        """The features (W k b, ...) of the step; those of this batch, `own`, have a gradient.

        With accumulation the first batch must hold the others under `whole_step`.
        """
        if self.accumulate == 1:
            self._step, self._here = [_gathered(own)], 0
        elif "whole_step" in batch:
            with torch.no_grad():
                self._step = [_gathered(features_of(part)) for part in batch["whole_step"]]
            self._here = 0
        else:
            self._here += 1
        of_devices = list(torch.split(self._step[self._here], len(own)))
        mine = own.view_as(own)  # a node of its own: other losses of it must not be weighted
        if mine.requires_grad:
            weight = len(of_devices) * self.accumulate
            cast("Any", mine).register_hook(lambda gradient: gradient * weight)
        of_devices[dist.get_rank() if len(of_devices) > 1 else 0] = mine
        return torch.cat([*self._step[: self._here], *of_devices, *self._step[self._here + 1 :]])


def _gathered(features: Tensor) -> Tensor:
    """Features (b, ...) of every device (W b, ...), in the order of ranks, without gradients."""
    own = features.detach().contiguous()
    if not (dist.is_available() and dist.is_initialized()):
        return own
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts)
