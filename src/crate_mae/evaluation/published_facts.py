"""What a published checkpoint does not say, told by its masked loss on a few photographs.

With another lambda, number of heads or kind of target than it was trained with, a checkpoint loads
without a fault and predicts worse. So the same images are completed under the same masks with every
combination of the published values. Each fact is read off the best combination, or called unclear
where another value is nearly as good.

Losses on pixels and on normalised patches have different units. Both are compared as a share of
what the best single colour would have: a trained model is well below it on the target it was
trained for, and about as bad or worse on the other.
"""

import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from torch import Tensor

from crate_mae.batches.prepared import prepared_batches
from crate_mae.common.randomness import keyed_generator
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import PRESETS
from crate_mae.models.families import family_presets
from crate_mae.models.loss import BaselineSums, masked_mse, masked_target
from crate_mae.models.masks import draw_mask
from crate_mae.sources.base import ImageSource
from crate_mae.sources.photographs import photograph_squares
from crate_mae.weights.published import (
    PublishedFacts,
    from_reference,
    published_sizes,
    published_state,
)

logger = logging.getLogger(__name__)

Fact = Literal["sparsity", "num_heads", "norm_pix_loss"]

SPARSITIES = (5.0, 0.5)
"""lambda in the published code on the day of the checkpoint, and its default from soon after.

Source: https://github.com/Ma-Lab-Berkeley/CRATE, commits 1c47ccc and 2eed3e8."""

MASK_RATIO = 0.75
MIN_IMAGES = 4
BATCH_SIZE = 8

# Measured on small models (2 + 2 layers, 10 to 400 steps, two lambdas, two numbers of heads, both
# targets). Where a wrong lambda or number of heads came out best, it led by 4 % at most and by 1.4
# standard errors; models 10 % below the loss of one colour always had the right target.
LEAST_LEAD = 0.05
"""One value is told from another when its loss is lower by this share of itself at least, ..."""
LEAST_DEVIATIONS = 2.0
"""... and the logarithm of the losses' ratio by this many of its standard errors over images."""
MOST_SHARE = 0.9
"""Above this share of the loss of one colour, a model predicts too little to tell anything."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The masked loss of a checkpoint with one combination of facts."""

    facts: PublishedFacts
    losses: tuple[float, ...]
    """Masked loss of each image."""
    one_colour: float
    """Masked loss of the one colour that is best for all of the images."""

    @property
    def loss(self) -> float:
        """The masked loss over all images."""
        return fmean(self.losses)

    @property
    def share(self) -> float:
        """The loss as a share of that of one colour; infinite where it is not finite."""
        share = self.loss / self.one_colour
        return share if math.isfinite(share) else math.inf

    def clearly_below(self, other: "Trial") -> bool:
        """Whether the share is lower, by LEAST_LEAD and by LEAST_DEVIATIONS, than another's."""
        if not math.isfinite(other.share):
            return math.isfinite(self.share)
        if other.share < (1 + LEAST_LEAD) * self.share:
            return False
        if self.facts.norm_pix_loss != other.facts.norm_pix_loss:
            return True  # in different units, the losses of single images cannot be compared
        least = sys.float_info.min  # an image may be predicted without any error
        ratios = [
            math.log((theirs + least) / (mine + least))
            for mine, theirs in zip(self.losses, other.losses, strict=True)
        ]
        return fmean(ratios) >= LEAST_DEVIATIONS * stdev(ratios) / math.sqrt(len(ratios))


