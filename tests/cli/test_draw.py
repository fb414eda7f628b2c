"""Verbs that draw: what they write, print and refuse; and the page about pictures, as it stands."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from figure_cases import colours_in, pixels
from model_cases import digits_model
from pages import code_of, commands_of
from PIL import Image

from crate_mae import save_model
from crate_mae.cli import main
from crate_mae.dense.masks import load_masks
from crate_mae.dense.segmentation import intersection_over_union
from crate_mae.models.classifier import CrateClassifier

PAGE = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model in runs/demo, and images with masks, as the page assumes."""
    generator = np.random.default_rng(0)
    for name in ("pictures", "masks"):
        (tmp_path / name).mkdir()
    for index in range(4):
        pixels = generator.integers(0, 80, (16, 16), dtype=np.uint8)
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[4:12, 4 : 8 + 2 * index] = 255
        pixels[mask > 0] += 150
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    save_model(digits_model(), tmp_path / "runs" / "demo" / "weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(line: str) -> int:
    return main(shlex.split(line))


def drawn(path: str) -> np.ndarray:
    """The picture, which is not blank."""
    picture = pixels(Path(path))
    assert colours_in(picture) > 10
    return picture


@pytest.mark.usefixtures("place")
def test_the_pages_commands_and_code_run() -> None:
    commands = [words for words in commands_of(PAGE) if "FILE.png" not in words]
    assert len(commands) == 13
    for words in commands:
        assert main(words) == 0, words
        drawn(words[words.index("--out") + 1])
    assert Path("heads.json").is_file()
    assert len(code_of(PAGE)) == 2
    for block in code_of(PAGE):
        exec(block, {})
    drawn("curves.png")


@pytest.mark.usefixtures("place")
def test_each_image_gets_its_attention(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("attention runs/demo pictures --limit 3 --heads 1 --out a.png") == 0
    assert [Path(f"a-{number}.png").is_file() for number in (1, 2, 3)] == [True] * 3
    assert "wrote a-2.png: pictures/1.png" in capsys.readouterr().out
    assert call("attention runs/demo pictures --limit 3 --out a.png") == 1
    assert "a-1.png exists" in capsys.readouterr().err
    assert call("attention runs/demo pictures --limit 2 --out a.png --overwrite") == 0
    assert call("attention runs/demo pictures/0.png --layers=-1,0 --heads all --out b.svg") == 0


@pytest.mark.usefixtures("place")
def test_classifiers_can_be_looked_at() -> None:
    save_model(CrateClassifier.from_pretrained(digits_model(), num_classes=3), "tuned")
    for line in (
        "attention tuned digits --limit 1 --out a.png",
        "pca tuned digits --limit 3 --out b.png",
        "segment tuned digits --limit 3 --out c.png",
        "map tuned digits --limit 40 --pool cls --perplexity 5 --out d.png",
    ):
        assert call(line) == 0, line
    assert call("attention tuned digits --limit 1 --side decoder --out e.png") == 1


@pytest.mark.usefixtures("place")
def test_layers_themselves_count_from_either_end(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, place in (("pca", "--tensor compressed"), ("segment", "--method attention")):
        for name, number in (("last", "-1"), ("same", "1"), ("first", "0")):
            line = f"{verb} runs/demo pictures {place} --layers {number} --out {name}.png"
            assert call(f"{line} --overwrite") == 0
        assert np.array_equal(drawn("last.png"), drawn("same.png"))
        assert not np.array_equal(drawn("last.png"), drawn("first.png"))
    assert "Measured on layer 0" in capsys.readouterr().out


@pytest.mark.usefixtures("place")
def test_several_settings_make_one_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    line = "reconstruct runs/demo pictures --limit 2 --mask-ratio 0.5 0.75 --mask-kind grid block"
    assert call(f"{line} --out sheet.png") == 0
    out = capsys.readouterr().out
    assert out.count("PSNR") == 2 * 4
    assert "pictures/0.png (block 75%)" in out
    assert drawn("sheet.png").shape[1] > 9 * 80
    with pytest.raises(SystemExit, match="2"):
        call(f"{line} --mask masks/0.png --out other.png")
    assert "leave --mask-ratio and --mask-kind out" in capsys.readouterr().err
    assert call("reconstruct runs/demo pictures --mask-ratio 0.5 1.5 --out other.png") == 1
    assert not Path("other.png").exists()


@pytest.mark.usefixtures("place")
def test_a_basis_is_kept_and_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    first = "pca runs/demo pictures --layers 0 --tensor subspace --clip 0.05 --out a.png"
    assert call(f"{first} --save-basis b.safetensors") == 0
    assert call("pca runs/demo pictures --basis b.safetensors --out c.png") == 0
    assert np.array_equal(drawn("a.png"), drawn("c.png"))
    torch.manual_seed(1)
    save_model(digits_model(seed=1), "other")
    assert call("pca other pictures --basis b.safetensors --out d.png") == 1
    assert "fit a basis anew" in capsys.readouterr().err
    assert call(f"{first} --save-basis b.safetensors --overwrite") == 0


@pytest.mark.usefixtures("place")
def test_iou_of_a_folder_of_masks(capsys: pytest.CaptureFixture[str]) -> None:
    line = "segment runs/demo pictures --masks masks --after 0 --image-size 16 --out a.png"
    line += " --json a.json"
    assert call(line) == 0
    out = capsys.readouterr().out
    facts = json.loads(Path("a.json").read_text("utf-8"))
    assert f"mean IoU {facts['agreement']['mean_iou']:.4f}" in out
    truth = load_masks([Path(f"masks/{index}.png") for index in range(4)], (16, 16)).truth
    everything = intersection_over_union(torch.ones_like(truth), truth)
    assert facts["agreement"]["everything_iou"] == everything.tolist()
    assert len(facts["weights_sha256"]) == 64
    assert (facts["data"]["given"], facts["data"]["count"]) == (["pictures"], 4)
    assert facts["masks"] == "masks"
    assert facts["raw_pixels"]["mean_iou"] > 0.6
    assert "oracle: better side" in out
    assert call(line + " --overwrite") == 1, "the numbers are a new file"


@pytest.mark.usefixtures("place")
def test_images_that_cannot_be_read_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/0-a.png").write_bytes(b"broken")
    for verb in ("attention", "pca", "segment"):
        assert call(f"{verb} runs/demo pictures --out {verb}.png") == 0
        assert "passed over: pictures/0-a.png" in capsys.readouterr().err
    assert call("pca runs/demo pictures/0-a.png --out none.png") == 1
    assert "none of the 1 images of files can be read" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("attention runs/demo pictures --layers 9", "encoder layer 9 does not exist"),
        ("attention runs/demo pictures --heads 0,2", "heads [2] do not exist; there are 0 to 1"),
        ("attention runs/demo pictures --query 4,0", "patch (4, 0) is outside the grid"),
        ("attention runs/demo pictures --mass 2", "above 0 and at most 1"),
        ("attention runs/demo pictures --stride 3", "stride 3x3 must be from 1"),
        ("attention runs/demo pictures --image-size 9", "nearest size 10x10"),
        ("pca runs/demo pictures --after 7", "layers [7] do not exist"),
        ("pca runs/demo pictures --tensor subspace", "say which"),
        ("pca runs/demo pictures --clip 0.6", "quantile"),
        ("pca runs/demo pictures --basis no.safetensors", "no file"),
        ("segment runs/demo pictures --masks no", "no folder no with masks"),
        ("segment runs/demo pictures --masks runs", "no mask for"),
        ("segment runs/demo pictures --method attention --heads 5", "heads [5]"),
        ("map runs/demo pictures", "unlabelled"),
        ("map runs/demo digits --limit 4", "at least 5 images"),
        ("map runs/demo digits --limit 20 --perplexity 30", "perplexity 30"),
        ("map no digits", "no weights"),
    ],
)
def test_what_is_refused(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if message == "unlabelled":
        line, message = line.replace("pictures", "imagefolder:pictures"), "no labels to colour by"
    assert call(f"{line} --out x.png") == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("error:") == 1
    assert not list(Path().glob("x*.png"))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "line",
    [
        "attention runs/demo pictures --layers first",
        "attention runs/demo pictures --query cls",
        "attention runs/demo pictures --image-size 0",
        "attention runs/demo pictures --image-size 1x2x3",
        "pca runs/demo pictures --foreground most",
        "pca runs/demo pictures --flip",
        "pca runs/demo pictures --basis b.safetensors --after 1",
        "pca runs/demo pictures --per-image --save-basis b.safetensors",
        "segment runs/demo pictures --mass 0.5",
        "segment runs/demo pictures --json x.png",
        "reconstruct runs/demo pictures --seed 99999999999999999999",
        "segment runs/demo pictures --method attention --flip",
        "segment runs/demo pictures --method mixture --flip",
        "segment runs/demo pictures --method mixture --mass 0.5",
        "segment runs/demo pictures --method attention --after 1",
        "segment runs/demo pictures --layers 1",
        "pca runs/demo pictures --after 0 --tensor subspace",
        "pca runs/demo pictures --after all",
        "pca runs/demo pictures --after 0,1",
        "pca runs/demo pictures --basis b.safetensors --after final",
    ],
)
def test_wrong_words(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        call(f"{line} --out x.png")
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err
