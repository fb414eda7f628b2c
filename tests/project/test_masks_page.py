"""The section on training on masks: its commands run, its table is what was measured."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, commands_of, section_of, tables_of
from PIL import Image

from crate_mae.cli import main
from crate_mae.training.segment_config import SegmentConfig
from dense_heads import table_lines

PAGE = (ROOT / "docs" / "finetuning.md").read_text("utf-8")
SECTION = section_of(PAGE, "## Classes of pixels: training on masks")
FEW = [
    *("--optim.epochs", "1", "--optim.batch_size", "4", "--optim.warmup_epochs", "0"),
    *("--trainer.accelerator", "cpu", "--data.workers", "0"),
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of blocks on a ground, with masks; two new ones."""
    generator = np.random.default_rng(0)
    for folder in ("pictures/train", "pictures/test", "masks", "new"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(16):
        pixels = generator.integers(0, 90, (70, 90, 3), dtype=np.uint8)
        mask = np.zeros((70, 90), dtype=np.uint8)
        mask[20:60, 10 + number : 50 + number] = 1
        pixels[mask == 1] += 120
        folder = "new" if number > 13 else f"pictures/{'test' if number > 9 else 'train'}"
        Image.fromarray(pixels).save(tmp_path / folder / f"{number}.jpg")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = commands_of(SECTION)
    assert [verb for verb, *_ in commands] == ["finetune", "finetune", "compare", "segment"]
    for verb, *words in commands:
        assert main([verb, *words, *(FEW if verb == "finetune" else [])]) == 0, (verb, words)
    told = capsys.readouterr().out
    assert "test mean IoU" in told
    assert "mean IoU" in next(line for line in told.splitlines() if line.startswith("run "))
    for name in ("14.png", "15.png"):
        (made,) = (workplace / "predicted").rglob(name)
        with Image.open(made) as mask:
            assert mask.size == (90, 70)
    assert (workplace / "predicted.png").stat().st_size > 1000


def test_its_settings_are_those_that_there_are() -> None:
    (settings, *_) = tables_of(SECTION)
    named = set(re.findall(r"`segment\.(\w+)`", " ".join(row[0] for row in settings)))
    assert named == set(SegmentConfig.__dataclass_fields__)


def test_its_table_is_what_was_measured() -> None:
    (path,) = re.findall(r"\(\.\./(benchmarks/results/dense-heads-[\w-]+\.json)\)", SECTION)
    record = json.loads((ROOT / path).read_text("utf-8"))
    for line in table_lines(record):
        assert line in SECTION
    by_place = {(row["encoder"], row["head"]): row for row in record["rows"]}
    for encoder in ("frozen", "random, frozen", "trained"):
        for head in ("linear", "depict-cross", "depict-self"):
            row = by_place[encoder, head]
            assert f"{row['steps']} steps" in " ".join(SECTION.split())
            values = list(row["iou"].values())
            assert row["mean_iou"] == pytest.approx(sum(values) / len(values), abs=1e-3)
