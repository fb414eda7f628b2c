"""Runs that fit a time: what is chosen, from the speed of a machine that is made up."""

import shlex
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_mae.cli import main
from crate_mae.common.peak_memory import PeakMemory
from crate_mae.plan.amounts import schedule
from crate_mae.plan.plan import RunPlan, plan_run
from crate_mae.plan.plan_text import fitting_text
from crate_mae.plan.recipe import count_images, parse_recipe
from crate_mae.plan.within import AIM, ENOUGH, TRAINING_SHARE, FittingRun, run_within
from crate_mae.sources.arrays import ArraySource
from crate_mae.sources.base import random_subset
from crate_mae.sources.splits import split_off
from crate_mae.training.config import FinetuneConfig, PretrainConfig
from crate_mae.training.parse import parse_pretrain


def machine(flops_a_second: float) -> Any:
    """What plans on a machine of that speed: a step takes as long as its operations."""

    def measurement(subject: Any, *_: Any) -> Any:
        def measure(images: int, _: int, steps: int) -> PeakMemory:
            seconds = subject.flops(images) / flops_a_second
            return PeakMemory(
                peak=(1 << 28) + (images << 20), loaded=1 << 28, settled=1 << 28,
                seconds=(seconds,) * steps, method="made up",
            )  # fmt: skip

        return measure

    def plan(config: Any, *, images: int | None = None, progress: Any = None) -> RunPlan:
        return plan_run(config, images=images, measurement=measurement, progress=progress)

    return plan


def fitted(seconds: float, *words: str, images: int = 9000, speed: float = 2e11) -> FittingRun:
    config = parse_recipe("own-images", [*PUBLISHED, *words])
    return run_within(config, seconds, images=images, plan=machine(speed))


PUBLISHED = [
    "--model.image_size", "96", "--model.patch_size", "8", "--model.depth", "6",
    "--model.decoder_depth", "6", "--model.dim", "192", "--optim.epochs", "400",
    "--optim.batch_size", "64", "--optim.warmup_epochs", "20", "--model.num_heads", "6",
    "--model.decoder_num_heads", "6", "--model.mask_tokens", "encoder", "--objective.gamma", "0",
]  # fmt: skip
"""Sizes to start from that do not change with the recipe."""


def hours_of(found: FittingRun) -> float:
    assert found.plan.hours is not None
    return found.plan.hours


def test_a_day_becomes_an_hour_by_fewer_layers() -> None:
    whole = machine(4e10)(parse_recipe("own-images", PUBLISHED), images=9000)
    assert whole.hours > 40
    found = fitted(3600, speed=4e10)
    model = found.plan.config.model
    assert model is not None
    assert (model.depth, model.decoder_depth) == (2, 2)
    assert model.patch_hw == (8, 8), "fewer layers were enough"
    assert 0.6 * TRAINING_SHARE < hours_of(found) <= TRAINING_SHARE
    assert found.plan.schedule.steps >= ENOUGH[False]
    optim = found.plan.config.optim
    assert optim.warmup_epochs == pytest.approx(optim.epochs / 20, abs=0.01)
    assert set(found.settings) == {
        "model.depth", "model.decoder_depth", "optim.epochs", "optim.warmup_epochs"
    }  # fmt: skip
    text = fitting_text(found, found.command("own-images"))
    assert "2 + 2 layers in place of 6 + 6" in text
    assert text.endswith(found.command("own-images"))


def test_minutes_take_larger_patches_too() -> None:
    for seconds, side in ((600, 12), (300, 16)):
        model = fitted(seconds, speed=4e10).plan.config.model
        assert model is not None
        assert (model.depth, model.patch_hw) == (2, (side, side))


def test_enough_time_keeps_the_recipe() -> None:
    found = fitted(1e7)
    assert found.settings == {}
    assert found.reasons == ["the recipe as it is"]
    few = fitted(1e7, images=200)  # few images need more epochs
    assert set(few.settings) == {"optim.epochs", "optim.warmup_epochs"}
    assert AIM == 2000
    assert AIM <= few.plan.schedule.steps < 1.05 * AIM


def test_the_command_makes_that_run() -> None:
    found = fitted(3600, speed=4e10)
    _, verb, *words = found.command("own-images", PUBLISHED).split()
    assert verb == "pretrain"
    assert parse_pretrain(words)[0] == found.plan.config


def test_a_fixed_model_changes_its_epochs_alone() -> None:
    config = parse_recipe("own-images", PUBLISHED)
    found = run_within(config, 600, images=9000, plan=machine(4e10), fixed_model=True)
    assert not any(key.startswith("model.") for key in found.settings)
    assert any("fewer than the 1,000" in reason for reason in found.reasons)