@dataclass(frozen=True, kw_only=True)
class MeasuredFacts:
    """The masked losses of a checkpoint with every combination of facts, and what they tell."""

    trials: tuple[Trial, ...]
    """In the order in which they were measured."""
    tried: tuple[Fact, ...]
    """The facts that were not given."""
    images: str
    """What was completed, in words."""

    @property
    def best(self) -> Trial:
        """The trial whose loss is the smallest share of that of one colour."""
        return min(self.trials, key=lambda trial: trial.share)

    @property
    def rivals(self) -> dict[Fact, Trial | None]:
        """For each fact that was tried the best trial with another value; None if it had one."""
        return {
            fact: min(
                (
                    trial
                    for trial in self.trials
                    if getattr(trial.facts, fact) != getattr(self.best.facts, fact)
                ),
                key=lambda trial: trial.share,
                default=None,
            )
            for fact in self.tried
        }

    @property
    def unclear(self) -> tuple[Fact, ...]:
        """The facts that were tried and that the losses do not tell."""
        best = self.best
        return tuple(
            fact
            for fact, rival in self.rivals.items()
            if best.share > MOST_SHARE or not (rival is None or best.clearly_below(rival))
        )

    @property
    def facts(self) -> PublishedFacts:
        """What was given and what the losses tell; ValueError naming what they do not tell."""
        if not self.unclear:
            return self.best.facts
        reason = (
            "no combination predicts removed patches much better than one colour does"
            if self.best.share > MOST_SHARE
            else "the masked losses of two values are too close to each other"
        )
        asked = ", ".join(f"{fact} ({_OPTIONS[fact]})" for fact in self.unclear)
        raise ValueError(
            f"{reason}: give {asked}, or images like those that the checkpoint was trained on"
        )

    def text(self) -> str:
        """All losses as a table, then a sentence for each fact that was not given."""
        targets = list(dict.fromkeys(trial.facts.norm_pix_loss for trial in self.trials))
        colours = {trial.facts.norm_pix_loss: trial.one_colour for trial in self.trials}
        rows = {("heads", "lambda"): [f"on {_TARGETS[target]}" for target in targets]}
        for trial in self.trials:
            named = (_word("num_heads", trial), _word("sparsity", trial))
            rows.setdefault(named, []).append(f"{trial.loss:.4f}")
        rows["", "one colour"] = [f"{colours[target]:.4f}" for target in targets]
        title = f"masked loss of {self.images}, {MASK_RATIO:.0%} of the patches removed:"
        table = [f"{heads:>7}{weight:>12}{_cells(row)}" for (heads, weight), row in rows.items()]
        return "\n".join([title, *table, *map(self._sentence, self.tried)])

    def _sentence(self, fact: Fact) -> str:
        best, rival = self.best, self.rivals[fact]
        losses = f"with {_word(fact, best)} the loss is {best.share:.1%} of that of one colour"
        if rival is None:
            losses += ", and no other value was tried"
        else:
            losses += f", with {_word(fact, rival)} it is {rival.share:.1%} at best"
        told = "unclear" if fact in self.unclear else _word(fact, best)
        return f"{_NAMES[fact]} {told}: {losses}"


_NAMES: dict[Fact, str] = {"sparsity": "lambda", "num_heads": "heads", "norm_pix_loss": "targets"}
_TARGETS = {False: "pixels", True: "normalised patches"}
_OPTIONS: dict[Fact, str] = {
    "sparsity": "--sparsity",
    "num_heads": "--num-heads",
    "norm_pix_loss": "--norm-pix-loss or --no-norm-pix-loss",
}


def _word(fact: Fact, trial: Trial) -> str:
    value = getattr(trial.facts, fact)
    return _TARGETS[value] if fact == "norm_pix_loss" else f"{value:g}"


def _cells(values: list[str]) -> str:
    return "".join(f"{value:>{3 + len('on normalised patches')}}" for value in values)


