"""Small runs that the training tests share."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from crate_mae.data.batches import Masking
from crate_mae.data.module import DataConfig
from crate_mae.data.transforms import Augment
from crate_mae.models.config import ModelConfig
from crate_mae.training.config import OptimConfig, PretrainConfig, RecordConfig, TrainerConfig

MODEL = ModelConfig(
    image_size=8,
    patch_size=2,
    channels=1,
    dim=16,
    depth=1,
    num_heads=2,
    decoder_depth=1,
    decoder_num_heads=2,
)


def small_config(**changes: Any) -> PretrainConfig:
    """Three epochs of five steps on 160 digits; any section can be replaced."""
    base = PretrainConfig(
        name="small",
        model=MODEL,
        data=DataConfig(
            source="digits", limit=200, augment=Augment(kind="pad_crop", padding=1), workers=0
        ),
        masking=Masking(),
        optim=OptimConfig(epochs=3, batch_size=32, base_lr=1e-2, warmup_epochs=1),
        trainer=TrainerConfig(accelerator="cpu", devices=1),
        record=RecordConfig(log_every=1, checkpoint_steps=2, reconstruct_epochs=0),
    )
    return replace(base, **changes)


def final_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a run's last checkpoint."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, Tensor] = checkpoint["state_dict"]
    return state


def records(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without those that depend on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("time", "speed"))}
        for line in lines
    ]


def write_recipe(config: PretrainConfig, path: Path) -> Path:
    """The configuration as a recipe file."""
    path.write_text(yaml.safe_dump(config.to_dict()))
    return path


def command_line(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
    """`crate-mae` in a process of its own, on one thread, so that sums are in a fixed order."""
    return subprocess.Popen(
        [sys.executable, "-m", "crate_mae", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
