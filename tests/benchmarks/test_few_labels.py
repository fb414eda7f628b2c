"""Few labels: what a record holds, and what is not measured twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crate_mae.training.config import FinetuneConfig
from crate_mae.training.finetune import finetune
from crate_mae.training.session import RunSummary
from crate_mae.weights.shipped import SHIPPED
from few_labels import main, table_lines

pytest.importorskip("skimage")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What measures a shipped model on a folder of dark and light images."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name, low in (("dark", 0), ("light", 128)):
            folder = tmp_path / "shades" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(low, low + 128, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return [
        "--set", f"shades=imagefolder:{tmp_path / 'shades'}", "--model", "shallow=cifar10-shallow",
        "--json", str(tmp_path / "record.json"),
    ]  # fmt: skip


def test_rows_name_their_images_and_weights_but_no_place(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    text = (tmp_path / "record.json").read_text("utf-8")
    record = json.loads(text)
    assert str(tmp_path) not in text
    subjects = ["shallow", "shallow, untrained", "raw pixels, 16 px", "HOG, 64 px"]
    assert list(dict.fromkeys(row["subject"] for row in record["rows"])) == subjects
    for row in record["rows"]:
        assert row["address"] == "imagefolder:PATH"
        assert (row["train_images"], row["test_images"]) == (16, 8)
        expected = SHIPPED["cifar10-shallow"].sha256 if row["subject"] == "shallow" else None
        assert row["weights_sha256"] == expected
        if (row["subject"], row["measure"]) == ("raw pixels, 16 px", "probe"):
            assert row["mean"] == 1, "dark and light differ"
    shown = capsys.readouterr().out.splitlines()
    assert shown == table_lines(record)
    assert len(shown) == 2 + len(subjects)
    assert main(words) == 0
    assert (tmp_path / "record.json").read_text("utf-8") == text


def test_fine_tuned_rows_stand_beside_training_from_scratch(
    tmp_path: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two draws of five labels; a record that was cut short goes on where it was."""
    monkeypatch.setattr("few_labels.DRAWS", 1)  # of frozen features, which are not looked at here
    pools = []

    def seen(config: FinetuneConfig, folder: str) -> RunSummary:
        pools.append(config.pool)
        return finetune(config, folder)

    monkeypatch.setattr("few_labels.finetune", seen)
    words += ["--finetune", "2", "--setting=--optim.epochs=2", "--setting=--optim.warmup_epochs=0"]
    assert main(words) == 0
    assert pools == ["mean"] * 4, "the pool of the rows, not that of the recipe"
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    found = [row for row in record["rows"] if row["measure"] == "finetune"]
    assert [(row["subject"], row["shots"]) for row in found] == [
        ("shallow", 5), ("shallow, untrained", 5),
    ]  # fmt: skip
    for row in found:
        assert len(row["values"]) == 2
        assert row["mean"] == sum(row["values"]) / 2
    assert found[0]["mean"] > 0.9, "dark and light differ"
    table = capsys.readouterr().out
    assert f"| {100 * found[1]['mean']:.1f} ± " in table
    record["rows"] = [row for row in record["rows"] if row is not found[0]]
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert main(words) == 0
    again = json.loads((tmp_path / "record.json").read_text("utf-8"))["rows"]
    assert [row for row in again if row == found[0]] == [found[0]]
    assert len(again) == len(record["rows"]) + 1


def test_networks_that_differ_in_their_weights_alone_share_an_untrained_row(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("few_labels.DRAWS", 1)
    assert main([*words, "--model", "again=cifar10-rate", "--model", "deep=cifar10-small"]) == 0
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert list(dict.fromkeys(row["subject"] for row in record["rows"])) == [
        "shallow", "shallow, untrained", "again", "deep", "deep, untrained",
        "raw pixels, 16 px", "HOG, 64 px",
    ]  # fmt: skip
