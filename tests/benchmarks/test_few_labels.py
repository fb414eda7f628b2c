"""Few labels: what a record holds, and what is not measured twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
