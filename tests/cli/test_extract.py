"""The verbs extract and merge, and every command and snippet of docs/extract.md."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import digits_model
from pages import blocks_of, code_of, commands_in
from PIL import Image

from crate_mae import save_model
from crate_mae.cli import main
from crate_mae.cli.extract import shard_of
from crate_mae.evaluation.feature_files import load_facts, load_features
from crate_mae.evaluation.feature_parts import FeatureParts
from crate_mae.sources.folders import FolderSource
from crate_mae.sources.images import Sample, UnreadableImage
from crate_mae.weights.weights_folder import weights_hash

PAGE = (Path(__file__).parents[2] / "docs" / "extract.md").read_text("utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it: pictures/ (one broken) and a model in runs/demo."""
    folder = tmp_path_factory.mktemp("reader")
    save_model(digits_model(), folder / "runs" / "demo" / "weights")
    draw = np.random.default_rng(0)
    (folder / "pictures" / "summer").mkdir(parents=True)
    for index in range(20):
        pixels = draw.integers(0, 255, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / "summer" / f"{index:02d}.jpg")
    (folder / "pictures" / "summer" / "05.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with runs/ and pictures/ of `place`."""
    for name in ("runs", "pictures"):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXTRACT = ["extract", "runs/demo", "imagefolder:pictures", "--part-size", "8", "--out", "f"]


@pytest.mark.usefixtures("here")
def test_the_pages_commands_and_snippets_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crate_mae.evaluation.regression.MAX_STEPS", 20)
    assert len(code_of(PAGE)) == 1
    verbs = []
    for language, block in blocks_of(PAGE):
        if language == "python":
            scope: dict[str, object] = {}
            exec(block, scope)
            assert scope["total"] == 100
        elif language == "sh":
            for verb, *words in commands_in(block, "crate-mae"):
                few = ["--limit", "300"] if words[1:2] == ["digits"] else []
                assert main([verb, *words, *few]) == 0, (verb, words)
                verbs.append(verb)
    assert verbs == [
        "extract", "extract", "merge", "extract", "extract", "probe", "knn", "extract", "extract",
        "merge",
    ]  # fmt: skip
    one, all_parts, shards = (
        load_features(f"{name}.safetensors") for name in ("features", "all", "shards")
    )
    torch.testing.assert_close(all_parts.values, one.values)
    torch.testing.assert_close(shards.values, one.values)
    assert one.names == all_parts.names == shards.names
    assert one.unreadable == all_parts.unreadable == shards.unreadable


def test_parts_cut_like_the_batches_give_the_bytes_of_one_file(here: Path) -> None:
    assert main([*EXTRACT, "--batch-size", "4"]) == 0
    one = [*EXTRACT[:3], "--batch-size", "4", "--out", "one.safetensors"]
    assert main(one) == 0
    assert main(["merge", "f", "--out", "f.safetensors"]) == 0
    assert (here / "f.safetensors").read_bytes() == (here / "one.safetensors").read_bytes()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("words", [["--pool", "layers"], ["--after", "1"]])
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_engine_without_the_layers_is_refused_before_it_is_made(
    words: list[str], engine: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("crate_mae.export.engines.engine_for", None)
    monkeypatch.setattr("crate_mae.cli.extract.check_installed", lambda _: None)
    assert main([*EXTRACT, "--engine", engine, *words]) == 1
    assert "the pool 'layers', need the engine torch" in capsys.readouterr().err


def test_what_a_folder_says_of_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(EXTRACT) == 0
    told = capsys.readouterr()
    assert "wrote 3 parts of f: features of 19 images, 1 passed over" in told.out
    assert "complete; one file of it: crate-mae merge f --out features.safetensors" in told.out
    assert "passed over: summer/05.jpg (not an image in a known format" in told.err
    assert 'summer/05.jpg,"not an image' in (here / "f" / "_unreadable.csv").read_text()
    manifest = json.loads((here / "f" / "_manifest.json").read_text())
    assert manifest["weights_sha256"] == weights_hash("runs/demo")
    assert manifest["address"] == "imagefolder:pictures"
    assert load_facts("f")["shape"] == [19, 16]
    assert main(EXTRACT) == 0
    told = capsys.readouterr()
    assert "f: all parts asked for are there" in told.out
    assert "have no features: f/_unreadable.csv; the same command tries them again" in told.out


@pytest.mark.usefixtures("here")
def test_an_image_that_can_be_read_now_is_added(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where a reader of its format was installed since: the file is the same."""
    load = FolderSource.load

    def refused(self: FolderSource, index: int) -> Sample:
        if index == 7:
            raise UnreadableImage(self.name(index), "it needs tifffile")
        return load(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(FolderSource, "load", refused)
        assert main([*EXTRACT, "--workers", "0"]) == 0
    assert load_facts("f")["shape"] == [18, 16]
    capsys.readouterr()
    assert main([*EXTRACT, "--workers", "0"]) == 0
    assert "wrote 1 parts of f: features of 7 images, 1 passed over" in capsys.readouterr().out
    assert "could not be read and can be now, such as summer/07.jpg" in caplog.text
    assert load_facts("f")["shape"] == [19, 16]


def test_shards_and_what_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EXTRACT, "--shard", "1/3"]) == 0
    assert "2 of 3 parts are missing still" in capsys.readouterr().out
    assert main(["merge", "f", "--out", "f.npz"]) == 1
    told = capsys.readouterr().err
    assert "2 of 3 parts are missing of shards 0/3, 2/3" in told
    assert not (here / "f.npz").exists()
    assert main(["knn", "f", "f"]) == 1
    assert "of shards 0/3, 2/3" in capsys.readouterr().err
    assert main([*EXTRACT, "--shard", "1/2"]) == 1
    assert "number of shards (3 there, 2 here)" in capsys.readouterr().err
    assert main(EXTRACT) == 0, "whatever is missing"
    assert FeatureParts.open("f").missing() == []
    assert main(["merge", "f", "--out", "f.npz"]) == 0
    told = capsys.readouterr().out
    assert "wrote f.npz: (19, 16) float32, pool mean" in told
    assert "1 images had been passed over" in told
    assert main(["merge", "f", "--out", "f.npz"]) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pool", "cls"], "--pool (mean there, cls here)"),
        (["--after", "1"], "--after (None there, 1 here)"),
        (["--image-size", "16"], "preprocessing, size"),
        (["--part-size", "9"], "--part-size (8 there, 9 here)"),
        (["--limit", "9"], "number of images (20 there, 9 here)"),
        (["--label-key", "none"], "class_names"),
        (["--overwrite"], "--overwrite is for files"),
        (["--workers", "-1"], "--workers must be at least 0"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--part-size", "0"], "part_size must be"),
        (["--out", "x.csv"], "change the suffix"),
        (["--out", "x.parquet"], "--part-size is for a folder of parts"),
        (["--out", "pictures"], "holds something else"),
        (["--out", "notes/below"], "is a file"),
        (["--shard", "0/21"], "21 shards are more than the 20 images"),
    ],
)
def test_what_is_refused(
    here: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(EXTRACT) == 0
    (here / "notes").write_text("mine")
    before = {path: path.read_bytes() for path in here.glob("f/*")}
    plain = EXTRACT if "x.csv" not in words else [*EXTRACT[:3], *EXTRACT[5:]]
    capsys.readouterr()
    assert main([*plain, *words]) == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.glob("f/*")} == before


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "0/0", "1/x", "0 / 2", "\u0660/2"])
def test_words_that_are_no_shard(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="0/4 is the first of four"):
        shard_of(text)
    assert shard_of("3/16") == (3, 16)


def test_nothing_readable(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "broken").mkdir()
    for index in range(3):
        (here / "broken" / f"{index}.png").write_bytes(b"no picture")
    words = ["extract", "runs/demo", "imagefolder:broken", "--out", "g"]
    assert main(words) == 1
    assert "none of the 3 images of these parts can be read" in capsys.readouterr().err
    assert main(["merge", "g", "--out", "g.npz"]) == 1
    assert "none of its 3 images could be read" in capsys.readouterr().err


def test_merge_names_what_it_was_not_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "pictures", "--out", "x.npz"]) == 1
    assert "holds no parts of features" in capsys.readouterr().err
    assert main(["merge", "nowhere", "--out", "x.npz"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(EXTRACT) == 0
    assert main(["merge", "f", "--out", "f.txt"]) == 1
    assert "change the suffix" in capsys.readouterr().err
    shutil.copy(here / "f" / "part-00001.parquet", here / "f" / "part-00002.parquet")
    assert main(["merge", "f", "--out", "f.npz"]) == 1
    assert "part-00002.parquet was made with other settings" in capsys.readouterr().err
