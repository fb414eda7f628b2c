"""Every shipped recipe parses, states what it must, builds its model and takes a step."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mae.batches.config import DataConfig, LabelledDataConfig
from crate_mae.models.config import ModelConfig
from crate_mae.plan.real_step import planned_run
from crate_mae.training.config import (
    CheckpointConfig,
    FinetuneConfig,
    OptimConfig,
    PretrainConfig,
    RecordConfig,
    TrainerConfig,
)
from crate_mae.training.finetune import finetune
from crate_mae.training.parse import parse_finetune, parse_pretrain, recipe
from crate_mae.training.pretrain import pretrain

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SUPERVISED = [path for path in RECIPES if path.stem.startswith("finetune-")]
PRETRAINING = [path for path in RECIPES if path not in SUPERVISED]


def header_of(path: Path) -> str:
    """The comment on top of a recipe."""
    return "\n".join(line for line in path.read_text("utf-8").splitlines() if line.startswith("#"))


def field_of(header: str, word: str) -> str:
    """What a header says under one word, on one line."""
    found = re.search(rf"^# {word} +(.+(?:\n# {{5,}}.+)*)", header, re.MULTILINE)
    assert found is not None
    return re.sub(r"\n# +", " ", found[1])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_document(path: Path) -> None:
    header = header_of(path)
    for word in ("Purpose", "Command", "Machine", "Time", "Memory", "Steps", "Expect", "Seed"):
        assert re.search(rf"^# {word}\b +\S", header, re.MULTILINE), f"{path.name} lacks {word}"
    memory = field_of(header, "Memory")
    assert re.match(r"\d[\d.]* GiB", memory)
    assert re.search(r"\b(measured|estimated)\b", memory)
    assert re.search(r"\d|not measured", field_of(header, "Time"))
    assert all(len(line) <= 100 for line in header.splitlines())
    assert recipe(path.stem).read_bytes() == path.read_bytes()
    parse = parse_finetune if path in SUPERVISED else parse_pretrain
    config, _ = parse(["--config", str(path)])
    assert config.name == path.stem or path in PRETRAINING
    assert f"# Seed      {config.seed}" in header
    assert f"--config {path.stem}" in header


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: path.stem)
def test_a_recipe_says_how_large_its_model_is(path: Path) -> None:
    config, _ = parse_pretrain(["--config", str(path)])
    count = planned_run(config).parameters()
    assert f"{count / 1e6:.2f} million parameters" in header_of(path)


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("finetune-mae", 1_281_167), ("finetune-cifar10", 50_000), ("finetune-cifar100", 50_000),
        ("finetune-flowers102", 1_020), ("finetune-pets", 3_680),
        ("finetune-cifar10-small", 49_000), ("finetune-few-labels", 300),
        ("finetune-segment", 271),
    ],
)  # fmt: skip
def test_a_supervised_recipe_says_how_many_steps_it_takes(name: str, images: int) -> None:
    config, _ = parse_finetune(["--config", name])
    steps = images // config.optim.batch_size
    text = f"{steps * config.optim.epochs:,} ({steps:,} an epoch, batch {config.optim.batch_size:,}"
    assert f"{text}, {config.optim.epochs} epochs)" in header_of(recipe(name))


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("cifar10", 50_000), ("cifar10-gpu", 50_000), ("cifar10-overcomplete", 50_000),
        ("cifar10-shallow", 50_000), ("cifar10-simdino", 50_000), ("digits", 1_437),
        ("imagenet1k", 1_281_167), ("own-images", 1_884 - 188), ("tiny-imagenet", 50_000),
    ],
)  # fmt: skip
def test_a_recipe_of_pre_training_says_how_many_steps_it_takes(name: str, images: int) -> None:
    config, _ = parse_pretrain(["--config", name])
    optim, header = config.optim, header_of(recipe(name))
    steps = images // optim.batch_size
    text = f"{steps * optim.epochs:,} ({steps:,} an epoch, batch {optim.batch_size:,}, "
    assert f"{text}{optim.epochs:,} epochs)" in header
    if name == "own-images":
        assert f"{9000 // optim.batch_size * optim.epochs:,} for 10,000." in header


def test_every_recipe_says_its_steps() -> None:
    tests = (
        test_a_recipe_of_pre_training_says_how_many_steps_it_takes,
        test_a_supervised_recipe_says_how_many_steps_it_takes,
    )
    told = {name for test in tests for name, _ in test.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    assert told == {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", SUPERVISED, ids=lambda path: path.stem)
def test_a_supervised_recipe_builds_at_its_own_size(path: Path) -> None:
    """A real step of the whole network that its header speaks of, on one image."""
    size = "cifar10" if path.stem.endswith("-small") else "base"
    config, _ = parse_finetune(["--from-scratch", size, "--config", str(path)])
    subject = replace(planned_run(config), classes=2)
    module = subject.module()
    torch.autograd.backward(module.loss(subject.batch(1)))
    assert all(
        p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.model.parameters()
    )


@pytest.mark.parametrize("path", SUPERVISED, ids=lambda path: path.stem)
def test_torchvision_knows_the_images_of_a_supervised_recipe(path: Path) -> None:
    import torchvision

    config, _ = parse_finetune(["--config", str(path)])
    scheme, _, name = config.data.source.partition(":")
    assert scheme == "imagefolder" or hasattr(torchvision.datasets, name)


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: path.stem)
def test_a_recipe_builds_and_takes_a_step(path: Path, tmp_path: Path) -> None:
    config, _ = parse_pretrain(["--config", str(path)])
    images = tmp_path / "images"
    random_images(images, 3, config.model.image_hw)
    summary = pretrain(small_step(config, images), tmp_path / "run")
    assert summary.step == 1
    assert np.isfinite(summary.metrics["train/loss"])


@pytest.mark.parametrize("path", SUPERVISED, ids=lambda path: path.stem)
def test_a_supervised_recipe_builds_and_takes_a_step(path: Path, tmp_path: Path) -> None:
    """With its size, augmentation and optimiser, on a narrow model of two layers."""
    config, _ = parse_finetune(["--config", str(path)])
    for folder in ("cats", "dogs"):
        random_images(tmp_path / "images" / folder, 4, (40, 36))
        if config.task == "segment":
            random_masks(tmp_path / "masks" / folder, 4, (40, 36))
    if config.task == "segment":
        segment = replace(config.segment, masks=str(tmp_path / "masks"))
        config = replace(config, segment=segment, evaluate="last")
    model = ModelConfig(
        image_size=32, patch_size=8, dim=16, depth=2, num_heads=2, decoder_num_heads=2
    )
    summary = finetune(small_supervised_step(config, model, tmp_path / "images"), tmp_path / "run")
    assert summary.step == 1
    assert np.isfinite(summary.metrics["train/loss"])
    measured = "test/mean_iou" if config.task == "segment" else "test/accuracy"
    assert measured in summary.metrics


def random_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write that many random colour images."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


def random_masks(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write that many random masks of two classes, which serve images of the same names."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    for index in range(count):
        values = generator.integers(0, 2, size, dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")


def small_supervised_step(
    config: FinetuneConfig, model: ModelConfig, images: Path
) -> FinetuneConfig:
    """The recipe for one step from scratch on this machine."""
    data = replace(
        config.data, source=f"imagefolder:{images}", split=None, val_split=None, val_share=0.0,
        test_split=None, workers=0,
    )  # fmt: skip
    assert isinstance(data, LabelledDataConfig)
    return replace(
        config,
        model=model,
        data=data,
        optim=replace(config.optim, epochs=1, batch_size=4, warmup_epochs=0),
        trainer=TrainerConfig(accelerator="cpu", devices=1),
        record=CheckpointConfig(log_every=1),
    )


def small_step(config: PretrainConfig, images: Path) -> PretrainConfig:
    """The recipe's model, masks, augmentation and optimiser for one step on this machine.

    Two layers a side stand for all, which are alike.
    """
    few = {name: min(2, getattr(config.model, name)) for name in ("depth", "decoder_depth")}
    data = replace(
        config.data, source=f"imagefolder:{images}", split=None, val_split=None, val_share=0.34,
        workers=0,
    )  # fmt: skip
    assert isinstance(data, DataConfig)
    return replace(
        config,
        model=replace(config.model, **few),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weights", "--optim.dropath", "0.1"], "--optim.drop_path"),
        (["weights", "--evaluate", "best"], "data.val_share"),
        (["--from-scratch", "tiniest"], "presets: debug, tiny"),
        (["weights", "--from-scratch", "tiny"], "exclude each other"),
        (["--from-scratch", "tiny", "--resume", "run"], "exclude each other"),
        (["--from-scratch", "finetune-mae"], "holds no model section"),
        (["weights", "--config", "finetune-pet"], "did you mean 'finetune-pets'"),
        (["--resume", "nowhere"], "no run folder"),
        (["weights", "--resume", "run", "--out", "other"], "leave --out out"),
        (["weights", "--pool", "max"], "pool"),
        (["weights", "--optim.ema", "0.9", "--trainer.strategy", "fsdp"], "optim.ema"),
    ],
)
def test_faults_of_a_supervised_command_are_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parse_finetune(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_where_a_supervised_run_starts(tmp_path: Path) -> None:
    import yaml

    assert parse_finetune(["w", "--seed", "3"])[0] == FinetuneConfig(weights="w", seed=3)
    assert parse_finetune(["--weights", "w"])[0].weights == "w"
    assert parse_finetune([])[0] == FinetuneConfig()
    recipe_model = parse_pretrain(["--config", "digits"])[0].model
    words = ["--config", "finetune-cifar10-small", "--model.sparsity", "0.1"]
    scratch, _ = parse_finetune(["--from-scratch=digits", *words])
    assert scratch.model == replace(recipe_model, sparsity=0.1)
    assert scratch.data.augment.mixup == 0.2
    (tmp_path / "run").mkdir()
    recorded = tmp_path / "run" / "config.yaml"
    recorded.write_text(yaml.safe_dump(scratch.to_dict()))
    again, _ = parse_finetune(["--from-scratch", str(tmp_path / "run")])
    assert again.model == scratch.model
    resumed, options = parse_finetune(["--resume", str(tmp_path / "run")])
    assert resumed == scratch
    assert options["resume"] == str(tmp_path / "run")


def test_the_resolved_configuration_reads_back(tmp_path: Path) -> None:
    import yaml

    config, _ = parse_pretrain(["--config", "cifar10"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert parse_pretrain(["--config", str(path)])[0] == config
