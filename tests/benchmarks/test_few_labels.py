"""Few labels: what a record holds, and what is not measured twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mae.sources.address import open_source
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.finetune import finetune
from crate_mae.training.session import RunSummary
from crate_mae.weights.shipped import SHIPPED
from few_labels import Subject, main, resized, table_lines

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


def fingerprint(tmp_path: Path, split: str) -> str:
    """The fingerprint of a split of the images in `words`."""
    return open_source(f"imagefolder:{tmp_path / 'shades'}", split=split).fingerprint()


def test_rows_name_their_images_and_weights_but_no_place(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    text = (tmp_path / "record.json").read_text("utf-8")
    record = json.loads(text)
    assert str(tmp_path) not in text
    subjects = ["shallow", "shallow, untrained", "raw pixels, 16 px", "HOG, 64 px"]
    fingerprints = [fingerprint(tmp_path, split) for split in ("train", "test")]
    assert list(dict.fromkeys(row["subject"] for row in record["rows"])) == subjects
    for row in record["rows"]:
        assert row["address"] == "imagefolder:PATH"
        assert (row["train_images"], row["test_images"]) == (16, 8)
        assert [row["train_fingerprint"], row["test_fingerprint"]] == fingerprints
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
        assert row["settings"] == ["--optim.epochs=2", "--optim.warmup_epochs=0"]
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


# -- what a record holds already ----------------------------------------------------------------


def row_of(tmp_path: Path, **facts: Any) -> dict[str, Any]:
    """A row of the subject "shallow" as a run on `words` writes it, but for these facts."""
    return {
        "set": "shades", "address": "imagefolder:PATH", "train_images": 16, "test_images": 8,
        "train_fingerprint": fingerprint(tmp_path, "train"),
        "test_fingerprint": fingerprint(tmp_path, "test"),
        "subject": "shallow", "size": None, "weights_sha256": SHIPPED["cifar10-shallow"].sha256,
        "measure": "probe", "shots": None, "mean": 0.5, "std": None, "values": [0.5], **facts,
    }  # fmt: skip


def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the subjects that are measured from now on, in place of measuring them."""
    names: list[str] = []

    def noted(_record: object, _images: object, subject: Subject, _given: object) -> None:
        names.append(subject.name)

    monkeypatch.setattr("few_labels._measure", noted)
    return names


def add_image(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "shades" / "train" / "dark" / "more.png")


def change_image(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "shades" / "test" / "dark" / "0.png")


FINETUNED_ROW = {"measure": "finetune", "shots": 5, "settings": ["--optim.epochs=2"]}


