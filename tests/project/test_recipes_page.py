"""The page on recipes: its commands run, its tables hold what is counted."""

import re
from pathlib import Path

import numpy as np
import pytest
from pages import SMALL, commands_of
from PIL import Image

from crate_mae.cli import main
from crate_mae.plan.amounts import schedule
from crate_mae.plan.real_step import planned_run
from crate_mae.plan.recipe import parse_recipe
from crate_mae.training.parse import recipe

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text("utf-8")
COMMANDS = commands_of(PAGE)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, pictures in classes and an array of seven bands."""
    generator = np.random.default_rng(0)
    for folder, count in (("pictures", 72), ("classes/cats", 90), ("classes/dogs", 90)):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    np.save(tmp_path / "bands.npy", generator.random((72, 7, 20, 24), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_is_short_and_says_how_to_look() -> None:
    assert len(PAGE.split()) <= 2_000
    assert {verb for verb, *_ in COMMANDS} == {"data", "plan", "pretrain"}


def test_its_commands_run(workplace: Path) -> None:
    for verb, *words in COMMANDS:
        if verb == "pretrain":
            words += SMALL
        if verb == "plan" and "--no-measure" not in words:
            words += ["--optim.batch_size", "8", "--no-measure"]
        if "imagenet1k" in words:
            words += ["--model.depth", "1", "--model.decoder_depth", "1"]
        assert main([verb, *words]) == 0, (verb, words)
    assert (workplace / "runs" / "mine" / "weights" / "model.safetensors").is_file()


def test_seven_bands_train(workplace: Path) -> None:
    words = ["--config", "own-images", "--data.source", "npy:bands.npy", "--model.channels", "7"]
    assert main(["pretrain", *words, *SMALL, "--out", "runs/bands"]) == 0
    assert (workplace / "runs" / "bands" / "weights").is_dir()


def test_the_recipes_it_names_are_shipped() -> None:
    rows = re.findall(r"^\| [^|]+ \| (`.+?) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z][\w-]+)`", row)}
    for name in named & {path.stem for path in recipe("digits").parent.glob("*.yaml")}:
        assert recipe(name)
    assert {"digits", "cifar10", "own-images", "imagenet1k", "finetune-pets"} <= named


def test_the_table_of_steps() -> None:
    optim = parse_recipe("own-images").optim
    rows = re.findall(
        r"^\| ([\d,]+) \| ([\d,]+) \| .*--optim.epochs (\d+)` \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 3
    for pictures, steps, epochs in rows:
        total = int(pictures.replace(",", ""))
        found = schedule(total - round(total / 10), optim)
        assert f"{found.steps:,}" == steps
        assert found.steps_per_epoch * int(epochs) == pytest.approx(2_000, rel=0.02)


def test_the_table_of_operations() -> None:
    row = r"^\| (\[[\d, ]+\]|\d+), (\d+)(?: \(the recipe\))? \| (\d+) \| ([\d.]+) \|$"
    rows = re.findall(row, PAGE, re.MULTILINE)
    assert len(rows) == 6
    for size, patch, tokens, operations in rows:
        words = ["--model.image_size", size, "--model.patch_size", patch]
        subject = planned_run(parse_recipe("own-images", words))
        assert subject.tokens[0] == int(tokens)
        digits = len(operations.partition(".")[2])
        assert round(subject.flops(64) / 64e9, digits) == float(operations)