def measure_published_facts(
    checkpoint: str | Path | Mapping[str, Any],
    source: ImageSource | None = None,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    step_size: float = 0.1,
    sparsity: float | None = None,
    norm_pix_loss: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredFacts:
    """What the masked losses tell of a published checkpoint (a path or a state dict).

    Lambda, heads and kind of target are tried where they are None: lambda at both published values,
    heads as in any of PRESETS if they divide the width, those of a preset of that width first. The
    decoder's heads, where they are None, are the encoder's. The images are those of `source`, four
    or more, else squares of two photographs that scikit-learn brings along; the masks are always
    the same. `progress` hears how many of how many models are measured.

    Raises what `from_reference` raises, and ValueError for fewer than four readable images and for
    images of one colour.
    """
    state = published_state(checkpoint)
    heads = _heads_to_try(published_sizes(state)["dim"]) if num_heads is None else [num_heads]
    models = [
        PublishedFacts(
            num_heads=count,
            decoder_num_heads=decoder_num_heads,
            step_size=step_size,
            sparsity=weight,
            norm_pix_loss=bool(norm_pix_loss),
        )
        for count in heads
        for weight in (SPARSITIES if sparsity is None else [sparsity])
    ]
    targets = [False, True] if norm_pix_loss is None else [norm_pix_loss]
    examples: tuple[Tensor, Tensor] | None = None
    trials: list[Trial] = []
    for done, facts in enumerate(models, start=1):
        model = from_reference(state, facts).eval()
        if examples is None:  # after the first model has come out of the file without a fault
            examples = _examples(source, model)
        trials += _trials(model, facts, targets, *examples)
        if progress is not None:
            progress(done, len(models))
    given = {"sparsity": sparsity, "num_heads": num_heads, "norm_pix_loss": norm_pix_loss}
    count = len(trials[0].losses)
    return MeasuredFacts(
        trials=tuple(trials),
        tried=tuple(fact for fact in _NAMES if given[fact] is None),
        images=f"{count} squares of two photographs" if source is None else f"{count} images",
    )


def _heads_to_try(dim: int) -> list[int]:
    """Numbers of heads in PRESETS that divide a width, those of presets of that width first.

    Presets of other families do not count: what is tried is a published masked autoencoder.
    """
    own = [preset for name, preset in PRESETS.items() if name not in family_presets()]
    presets = sorted(own, key=lambda preset: preset.dim != dim)
    counts = dict.fromkeys(preset.num_heads for preset in presets)
    return [count for count in counts if dim % count == 0]


def _examples(source: ImageSource | None, model: CrateMAE) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) as the model takes them, and masks (B, L), always the same."""
    channels = model.config.channels
    if source is None and channels not in (1, 3):
        raise ValueError(
            f"there are no photographs of {channels} channels to measure on: give images (--images)"
        )
    broken: list[tuple[str, str]] = []
    batches = prepared_batches(
        photograph_squares() if source is None else source,
        model.preprocess,
        batch_size=BATCH_SIZE,
        broken=broken,
    )
    images = torch.cat([batch.images for batch in batches])
    for name, reason in broken:
        logger.warning("passed over: %s: %s", name, reason)
    if len(images) < MIN_IMAGES:
        raise ValueError(
            f"{len(images)} images are too few to tell chance from truth: give {MIN_IMAGES} or more"
        )
    grid = model.config.grid
    masks = [
        draw_mask("random", grid, MASK_RATIO, keyed_generator(0, index))
        for index in range(len(images))
    ]
    return images, torch.cat(masks)


def _trials(
    model: CrateMAE, facts: PublishedFacts, targets: list[bool], images: Tensor, masks: Tensor
) -> list[Trial]:
    """The trial of a model for each kind of target, True for normalised patches."""
    parts = zip(*(torch.split(whole, BATCH_SIZE) for whole in (images, masks)), strict=True)
    with torch.inference_mode():
        predictions = torch.cat([model(*part).prediction for part in parts])
    trials = []
    for normalise in targets:
        target = masked_target(images, model.config.patch_hw, normalise=normalise)
        baseline = BaselineSums(model.config.channels)
        baseline.update(target, masks)
        if not baseline.mean_colour() > 0:
            raise ValueError("the images have one colour: give others")
        losses = [
            float(masked_mse(predictions[[i]], target[[i]], masks[[i]])) for i in range(len(images))
        ]
        trials.append(
            Trial(
                facts=replace(facts, norm_pix_loss=normalise),
                losses=tuple(losses),
                one_colour=baseline.mean_colour(),
            )
        )
    return trials