def test_the_recipe_as_it_is_keeps_its_model_where_a_thousand_steps_fit() -> None:
    config = parse_recipe("own-images")
    whole = machine(1e10)(config, images=900)
    each = 3600 * whole.hours / whole.schedule.steps
    kept = run_within(config, 1010 * each / TRAINING_SHARE, images=900, plan=machine(1e10))
    assert kept.plan.config.model == config.model
    assert kept.plan.schedule.steps >= ENOUGH[False] == 1000
    assert set(kept.settings) == {"optim.epochs", "optim.warmup_epochs"}
    short = run_within(config, 900 * each / TRAINING_SHARE, images=900, plan=machine(1e10))
    assert short.plan.config.model == config.model, "it is as small as it gets"
    assert any("fewer than the 1,000" in reason for reason in short.reasons)


SIMDINO = [
    "--model.image_size", "48", "--model.depth", "4", "--data.source", "digits",
    "--simdino.crops.local_size", "24",
]  # fmt: skip


def simdino(seconds: float, *words: str) -> FittingRun:
    config = parse_recipe("cifar10-simdino", [*SIMDINO, *words])
    return run_within(config, seconds, images=9000, plan=machine(1e11))


def test_an_encoder_alone_is_made_shallower_and_its_crops_stay_whole() -> None:
    found = simdino(600)
    assert found.settings["model.depth"] == 2
    assert "model.decoder_depth" not in found.settings
    assert found.reasons[0] == "2 layers in place of 4: more steps of a shallower model"
    _, _, *words = shlex.split(found.command("cifar10-simdino", SIMDINO))
    assert parse_pretrain(words)[0] == found.plan.config
    # Crops of 20 pixels hold no patches of 6 or of 8.
    for crops, side in (("24", 8), ("20", 4)):
        model = simdino(60, "--simdino.crops.local_size", crops).plan.config.model
        assert model is not None
        assert (model.depth, model.patch_hw) == (2, (side, side))


def test_settings_that_a_smaller_model_would_break_keep_it_as_it_is() -> None:
    deep = fitted(600, "--objective.gamma", "0.1", "--objective.layer", "5", speed=4e10)
    model = deep.plan.config.model
    assert model is not None
    assert model.depth == 6, "the layer that is trained on stays"
    # Squares of two patches do not divide a grid of 5 x 5.
    words = ["--model.image_size", "80", "--masking.square", "2"]
    squares = fitted(100, *words, speed=4e10).plan.config.model
    assert squares is not None
    assert (squares.depth, squares.patch_hw) == (2, (8, 8))


def test_a_supervised_run_gets_its_epochs() -> None:
    words = ["--from-scratch", "cifar10", "--optim.batch_size", "16"]
    config = parse_recipe("finetune-cifar10-small", words)
    found = run_within(config, 600, images=500, plan=machine(2e11))
    assert isinstance(found.plan.config, FinetuneConfig)
    assert set(found.settings) <= {"optim.epochs", "optim.warmup_epochs"}
    assert hours_of(found) <= TRAINING_SHARE * 600 / 3600
    assert found.command("finetune-cifar10-small").startswith("crate-mae finetune --config")


@settings(max_examples=12, deadline=None)
@given(
    seconds=st.sampled_from([600.0, 3600.0, 28_800.0]),
    images=st.integers(5, 2_000_000),
    speed=st.sampled_from([5e10, 1e12]),
)
def test_whatever_fits_fits(seconds: float, images: int, speed: float) -> None:
    found = fitted(seconds, images=images, speed=speed)
    assert isinstance(found.plan.config, PretrainConfig)
    assert hours_of(found) * 3600 <= TRAINING_SHARE * seconds * 1.001
    optim = found.plan.config.optim
    assert optim.batch_size <= images
    limit = found.plan.config.data.limit
    assert (limit or images) >= optim.batch_size
    assert optim.warmup_epochs <= optim.epochs


def time_for(steps: int, whole: RunPlan) -> float:
    """Seconds that leave room for so many steps of a run."""
    assert whole.hours is not None
    return (steps + 0.5) * 3600 * whole.hours / whole.schedule.steps / TRAINING_SHARE


@cache
def published() -> RunPlan:
    """A plan whose images and batch are replaced; its steps take as long whatever they are."""
    plan: RunPlan = machine(1e11)(parse_recipe("own-images", PUBLISHED), images=9000)
    return plan


