"""Every shipped recipe parses, states what it must, builds its model and takes a step."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mae.data.module import DataConfig
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.training.config import OptimConfig, PretrainConfig, RecordConfig, TrainerConfig
from crate_mae.training.parse import parse_pretrain, recipe
from crate_mae.training.run import pretrain

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_document(path: Path) -> None:
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for word in ("Purpose", "Command", "Machine", "Seed"):
        assert re.search(rf"^# {word}\b", header, re.MULTILINE), f"{path.name} lacks {word}"
    assert recipe(path.stem).read_bytes() == path.read_bytes()
    config, _ = parse_pretrain(["--config", str(path)])
    with torch.device("meta"):
        count = sum(p.numel() for p in CrateMAE(config.model).parameters())
    assert f"{count / 1e6:.2f} million parameters" in header
    assert f"# Seed      {config.seed}" in header


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_and_takes_a_step(path: Path, tmp_path: Path) -> None:
    config, _ = parse_pretrain(["--config", str(path)])
    height, width = config.model.image_hw
    images = tmp_path / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for index in range(3):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index}.png")
    summary = pretrain(small_step(config, images), tmp_path / "run")
    assert summary.step == 1
    assert np.isfinite(summary.metrics["train/loss"])


def small_step(config: PretrainConfig, images: Path) -> PretrainConfig:
    """The recipe's model, masks, augmentation and optimiser for one step on this machine."""
    data = replace(
        config.data, source=f"imagefolder:{images}", split=None, val_split=None, val_share=0.34,
        workers=0,
    )  # fmt: skip
    assert isinstance(data, DataConfig)
    return replace(
        config,
        data=data,
        optim=replace(config.optim, epochs=1, batch_size=2, warmup_epochs=0),
        trainer=TrainerConfig(accelerator="cpu", devices=1),
        record=RecordConfig(log_every=1, reconstruct_epochs=0),
    )


def test_defaults_are_those_of_the_dataclasses() -> None:
    config, options = parse_pretrain([])
    assert config == PretrainConfig()
    assert set(options.values()) == {None}


def test_settings_on_the_command_line_win_over_the_recipe() -> None:
    config, _ = parse_pretrain(
        ["--config", "digits", "--model.dim", "32", "--optim.betas", "[0.8, 0.9]"]
    )
    assert config.model.dim == 32
    assert config.optim == replace(
        parse_pretrain(["--config", "digits"])[0].optim, betas=(0.8, 0.9)
    )
    assert isinstance(config.optim, OptimConfig)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.dimm", "3"], "--model.dim"),
        (["--model.dim", "30"], "multiple of 4"),
        (["--masking.ratio", "0.999"], "keeps no patch"),
        (["--config", "digit"], "did you mean 'digits'"),
        (["--resume", "nowhere"], "no run folder"),
        (["--trainer.precision", "fp8"], "precision"),
    ],
)
def test_faults_are_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parse_pretrain(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    import yaml

    config, _ = parse_pretrain(["--config", "cifar10"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert parse_pretrain(["--config", str(path)])[0] == config
