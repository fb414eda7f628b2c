"""What features are worth while they train: rank, rate, and accuracy where there are labels.

Frozen features of unmasked held-out images, measured by the same code as afterwards, on few images
so that it takes seconds; the log says how many. Nothing random is drawn from the run, so that the
run stays the same.
"""

import logging
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from crate_mae.evaluation.features import Features, extract_features
from crate_mae.evaluation.knn import nearest_neighbours
from crate_mae.evaluation.probe import linear_probe
from crate_mae.models.backbone import Backbone
from crate_mae.models.coding_rate import rate_share
from crate_mae.models.pools import Pool
from crate_mae.sources.base import ImageSource, random_subset
from crate_mae.training.training_module import TrainingModule
from crate_mae.whitebox.measures import effective_rank

logger = logging.getLogger(__name__)

HELD_OUT_IMAGES = 1000
"""Most validation images that are measured."""
TRAINING_IMAGES = 2000
"""Most training images that neighbours are looked for among, and that the probe learns from."""
NEIGHBOURS, TEMPERATURE, PENALTY = 20, 0.07, 1e-2
"""One setting each, as nothing may be chosen in seconds; the evaluation afterwards does choose."""

FEWEST_IMAGES = 32
"""Held-out images below which rank and rate say more of the images than of the network."""
BEGUN = 0.1
"""Share of the epochs before which nothing is warned of: first steps draw features together."""
TOLERANCE = 0.02
"""Share by which rank or rate must lie below those of the untrained network to be warned of."""

RANK, SHARE = "val/effective_rank", "val/coding_rate_share"


class OnlineMeasures(Callback):
    """Logs what the features of held-out images are worth.

    At each validation `val/effective_rank` and `val/coding_rate_share` (the coding rate over its
    largest value). Every `every` epochs and at the end also `val/knn` and `val/probe`: accuracies
    on validation images, where they and the training images have labels of the same classes. With
    0 nothing is measured. Features are mean patch tokens or, with `pool` "cls", class tokens. Warns
    when the features have collapsed, rank or rate below those of the same network untrained, with
    `advice` on what helps.
    """

    def __init__(
        self,
        *,
        every: int,
        eps_squared: float,
        seed: int,
        advice: str,
        pool: Pool = "mean",
    ) -> None:
        self.every, self.eps_squared, self.seed = every, eps_squared, seed
        self.pool, self.advice = pool, advice
        self.untrained: dict[str, float] | None = None
        self._warned = self._timed = False
        self._images = 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log; a failed measurement is logged, not fatal."""
        # Sharded weights are whole only inside a step.
        sharded = "FSDP" in type(trainer.strategy).__name__
        if not self.every or not trainer.is_global_zero or sharded:
            return
        epoch = trainer.current_epoch + 1
        due = epoch % self.every == 0 or epoch == trainer.max_epochs
        started = perf_counter()
        try:
            found = self.measured(trainer, pl_module, by_labels=due)
        except Exception as error:  # whatever measuring stumbles over, training goes on
            logger.warning("features not measured at epoch %d: %s", epoch, error)
            return
        if found and due and not self._timed:
            self._timed = True
            logger.info(
                "features measured in %.1f s: rank and rate at each validation, and where there are"
                " labels neighbours and probe each %s and at the end",
                perf_counter() - started,
                "epoch" if self.every == 1 else f"{self.every} epochs",
            )
        pl_module.log_dict(found, rank_zero_only=True)
        if epoch >= BEGUN * (trainer.max_epochs or 0):
            self._warn_of_collapse(found, epoch)

    def measured(
        self, trainer: Trainer, module: LightningModule, *, by_labels: bool
    ) -> dict[str, float]:
        """What is logged, by name, accuracies `by_labels`, too; empty without held-out images.

        Accuracies that cannot be measured are left out, and the log says why.
        """
        assert isinstance(module, TrainingModule)
        model = module.backbone
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.val_source is None or not len(data.val_source):
            return {}
        held_out = random_subset(data.val_source, HELD_OUT_IMAGES)
        self._images = len(held_out)
        if self.untrained is None:
            fresh = model.untrained(self.seed).to(module.device)
            self.untrained = self.spread(features_of(fresh, held_out, self.pool))
        features = features_of(model, held_out, self.pool)
        found = self.spread(features)
        train = data.train_source if by_labels else None
        if isinstance(train, ImageSource) and can_compare(train, data.val_source):
            try:
                few = random_subset(train, TRAINING_IMAGES)
                found |= accuracies(features_of(model, few, self.pool), features)
            except Exception as error:  # rank and rate need no labels: they are logged still
                epoch = trainer.current_epoch + 1
                logger.warning("neighbours and probe not measured at epoch %d: %s", epoch, error)
        return found

    def spread(self, features: Features) -> dict[str, float]:
        """Effective rank and share of the largest coding rate of features."""
        values = features.values
        _, share = rate_share(values, eps_squared=self.eps_squared, dtype=torch.float64)
        return {RANK: float(effective_rank(values)), SHARE: float(share)}

    def _warn_of_collapse(self, found: dict[str, float], epoch: int) -> None:
        if self.untrained is None or not found or self._images < FEWEST_IMAGES:
            return
        lower = [
            f"{name} {found[key]:.3g}, untrained {self.untrained[key]:.3g}"
            for key, name in ((RANK, "effective rank"), (SHARE, "share of the largest coding rate"))
            if found[key] < (1 - TOLERANCE) * self.untrained[key]
        ]
        recovered = all(found[key] >= value for key, value in self.untrained.items())
        if lower and not self._warned:
            logger.warning(
                "at epoch %d the features of different images lie closer together than those of the"
                " same network untrained (%s): neighbours and few labels will suffer. If it stays"
                " so, %s",
                epoch,
                "; ".join(lower),
                self.advice,
            )
        self._warned = bool(lower) or (self._warned and not recovered)


def features_of(model: Backbone, source: ImageSource, pool: Pool = "mean") -> Features:
    """Pooled features of unmasked images."""
    return extract_features(model, source, pool=pool, batch_size=128)


def can_compare(train: ImageSource, held_out: ImageSource) -> bool:
    """Whether two sources have labels of the same classes."""
    names = train.class_names
    return names is not None and len(names) > 1 and names == held_out.class_names


def accuracies(train: Features, held_out: Features) -> dict[str, float]:
    """Accuracy of nearest neighbours and of a linear probe on held-out images that have a label."""
    train, held_out = labelled(train), labelled(held_out)
    if not len(train.names) or not len(held_out.names):
        return {}
    k = min(NEIGHBOURS, len(train.names))
    knn = nearest_neighbours(train, held_out, k=(k,), temperatures=(TEMPERATURE,))
    probe = linear_probe(train, held_out, penalties=(PENALTY,))
    return {"val/knn": knn.accuracy, "val/probe": probe.accuracy}


def labelled(features: Features) -> Features:
    """The rows that have a label."""
    if features.labels is None:
        return replace(features, values=features.values[:0], names=[])
    known = features.labels >= 0
    return replace(
        features,
        values=features.values[known],
        labels=features.labels[known],
        names=[name for name, keep in zip(features.names, known.tolist(), strict=True) if keep],
    )
