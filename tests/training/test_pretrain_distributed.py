"""Two processes that share each batch train the model that one process trains."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import PATIENCE
from training_runs import command_line, final_state, records, small_config, write_recipe

from crate_mae.training.config import OptimConfig, TrainerConfig
from crate_mae.training.pretrain import pretrain


def test_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    """Also with one validation batch more on one rank: 33 images are 17 and 16."""
    one = small_config(optim=OptimConfig(epochs=2, batch_size=32, base_lr=1e-3, warmup_epochs=1))
    one = replace(one, data=replace(one.data, limit=220, val_share=0.15))
    two = replace(
        one, trainer=TrainerConfig(accelerator="cpu", devices=2, strategy="ddp", loggers=("csv",))
    )
    recipe = write_recipe(two, tmp_path / "two.yaml")
    run = command_line("pretrain", "--config", recipe, "--out", tmp_path / "two")
    pretrain(one, tmp_path / "one")
    output, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, output
    assert "2 devices x 1 accumulated x 16" in output
    first, second = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=1e-4, rtol=1e-4)
    validation = [
        [record["val/loss"] for record in records(tmp_path / name) if "val/loss" in record]
        for name in ("one", "two")
    ]
    torch.testing.assert_close(
        torch.tensor(validation[0]), torch.tensor(validation[1]), atol=1e-4, rtol=1e-4
    )
    assert len(validation[0]) == 2
    training = [
        [record["train/loss"] for record in records(tmp_path / name) if "train/loss" in record]
        for name in ("one", "two")
    ]
    torch.testing.assert_close(
        torch.tensor(training[0]), torch.tensor(training[1]), atol=1e-4, rtol=1e-4
    )
    assert output.count("finished:") == 1, "one process speaks"
    with (tmp_path / "two" / "csv" / "metrics.csv").open(newline="") as file:
        followed = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert followed == training[1], "one process tracks"


def test_sharded_weights_need_gpus() -> None:
    with pytest.raises(ValueError, match="fsdp shards weights over GPUs"):
        TrainerConfig(accelerator="cpu", devices=2, strategy="fsdp")
