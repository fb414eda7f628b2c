"""What supervised training shares, whatever its classes are of: the average, rates by layer."""

from collections.abc import Callable
from typing import Any

from crate_mae.training.average import RunningAverage
from crate_mae.training.config import FinetuneOptimConfig
from crate_mae.training.optim import layer_decay_share
from crate_mae.training.training_module import TrainingModule


class SupervisedModule(TrainingModule):
    """Trains a model with true classes at hand; a subclass says with which loss.

    With `optim.ema`, an exponential moving average of the weights follows every optimiser step; it
    is what is validated and saved. Its first value is the weights after the first step.
    """

    def __init__(
        self,
        model: Any,
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
    def best_guess(self) -> Any:
        """The model that is validated and saved: the average, where there is one."""
        return self.model if self.average is None else self.average

    def learning_rate_share(self, name: str) -> float:
        """The share of the learning rate that the layer of a parameter trains with."""
        return layer_decay_share(
            name, decay=self.settings.layer_decay, depth=self.model.config.depth
        )

    def after_step(self, step: int) -> None:
        """Move the average."""
        self.update_average()

    def update_average(self) -> None:
        """Move the average toward the weights as they are now, where there is one."""
        if self.average is not None and self.settings.ema is not None:
            self.average.follow(self.model, self.settings.ema)

    def gather_broken(self) -> None:
        """Note the images that any rank could not read, on all of them."""
        for part in self._gather(list(self.images.broken.items())):
            self.images.broken.note(part)