@pytest.mark.parametrize(
    ("facts", "change", "more", "told"),
    [
        ({"weights_sha256": 64 * "a"}, None, [], rf"weights_sha256 {12 * 'a'} there, .* here"),
        ({}, add_image, [], r"train_images 16 there, 17 here; train_fingerprint"),
        ({}, change_image, [], r"own size: test_fingerprint \w{12} there, \w{12} here\. Name"),
        ({"size": 64, "test_images": 9}, None, ["--image-size", "64"], r"64 px: test_images 9"),
        (FINETUNED_ROW, None, ["--finetune", "1"], r"settings --optim\.epochs=2 there, none here"),
        ({**FINETUNED_ROW, "settings": []}, None,
         ["--finetune", "1", "--setting=--optim.epochs=3"],
         r"settings none there, --optim\.epochs=3 here"),
    ],
)  # fmt: skip
def test_rows_of_others_by_the_same_names_are_refused_before_anything_is_measured(
    facts: dict[str, Any], change: Any, more: list[str], told: str, tmp_path: Path,
    words: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Though the set in question comes last."""
    text = json.dumps({"rows": [row_of(tmp_path, **facts)]})
    (tmp_path / "record.json").write_text(text)
    if change is not None:
        change(tmp_path)
    names = measured(monkeypatch)
    first = ["--set", f"first=imagefolder:{tmp_path / 'shades'}"]
    with pytest.raises(ValueError, match=told) as refused:
        main([*first, *words, *more])
    assert "record.json has other rows of 'shallow' on 'shades'" in str(refused.value)
    assert "Name another --json" in str(refused.value)
    assert not names
    assert (tmp_path / "record.json").read_text("utf-8") == text


@pytest.mark.parametrize(
    ("facts", "more"),
    [
        ({}, []),
        (FINETUNED_ROW, ["--setting=--optim.epochs=3"]),  # nothing is fine-tuned now
        (FINETUNED_ROW, ["--finetune", "1", "--setting=--optim.epochs=2"]),
        ({"size": 32, "weights_sha256": "other", "train_images": 1}, []),
        ({"set": "another", "weights_sha256": "other", "train_fingerprint": "other"}, []),
        ({"subject": "another", "weights_sha256": "other", "test_fingerprint": "other"}, []),
    ],
)
def test_rows_of_the_same_and_of_other_names_stay(
    facts: dict[str, Any],
    more: list[str],
    tmp_path: Path,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"rows": [row_of(tmp_path, **facts)]}))
    names = measured(monkeypatch)
    assert main([*words, *more]) == 0
    assert names == ["shallow", "shallow, untrained", "raw pixels, 16 px", "HOG, 64 px"]


def test_what_older_rows_do_not_say_is_no_difference(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = row_of(tmp_path, measure="finetune", shots=5)
    kept = ("set", "subject", "size", "measure", "shots", "mean", "std")
    old = {key: row[key] for key in kept}
    (tmp_path / "record.json").write_text(json.dumps({"rows": [old]}))
    names = measured(monkeypatch)
    assert main([*words, "--finetune", "1", "--setting=--optim.epochs=3"]) == 0
    assert names[0] == "shallow"


def test_settings_are_recorded_without_paths(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("few_labels.DRAWS", 1)
    monkeypatch.setattr("few_labels.finetuned", lambda *_: 0.5)
    place = f"--setting=--data.val_source=imagefolder:{tmp_path / 'elsewhere'}"
    words += ["--finetune", "1", place, "--setting=--optim.epochs=2"]
    assert main(words) == 0
    text = (tmp_path / "record.json").read_text("utf-8")
    assert str(tmp_path) not in text
    found = [row["settings"] for row in json.loads(text)["rows"] if "settings" in row]
    assert found == [["--data.val_source=imagefolder:PATH", "--optim.epochs=2"]] * 2
    assert main(words) == 0
    assert (tmp_path / "record.json").read_text("utf-8") == text


@pytest.mark.parametrize("more", [["--set", "shades=digits"], ["--model", "shallow=cifar10-rate"]])
def test_a_name_stands_for_one_thing(
    more: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words, *more])
    name = more[1].partition("=")[0]
    assert f"{more[0]} {name} stands there 2 times: give each a name" in capsys.readouterr().err


def test_a_subject_at_several_sizes_has_a_line_for_each() -> None:
    """One at a single size is named as ever, whatever the sizes of others are."""
    rows = [
        {"set": "shades", "subject": subject, "size": size, "measure": measure, "shots": None,
         "mean": mean, "std": None}
        for subject, size, mean, measure in (
            ("model", 96, 0.25, "probe"),
            ("model", None, 0.5, "probe"),
            ("model", 96, 0.75, "knn"),
            ("twin", 96, 0.625, "probe"),
            ("pixels", None, 0.125, "probe"),
        )
    ]  # fmt: skip
    assert table_lines({"rows": rows})[2:] == [
        "| shades | model, 96 px | 25.0 | 75.0 |",
        "| shades | model, own size | 50.0 |  |",
        "| shades | twin | 62.5 |  |",
        "| shades | pixels | 12.5 |  |",
    ]


# -- images -------------------------------------------------------------------------------------


def test_images_that_cannot_be_read_are_left_out(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By models and by baselines; the record is no other one for them."""
    monkeypatch.setattr("few_labels.DRAWS", 1)
    for split, name in (("train", "dark"), ("test", "light")):
        (tmp_path / "shades" / split / name / "0.png").write_bytes(b"no image")
    assert main(words) == 0
    text = (tmp_path / "record.json").read_text("utf-8")
    rows = json.loads(text)["rows"]
    assert list(dict.fromkeys(row["subject"] for row in rows)) == [
        "shallow", "shallow, untrained", "raw pixels, 16 px", "HOG, 64 px",
    ]  # fmt: skip
    assert {(row["train_images"], row["test_images"]) for row in rows} == {(15, 7)}
    assert main(words) == 0
    assert (tmp_path / "record.json").read_text("utf-8") == text


def test_bytes_become_shares_and_other_values_stay() -> None:
    whole = torch.full((1, 8, 8), 51, dtype=torch.uint8)
    torch.testing.assert_close(resized(whole, 4), torch.full((3, 4, 4), 0.2))
    torch.testing.assert_close(resized(torch.full((3, 8, 8), 0.6), 4), torch.full((3, 4, 4), 0.6))