@settings(max_examples=60, deadline=None)
@given(
    there=st.integers(200, 4000),
    share=st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5]) | st.floats(0.01, 0.9),
    at_most=st.sampled_from([None, 1, 30, 10_000]),
    batch=st.integers(1, 20),
    steps=st.integers(2, 500),
)
def test_the_run_has_the_images_and_steps_that_are_promised(
    there: int, share: float, at_most: int | None, batch: int, steps: int
) -> None:
    planned_once = published()
    before: Any = planned_once.adapted
    config = replace(
        before,
        data=replace(before.data, val_share=share, val_limit=at_most),
        optim=replace(before.optim, batch_size=batch),
    )
    source = ArraySource("a", np.zeros((there, 1, 1), np.uint8), prefix="a")

    def trains(limit: int | None) -> int:
        images = source if limit is None else random_subset(source, limit)
        return len(split_off(images, share, 0, at_most)[0] if share else images)

    def plan(config: Any, *, images: int, progress: Any = None) -> RunPlan:  # noqa: ARG001
        return replace(
            planned_once,
            config=config,
            adapted=config,
            images=replace(planned_once.images, count=images),
            schedule=schedule(images, config.optim),
        )

    whole = plan(config, images=trains(None))
    found = run_within(
        config, time_for(steps, whole), images=trains(None), plan=plan, fixed_model=True
    )
    run, planned = found.plan.config, found.plan.schedule
    assert run.optim.batch_size == batch, "the images still fill a batch"
    left = trains(run.data.limit)
    assert found.plan.images.count == planned.images == left
    assert planned.steps_per_epoch == left // batch
    assert 2 <= planned.steps == run.optim.epochs * planned.steps_per_epoch <= steps
    if run.data.limit is not None:
        assert left == steps // 2 * batch, "as many as are seen twice"
        assert f"{left:,} of {trains(None):,} images" in found.reasons[0]


def test_few_steps_of_large_batches_fill_them() -> None:
    # 568 images would leave 511 to train on, one too few for two batches.
    words = ["--data.source", "digits", "--data.val_share", "0.1", "--optim.batch_size", "256"]
    words += ["--model.image_size", "8", "--model.patch_size", "2"]
    config, plan = parse_recipe("own-images", words), machine(1e11)
    found = run_within(config, time_for(4, plan(config)), plan=plan, fixed_model=True)
    assert found.settings["data.limit"] == 569
    assert found.plan.images.count == count_images(found.plan.config).count == 512
    assert found.plan.schedule.steps == 4
    assert "512 for training (digits)" in fitting_text(found, "")
    more = run_within(config, time_for(40, plan(config)), plan=plan, fixed_model=True)
    assert more.plan.images.count == plan(config).images.count == plan(config).schedule.images
    assert "data.limit" not in more.settings


def test_classes_that_each_give_a_share_leave_enough() -> None:
    words = ["--from-scratch", "digits", "--data.source", "digits", "--optim.batch_size", "64"]
    words += ["--data.val_share", "0.15"]
    config, plan = parse_recipe("finetune-cifar10-small", words), machine(1e11)
    for steps in (2, 7, 12):
        found = run_within(config, time_for(steps, plan(config)), plan=plan)
        assert found.plan.images.count == count_images(found.plan.config).count
        assert found.plan.schedule.steps_per_epoch == steps // 2


def test_what_a_limit_does_not_shorten_takes_an_epoch_or_is_refused() -> None:
    config = parse_recipe("own-images", [*PUBLISHED, "--data.source", "wds:x.tar"])
    plan = machine(1e11)
    whole = plan(config, images=9000)
    each = whole.schedule.steps_per_epoch
    once = run_within(config, time_for(each, whole), images=9000, plan=plan, fixed_model=True)
    assert (once.plan.schedule.epochs, once.plan.schedule.images) == (1, 9000)
    assert "data.limit" not in once.settings
    with pytest.raises(ValueError, match=r"does not shorten it: give more time, or fewer shards"):
        run_within(config, time_for(each - 1, whole), images=9000, plan=plan, fixed_model=True)


def test_what_cannot_be_measured_or_read(capsys: pytest.CaptureFixture[str]) -> None:
    unmeasured = partial(plan_run, measure=False)
    with pytest.raises(ValueError, match="could not be measured"):
        run_within(parse_recipe("digits"), 600, images=100, plan=unmeasured)
    with pytest.raises(ValueError, match="give more time"):
        fitted(1, speed=1e10)
    for words in (["--within", "soon"], ["--within", "0h"], ["--within", "1h", "--no-measure"]):
        with pytest.raises(SystemExit) as left:
            main(["plan", "digits", *words])
        assert left.value.code == 2
        assert "--within" in capsys.readouterr().err
