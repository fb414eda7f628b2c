"""The practitioner's path, from pictures to few labels: its commands run, one after the other."""

import json
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, SMALL, commands_of
from PIL import Image

from crate_mae.cli import main

PAGE = (ROOT / "docs" / "own-images.md").read_text("utf-8")
COMMANDS = commands_of(PAGE)
CONTINUED = [*SMALL[SMALL.index("--optim.epochs") :]]
"""What makes a run small whose model comes with its weights."""
FEW = ["--optim.epochs", "2", "--optim.warmup_epochs", "0", "--trainer.accelerator", "cpu"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of which two are alike, two classes of labelled ones, and a new one."""
    generator = np.random.default_rng(0)
    colours = {"blue": (40, 60, 200), "red": (200, 60, 40)}
    for folder, count in (
        ("pictures", 36), ("labelled/train/blue", 12), ("labelled/train/red", 12),
        ("labelled/test/blue", 8), ("labelled/test/red", 8),
    ):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
        for index in range(count):
            name = Path(folder).name if "labelled" in folder else list(colours)[index % 2]
            coarse = generator.normal(0, 40, (5, 6, 3)) + colours[name]
            pixels = np.kron(coarse, np.ones((8, 8, 1))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    double = Image.open(tmp_path / "pictures" / "3.png")
    double.point(lambda value: min(255, value + 3)).save(tmp_path / "pictures" / "double.png")
    double.save(tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    # Real steps are measured: a machine that is busy with other things must get to them.
    monkeypatch.setattr("crate_mae.plan.plan.TIMEOUT", 1800.0)
    monkeypatch.setattr("crate_mae.plan.probe_step.ROUNDS", 1)  # that there are more: tests/plan
    # Few images can be separated, where the minimum is far away: not what is asked here.
    monkeypatch.setattr("crate_mae.evaluation.regression.MAX_STEPS", 20)
    return tmp_path


def small(verb: str, words: list[str]) -> list[str]:
    """The words of a command and what makes it small."""
    if verb in ("pretrain", "plan"):
        return [*words, *(CONTINUED if "--init-from" in words else SMALL)]
    return [*words, *FEW] if verb == "finetune" else words


def test_its_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = [verb for verb, *_ in COMMANDS]
    assert verbs == [
        "data", "neighbours", "plan", "pretrain", "pretrain", "plan", "report", "compare", "probe",
        "knn", "finetune", "finetune", "compare", "finetune", "neighbours", "segment",
    ]  # fmt: skip
    told = {}
    for number, (verb, *words) in enumerate(COMMANDS):
        capsys.readouterr()
        assert main([verb, *small(verb, words)]) == 0, (verb, words)
        told[number] = capsys.readouterr().out
    assert "crate-mae pretrain --config own-images" in told[2], "a command to type"
    found = json.loads((workplace / "check.json").read_text("utf-8"))
    pairs = [{pair["first"], pair["second"]} for pair in found["near_duplicates"]]
    assert {"3.png", "double.png"} in pairs
    assert "very few" in told[3]
    rows = json.loads((workplace / "probe.json").read_text("utf-8"))["rows"]
    assert [(row["subject"], row["pool"]) for row in rows] == [
        ("model", "mean"), ("model", "layers"), ("random baseline", "mean"),
        ("random baseline", "layers"), ("raw pixels", "pixels"),
    ]  # fmt: skip
    assert rows[0]["seeds"] == [0, 1, 2, 3, 4]
    assert "in words:" in told[8]
    assert "test over 2 seeds: " in told[12]
    assert " 3.png" in "".join(told[14].splitlines()[1:3]), "the picture itself or its double"
    for made in ("check.png", "both.png", "few.png", "near.png", "cut.png"):
        assert (workplace / made).stat().st_size > 1000, made
