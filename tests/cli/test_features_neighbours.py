"""What `crate-mae neighbours` prints of a set with many near-duplicates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crate_mae.cli import main


def test_pairs_with_two_labels_come_first_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four pictures stand twice in one class, a fifth in both classes."""
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
    for number in range(5):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse.repeat(8, axis=0).repeat(8, axis=1))
        picture.save(tmp_path / "set" / "cat" / f"{number}.png")
        twin = "dog" if number == 4 else "cat"
        picture.save(tmp_path / "set" / twin / f"{number}-again.png")
    monkeypatch.setattr("crate_mae.cli.features.SHOWN_PAIRS", 2)
    words = ["neighbours", "cifar10-shallow", f"imagefolder:{tmp_path / 'set'}", "--json"]
    words += [str(tmp_path / "all.json"), "--out", str(tmp_path / "sheet.png")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = lines[1:3]
    assert "dog/4-again.png (cat, dog)" in first or "cat/4.png (dog, cat)" in first
    assert "(" not in second
    assert lines[3] == "", "no third pair"
    told = "5 pairs of near-duplicates in 10 images, 1 of them with two labels; 3 are not listed"
    assert f"{told}: --json FILE" in lines
    found = json.loads((tmp_path / "all.json").read_text("utf-8"))
    assert len(found["near_duplicates"]) == 5
    assert found["compared_pairs"] == found["candidate_pairs"]
    assert found["data"]["address"] == f"imagefolder:{tmp_path / 'set'}"
    assert (found["data"]["split"], found["data"]["count"], found["queries"]) == (None, 10, None)
    assert (found["pool"], found["layer"], found["image_size"]) == ("mean", None, [32, 32])


def test_what_the_nearest_were_looked_for_with_is_written_down(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    words = ["neighbours", "cifar10-shallow", "digits", str(tmp_path / "mine.png"), "--limit", "20"]
    words += ["--split", "test", "--pool", "cls", "--after", "1", "--image-size", "16"]
    words += ["--json", str(tmp_path / "n.json"), "--out", str(tmp_path / "n.png")]
    assert main(words) == 0
    found = json.loads((tmp_path / "n.json").read_text("utf-8"))
    data, queries = found["data"], found["queries"]
    assert (data["address"], data["split"], data["count"]) == ("digits", "test", 20)
    assert (queries["address"], queries["given"]) == ("files", [str(tmp_path / "mine.png")])
    assert len({data["fingerprint"], queries["fingerprint"]}) == 2
    assert (found["pool"], found["layer"], found["image_size"]) == ("cls", 1, [16, 16])


def test_a_set_of_many_doubles_says_how_many_pairs_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two pictures, twelve times each: 132 pairs, of which few are found and fewer compared."""
    generator = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for number in range(2):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse.repeat(8, axis=0).repeat(8, axis=1))
        for copy in range(12):
            picture.save(tmp_path / "set" / f"{number}-{copy}.png")
    captions = []

    def drawn(*_: Any, caption: str, **__: Any) -> None:
        captions.append(caption)

    monkeypatch.setattr("crate_mae.figures.neighbour_sheet.draw_image_rows", drawn)
    monkeypatch.setattr("crate_mae.evaluation.neighbours.MOST_PAIRS", 30)
    words = ["neighbours", "cifar10-shallow", str(tmp_path / "set"), "--json"]
    words += [str(tmp_path / "all.json"), "--out", str(tmp_path / "sheet.png")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "all.json").read_text("utf-8"))
    candidates = found["candidate_pairs"]
    assert 24 * 8 / 2 <= candidates < 132, "8 of each image, some from both sides"
    assert (found["compared_pairs"], found["nearest_compared"]) == (30, 8)
    assert len(found["near_duplicates"]) == 30
    among = f"30 pairs of near-duplicates among the 30 most similar of {candidates} candidate pairs"
    assert f"{among} in 24 images; 10 are not listed: --json FILE" in lines
    assert "each image was compared with its 8 nearest alone: there may be more" in lines
    assert f"{among}, of 24 images. For pairs each image was compared with its" in captions[0]
