"""Small runs that the training tests share."""

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from data_cases import MODEL
from processes import PATIENCE, CommandLine
from torch import Tensor

from crate_mae.batches.config import (
    Augment,
    DataConfig,
    LabelledDataConfig,
    Masking,
    SupervisedAugment,
)
from crate_mae.training import companions
from crate_mae.training.config import (
    CheckpointConfig,
    FinetuneConfig,
    FinetuneOptimConfig,
    OptimConfig,
    PretrainConfig,
    RecordConfig,
    TrainerConfig,
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


AUGMENT = SupervisedAugment(
    kind="pad_crop", padding=1, flip=False, rand_augment=3, erasing=0.25, mixup=0.8, cutmix=1.0
)


def small_finetune(**changes: Any) -> FinetuneConfig:
    """Three epochs of five steps on 160 digits, with everything random switched on."""
    base = FinetuneConfig(
        name="small",
        model=replace(MODEL, depth=2),
        data=LabelledDataConfig(
            source="digits", limit=200, val_share=0.2, test_limit=60, augment=AUGMENT, workers=0
        ),
        optim=FinetuneOptimConfig(
            epochs=3, batch_size=32, base_lr=1e-2, warmup_epochs=1, layer_decay=0.5, drop_path=0.5,
            label_smoothing=0.1, ema=0.6,
        ),
        trainer=TrainerConfig(accelerator="cpu", devices=1),
        record=CheckpointConfig(log_every=1, checkpoint_steps=2),
    )  # fmt: skip
    return replace(base, **changes)


def final_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a run's last checkpoint."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, Tensor] = checkpoint["state_dict"]
    return state


def records(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without those that depend on the clock."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("time", "speed"))}
        for line in lines
    ]


def assert_same_run(a: Path, b: Path) -> None:
    """Weights bit for bit, and every logged number."""
    first, second = final_state(a), final_state(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert records(a) == records(b)


def write_recipe(config: PretrainConfig | FinetuneConfig, path: Path) -> Path:
    """The configuration as a recipe file."""
    path.write_text(yaml.safe_dump(config.to_dict()))
    return path


def command_line(
    *words: str | Path,
    first: Callable[[], object] | None = None,
    torchrun: Sequence[str] | None = None,
    **environment: str,
) -> CommandLine:
    """`crate-mae` in a process of its own, on one thread, so that sums are in a fixed order."""
    return CommandLine(
        [str(word) for word in words],
        {**os.environ, "OMP_NUM_THREADS": "1", **environment},
        first=first,
        torchrun=torchrun,
    )


def lose_sooner() -> None:
    """Let this process take others for lost in a fraction of the time, so that a test waits less.

    That the whole time is short enough is reckoned from the constants in a test of its own.
    """
    companions.LOST /= 3
    companions.BEAT /= 3
    companions.GRACE /= 3


def two_processes(*words: str | Path) -> str:
    """What both processes of a run printed that were started from outside, as on a cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [
        command_line(
            *words, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", NODE_RANK="0",
            LOCAL_RANK=str(rank),
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [run.communicate()[0] for run in both]
    assert [run.returncode for run in both] == [0, 0], outputs
    return "".join(outputs)


def wait_for_lines(run: CommandLine | subprocess.Popen[str], folder: Path, count: int) -> None:
    """Return once a run has logged so many lines and saved a checkpoint; it must not end before."""
    log, last = folder / "metrics.jsonl", folder / "checkpoints" / "last.ckpt"
    given_up = time.monotonic() + PATIENCE
    while not last.exists() or len(log.read_bytes().splitlines()) < count:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < given_up
        time.sleep(0.001)


def killed_at_random(run: CommandLine, folder: Path) -> int:
    """The step of the last checkpoint of a run that was killed (SIGKILL) at a random moment."""
    try:
        wait_for_lines(run, folder, random.Random(time.time_ns()).randint(5, 20))
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == -signal.SIGKILL
    step: int = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    return step
