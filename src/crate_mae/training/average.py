"""A running average of a model's weights: what fine-tuning saves, and a teacher."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from crate_mae.models.constraints import keep_constraints


class RunningAverage(AveragedModel):
    """A copy of a model, under `module`, that follows it; it gets no gradient.

    With `from_start` it begins as the model is now, otherwise as the model is at the first `follow`
    (an average over trained weights alone).
    """

    def __init__(self, model: Any, *, from_start: bool = False) -> None:
        super().__init__(cast("nn.Module", model), multi_avg_fn=self._moved)
        self.requires_grad_(False)
        self._decay = 1.0
        if from_start:
            self.n_averaged.fill_(1)

    def follow(self, model: Any, decay: float) -> None:
        """Move toward the weights as they are now: average x decay + weights x (1 - decay)."""
        self._decay = decay
        self.update_parameters(cast("nn.Module", model))
        keep_constraints(self.module, frozen=True)  # an average of such is not one itself

    def _moved(self, average: Sequence[Tensor], weights: Sequence[Tensor], count: Any) -> None:
        get_ema_multi_avg_fn(self._decay)(average, weights, count)  # type: ignore[no-untyped-call]
