"""The coding-rate term of a training step, the same however the step is split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crate_mae.models.coding_rate import largest_rate, rate_share
from crate_mae.models.masks import take_visible
from crate_mae.training.config import PretrainConfig
from crate_mae.training.objectives import ObjectiveConfig
from crate_mae.training.whole_step import WholeStep

Encode = Callable[[Any], Tensor]
"""From a batch to the latent tokens (b, 1 + L, d) of its masked images."""


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
        self.dtype = torch.float64 if objective.float64 else torch.float32
        self._whole_step = WholeStep(accumulate)

    def __call__(self, batch: Any, latent: Tensor, encode: Encode) -> RateTerm:
        """The term of a batch with these latent tokens; `encode` gives those of other batches."""
        objective = self.objective
        features = self.features(latent, batch["mask"])
        if objective.looks_ahead:
            features = self._whole_step(
                batch, features, lambda part: self.features(encode(part), part["mask"])
            )
        rate, share = rate_share(features, eps_squared=objective.eps_squared, dtype=self.dtype)
        return RateTerm(
            loss=objective.gamma * (1 - share.mean()),
            rate=rate.detach().mean(),
            largest=largest_rate(*features.shape[-2:], eps_squared=objective.eps_squared),
        )

    def features(self, latent: Tensor, mask: Tensor) -> Tensor:
        """The features of the rate: (b, d), or (b, V, d) of each image's visible patches.

        From latent tokens (b, 1 + V, d), or (b, 1 + L, d) where mask tokens enter the encoder.
        Means are taken in float32 at least, too: in 16 bits they would be rounded once more.
        """
        kind, patches = self.objective.features, latent[:, 1:]
        wide = torch.promote_types(latent.dtype, self.dtype)
        if kind == "class_token":
            return latent[:, 0]
        if kind == "tokens":
            return patches if self.visible_only else take_visible(patches, mask, self.kept)
        if self.visible_only:
            return patches.mean(dim=1, dtype=wide)
        visible = (~mask).to(patches.dtype)[..., None]
        return (patches * visible).sum(dim=1, dtype=wide) / visible.sum(dim=1, dtype=wide)


FEATURES_IN_WORDS = {
    "pooled": "mean visible patch tokens",
    "class_token": "class tokens",
    "tokens": "visible patch tokens of each image by themselves",
}


def loss_in_words(config: PretrainConfig, batch_size: int) -> str:
    """What a run minimises, with the features that a rate is of; `batch_size` is of a device.

    It says aloud when the result depends on how a step is split over devices and accumulation,
    and when a rate is of so few images that it cannot be raised.
    """
    images, objective = config.optim.batch_size, config.objective
    split = "so that the result depends on how a step is split over devices and accumulation"
    masked = "masked loss"
    if config.method == "masked" and not config.masking.batchable and batch_size != images:
        # Parts count alike, whatever number of patches they removed.
        masked += f" (mean over removed patches of {batch_size} images at a time, {split})"
    if config.method == "simdino":
        loss = f"-{config.simdino.coefficient:g} x compression - expansion"
        of, whole = "class tokens through the head", config.simdino.reduce_cov
    elif objective.gamma == 0:
        plain = ObjectiveConfig()
        idle = [
            f"objective.{name}"
            for name in ("features", "layer", "over", "float64")
            if getattr(objective, name) != getattr(plain, name)
        ]
        without = f" alone: no effect of {', '.join(idle)} while objective.gamma is 0"
        return f"{masked}{without if idle else ''}"
    else:
        loss = f"{masked} + {objective.gamma:g} x (1 - R / max. R)"
        of, whole = FEATURES_IN_WORDS[objective.features], objective.over == "step"
        if objective.features == "tokens":
            return f"{loss}; R is of {of}"
    count = images if whole else batch_size
    said = f"{loss}; R is of {of} over {count} images"
    if not whole and batch_size != images:
        said += f", a part of the {images} of a step, {split}"
    if count == 1 and config.method == "masked":
        said += "; of one image R is always the largest, so that the term does nothing"
    return said


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
