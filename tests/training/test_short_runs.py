"""Recipes that are too large for the images at hand: adapted aloud, and the run takes place."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_runs import small_config

from crate_mae.batches.config import DataConfig
from crate_mae.training.config import FinetuneConfig, FinetuneOptimConfig, OptimConfig
from crate_mae.training.pretrain import pretrain
from crate_mae.training.run_folder import load_config_values
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
