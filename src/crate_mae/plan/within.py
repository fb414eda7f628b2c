"""A run that fits a time on this machine: sizes, epochs and warm-up chosen from measured steps."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crate_mae.batches.config import DataConfig, LabelledDataConfig
from crate_mae.common.text import duration
from crate_mae.evaluation.answers import FEW_STEPS
from crate_mae.models.config import ModelConfig
from crate_mae.plan.amounts import disk_use, schedule
from crate_mae.plan.plan import RunPlan, plan_run, validates
from crate_mae.plan.real_step import RunSettings, planned_run
from crate_mae.plan.recipe import count_images, holds_out, trained_of
from crate_mae.training.config import FinetuneConfig, PretrainConfig, plain
from crate_mae.training.run_folder import changed_keys

TRAINING_SHARE = 0.8
"""Of the time, what optimiser steps may take: decoding, validation, saving and a machine that is
busy with other things take the rest."""
ENOUGH = {True: 500, False: FEW_STEPS}
"""Optimiser steps worth making a model smaller for; fewer with labels (True), where weights are
mostly there already. Without them, what is below is called very short."""
AIM = 2000
"""Optimiser steps up to which more epochs are added, where the recipe has fewer: the rule of thumb
of docs/recipes.md."""
WARMUP_SHARE = 0.05
"""Warm-up as a share of the epochs, where they are changed."""
SHALLOW = 2
"""Layers a side of the first smaller model: on small images two did better than four or eight at
equal steps, and they take a third of the time of six."""
LEAST_EPOCHS = 2
"""Passes over the images below which fewer images are used instead."""


@dataclass(frozen=True, kw_only=True)
class FittingRun:
    """A run that fits, and how it differs from the recipe."""

    plan: RunPlan
    seconds: float
    """What was allowed for the whole run."""
    settings: dict[str, Any]
    """Settings that were changed, by name, as the command line takes them."""
    reasons: list[str]
    """Why, in sentences."""

    @property
    def words(self) -> list[str]:
        """The changed settings as words of a command line."""
        return [word for key, value in self.settings.items() for word in (f"--{key}", str(value))]

    def command(self, recipe: str, typed: Sequence[str] = ()) -> str:
        """The command that makes this run; `typed` are the settings given beside the recipe."""
        verb = "finetune" if isinstance(self.plan.config, FinetuneConfig) else "pretrain"
        return shlex.join(["crate-mae", verb, "--config", recipe, *typed, *self.words])


def run_within(
    config: RunSettings,
    seconds: float,
    *,
    images: int | None = None,
    plan: Callable[..., RunPlan] = plan_run,
    fixed_model: bool = False,
    progress: Callable[[str], None] | None = None,
) -> FittingRun:
    """The run of a recipe that takes at most so many seconds on this machine.

    Real steps are measured. As long as the recipe's own model has enough steps in that time, it is
    kept; otherwise it becomes shallower, then has larger patches, as far as its other settings
    allow. Epochs fill the time up to what is worth it; where not even two fit, there are fewer
    images. The plan counts the images that the command trains on. With `fixed_model`, or an
    architecture that comes with weights, only epochs and images change. `plan` is what plans,
    `plan_run` but for tests. Raises ValueError where nothing can be measured and when not even an
    epoch of some images fits; and what planning raises.
    """
    supervised = isinstance(config, FinetuneConfig)
    enough, room = ENOUGH[supervised], TRAINING_SHARE * seconds
    found = plan(config, images=images, progress=progress)
    first = _step_seconds(found)
    before = config = found.adapted  # with a batch that the images fill
    if room / first < enough and isinstance(before, PretrainConfig) and not fixed_model:
        models = list(_smaller(before))
        whole = planned_run(before).flops(1)
        for model in models:
            smaller = replace(before, model=model)
            expected = first * planned_run(smaller).flops(1) / whole
            if room / expected < enough and model != models[-1]:
                continue
            config, found = smaller, plan(smaller, images=images, progress=progress)
            if room / _step_seconds(found) >= enough:
                break
    return _filled(before, config, found, seconds, here=images is None)


def _filled(
    before: RunSettings, config: RunSettings, found: RunPlan, seconds: float, *, here: bool
) -> FittingRun:
    """The run with as many epochs as its time has room for; `here` for images to be counted."""
    supervised, each = isinstance(config, FinetuneConfig), _step_seconds(found)
    steps = int(TRAINING_SHARE * seconds / each)
    optim, data, images = config.optim, config.data, found.images
    per_epoch = images.count // optim.batch_size
    reasons = list(_of_the_model(before, config))
    if steps < LEAST_EPOCHS * per_epoch and _can_be_limited(data):
        if steps < LEAST_EPOCHS:
            raise ValueError(
                f"a step of {optim.batch_size} images takes {each:.3g} s here, so that not even"
                f" {LEAST_EPOCHS} fit: give more time, or a smaller model or batch"
            )
        wanted = steps // LEAST_EPOCHS * optim.batch_size
        data, count = _limited(config, wanted, here=here)
        reasons.append(
            f"{count:,} of {images.count:,} images, as all of them would not be seen twice"
        )
        images = replace(images, count=count)
        per_epoch = count // optim.batch_size
    if steps < per_epoch:
        raise ValueError(
            f"an epoch of {per_epoch:,} steps takes {duration(each * per_epoch)} here, and"
            " data.limit does not shorten it: give more time, or fewer shards or labels (data.shots"
            " or data.share)"
        )
    worth = max(optim.epochs, -(-AIM // per_epoch))
    epochs = min(worth, steps // per_epoch)
    if epochs != optim.epochs:
        reasons.append(
            f"{epochs:,} epochs in place of {optim.epochs:,}, with a twentieth of them as warm-up"
        )
        optim = replace(optim, epochs=epochs, warmup_epochs=round(WARMUP_SHARE * epochs, 2))
    # Each kind of run has sections of its own kind, which a union of both hides.
    sections: dict[str, Any] = {"optim": optim, "data": data}
    whole = replace(config, **sections)
    planned = schedule(images.count, optim)
    if planned.steps < ENOUGH[supervised]:
        reasons.append(
            f"{planned.steps:,} steps are all that fit: fewer than the {ENOUGH[supervised]:,} from"
            " which on results are worth comparing"
        )
    return FittingRun(
        plan=replace(
            found,
            config=replace(found.config, **sections),
            images=images,
            schedule=planned,
            disk=disk_use(
                found.parameters, frozen=found.frozen, record=config.record, epochs=epochs,
                validated=validates(config), average=found.state.average > 0,
            ),
        ),
        seconds=seconds,
        settings=_differences(before, whole),
        reasons=reasons or ["the recipe as it is"],
    )  # fmt: skip


def _can_be_limited(data: DataConfig) -> bool:
    """Whether `data.limit` says how many images train: not of a stream, nor of chosen labels."""
    chosen = isinstance(data, LabelledDataConfig) and (data.shots or data.share)
    return not chosen and not data.source.startswith("wds:")


def _limited(config: RunSettings, wanted: int, *, here: bool) -> tuple[DataConfig, int]:
    """(The data with the limit that leaves so many images to train on, how many it leaves).

    Where classes are held out of one by one, how many it leaves is known of images that are `here`.
    """
    data = config.data
    limit = limit_for(data, wanted)
    limited, count = replace(data, limit=limit), trained_of(data, limit)
    by_class = isinstance(config, FinetuneConfig) and config.task == "classify"
    if here and by_class and holds_out(data):
        sections: dict[str, Any] = {"data": limited}
        while (count := count_images(replace(config, **sections)).count) < wanted:
            limit += wanted - count
            sections["data"] = limited = replace(data, limit=limit)
    return limited, count


def limit_for(data: DataConfig, wanted: int) -> int:
    """The fewest images of which so many train beside those that are held out."""
    limit = wanted
    if holds_out(data):  # a start that is never too far, which leaves little to look for
        limit = max(wanted, int((wanted - 0.5) / (1 - data.val_share)))
        if data.val_limit is not None:
            limit = min(limit, wanted + data.val_limit)
    # One image more is one more to train on or to hold out, so this never goes too far.
    while (missing := wanted - trained_of(data, limit)) > 0:
        limit += missing
    return limit


def _step_seconds(found: RunPlan) -> float:
    if found.hours is None:
        raise ValueError(
            "how long a step takes could not be measured here, so that nothing can be fitted to a"
            " time: try a smaller optim.batch_size, or again when the machine is less busy"
        )
    return 3600 * found.hours / found.schedule.steps


def _smaller(config: PretrainConfig) -> Iterator[ModelConfig]:
    """The model of a run shallower, then with larger patches, each time less work."""
    model = config.model
    depths: dict[str, Any] = {"depth": min(SHALLOW, model.depth)}
    if config.method == "masked":
        depths["decoder_depth"] = min(SHALLOW, model.decoder_depth)
    shallow = replace(model, **depths)
    if shallow != model and _allowed(config, shallow):
        model = shallow
        yield shallow
    for factor in (3, 4):  # of halves: patches of 1.5 and 2 times the side
        patch = tuple(side * factor // 2 for side in model.patch_hw)
        whole = all(side * factor % 2 == 0 for side in model.patch_hw)
        divides = all(size % side == 0 for size, side in zip(model.image_hw, patch, strict=True))
        # Fewer than five patches a side would leave nothing to tell where things are.
        many = all(size // side >= 5 for size, side in zip(model.image_hw, patch, strict=True))
        if whole and divides and many:
            larger = replace(model, patch_size=(patch[0], patch[1]))
            if _allowed(config, larger):
                yield larger


def _allowed(config: PretrainConfig, model: ModelConfig) -> bool:
    """Whether the other settings of a run go together with a model: masks, layers, local crops."""
    try:
        replace(config, model=model)
    except ValueError:
        return False
    if config.method == "masked":
        return True
    sides = zip(config.simdino.crops.local_hw, model.patch_hw, strict=True)
    return all(size % side == 0 for size, side in sides)


def _of_the_model(before: RunSettings, after: RunSettings) -> Iterator[str]:
    old, new = before.model, after.model
    if old is None or new is None or old == new:
        return
    if (old.depth, old.decoder_depth) != (new.depth, new.decoder_depth):
        alone = isinstance(after, PretrainConfig) and after.method != "masked"
        depth, former = (
            f"{m.depth}" if alone else f"{m.depth} + {m.decoder_depth}" for m in (new, old)
        )
        yield f"{depth} layers in place of {former}: more steps of a shallower model"
    if old.patch_hw != new.patch_hw:
        (old_rows, old_columns), (rows, columns) = old.patch_hw, new.patch_hw
        yield (
            f"patches of {rows}x{columns} in place of {old_rows}x{old_columns}: fewer tokens an"
            " image, and one value for each in features and maps"
        )


def _differences(before: RunSettings, after: RunSettings) -> dict[str, Any]:
    """The settings of the second configuration that the first has otherwise, by dotted name."""
    values: dict[str, Any] = plain(after)
    changed: dict[str, Any] = {}
    for line in changed_keys(plain(before), values):
        key = line.partition(":")[0]
        value: Any = values
        for part in key.split("."):
            value = value[part]
        changed[key] = value
    return changed
