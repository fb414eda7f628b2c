"""Recipes that are too large for the images at hand: adapted aloud, and the run takes place."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_runs import small_config, small_finetune, two_processes, write_recipe

from crate_mae.batches.config import DataConfig
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.training.companions import Companions
from crate_mae.training.config import (
    FinetuneConfig,
    FinetuneOptimConfig,
    OptimConfig,
    TrainerConfig,
)
from crate_mae.training.finetune import finetune
from crate_mae.training.pretrain import pretrain
from crate_mae.training.run_folder import load_config_values
from crate_mae.training.session import Session
from crate_mae.training.short_runs import fitted_to_images


@given(
    images=st.integers(1, 3000), batch=st.sampled_from([16, 64, 100, 256]),
    shares=st.sampled_from([1, 2, 3, 8]),
)  # fmt: skip
def test_the_batch_fits_and_can_be_shared(images: int, batch: int, shares: int) -> None:
    config = FinetuneConfig(optim=FinetuneOptimConfig(batch_size=batch, base_lr=1e-3))
    found = fitted_to_images(config, images, shares)
    if images >= batch or images < shares:
        assert found is config
        return
    size = found.optim.batch_size
    assert size <= images
    assert size < batch or size == shares
    assert size % shares == 0
    assert images // size >= 4 or size == shares
    # The peak rate goes with the root of the batch.
    assert found.optim.peak_lr / config.optim.peak_lr == pytest.approx(
        (size / batch) ** 0.5, rel=0.01
    )


def test_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = FinetuneConfig(optim=FinetuneOptimConfig(batch_size=128, base_lr=2e-3))
    found = fitted_to_images(config, 90, 1)
    assert (found.optim.batch_size, found.optim.base_lr) == (16, 5.66e-3)
    assert "90 training images do not fill a batch of 128: optim.batch_size is 16" in caplog.text
    assert "from 0.001 to 0.000354" in caplog.text


@pytest.mark.parametrize("kind", ["mae", "head"])
def test_the_run_is_set_up_once_and_its_images_alone_are_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    done: list[str] = []

    def counted(owner: type, name: str) -> None:
        whole = getattr(owner, name)

        def noted(*words: Any, **options: Any) -> Any:
            done.append(f"{owner.__name__}.{name}")
            return whole(*words, **options)

        monkeypatch.setattr(owner, name, noted)

    counted(Session, "__init__")
    counted(Companions, "__enter__")
    counted(ImageDataModule, "open")
    if kind == "mae":
        few: Any = small_config(
            data=DataConfig(source="digits", limit=40),
            optim=OptimConfig(epochs=1, batch_size=64, warmup_epochs=0),
        )
        summary = pretrain(few, tmp_path / "run", stop_after=1)
    else:
        few = small_finetune()
        few = replace(
            few,
            data=replace(few.data, limit=40, val_share=0.1),
            optim=replace(few.optim, batch_size=64),
        )
        summary = finetune(few, tmp_path / "run", stop_after=1)
    assert summary.step == 1
    assert Counter(done)["Session.__init__"] == Counter(done)["Companions.__enter__"] == 1
    recorded = load_config_values(tmp_path / "run")["optim"]
    assert recorded["batch_size"] == 8
    assert recorded["base_lr"] == pytest.approx(few.optim.base_lr * 8**0.5, rel=1e-2)
    assert "learning rate" in (tmp_path / "run" / "log.txt").read_text("utf-8")


def test_two_processes_with_too_few_images_train_the_same_smaller_batches(tmp_path: Path) -> None:
    config = small_config(
        data=DataConfig(source="digits", limit=40),
        optim=OptimConfig(epochs=2, batch_size=64, warmup_epochs=1),
        trainer=TrainerConfig(accelerator="cpu", devices=2, strategy="ddp"),
    )
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    output = two_processes("pretrain", "--config", recipe, "--out", tmp_path / "run")
    assert "batch 8 (2 devices x 1 accumulated x 4), 4 steps x 2 epochs" in output
    assert load_config_values(tmp_path / "run")["optim"]["batch_size"] == 8


def test_a_run_of_fewer_images_than_a_batch_is_made_and_resumed(tmp_path: Path) -> None:
    few = small_config(
        data=DataConfig(source="digits", limit=40),
        optim=OptimConfig(epochs=2, batch_size=64, warmup_epochs=7),
    )
    summary = pretrain(few, tmp_path / "run", stop_after=3)
    assert not summary.finished
    recorded = load_config_values(tmp_path / "run")["optim"]
    assert recorded["batch_size"] == 8  # of 36 images, four steps and a rest
    assert recorded["warmup_epochs"] == pytest.approx(0.2)
    again = replace(few, optim=OptimConfig(**recorded))
    assert pretrain(again, tmp_path / "run", resume=True).step == 8
