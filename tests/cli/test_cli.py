"""The command line: what it prints, writes and refuses, on a tiny trained model."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import digits_model
from PIL import Image
from processes import python

from crate_mae import save_model
from crate_mae.cli import VERBS, main
from crate_mae.evaluation.feature_files import load_features
from crate_mae.models.classifier import CrateClassifier


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(digits_model(), tmp_path_factory.mktemp("cli") / "weights")


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


def test_help_answers_in_under_a_second_without_heavy_imports() -> None:
    code = (
        "import sys, crate_mae.cli as c; c.main(['--help']);"
        "heavy = {'torch', 'lightning', 'matplotlib', 'jsonargparse', 'numpy'} & set(sys.modules);"
        "sys.exit(1 if heavy else 0)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout
    assert all(verb in done.stdout for verb in VERBS)
    # The processor's time: what else the machine does must not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    assert f"crate-mae {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["probe", "knn", "extract", "map", "neighbours"])
def test_every_verb_of_features_has_every_pool(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "of cls, mean, both, mean-std, layers" in " ".join(capsys.readouterr().out.split())


def test_a_map_of_wide_features(weights: Path, tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    few = ["--limit", "60", "--perplexity", "5", "--pool", "layers"]
    assert main(words("map", weights, "digits", "--split", "test", *few, "--out", picture)) == 0
    assert picture.stat().st_size > 1000


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrian"]) == 2
    assert "did you mean 'pretrain'" in capsys.readouterr().err


def test_version_and_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("crate-mae 0.")
    assert main([]) == 2


def test_info_tells_parameters_and_hash(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("info", weights, "--json", "-")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == sum(p.numel() for p in digits_model().parameters())
    assert sum(facts["parameters_by_part"].values()) == facts["parameters"]
    assert facts["finite"] is True
    assert main(words("info", weights)) == 0
    assert facts["sha256"] in capsys.readouterr().out


def test_doctor_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert "processor" in out


def test_data_reports_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "digits.json"
    assert main(words("data", "digits", "--split", "all", "--json", target)) == 0
    facts = json.loads(target.read_text("utf-8"))
    assert facts["count"] == 1797
    assert "1797" in capsys.readouterr().out.replace(",", "")
    assert main(words("data", "digits", "--json", target)) == 1
    assert "not overwritten" in capsys.readouterr().err


def test_reconstruct_from_files_and_addresses(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "wide.png"
    Image.fromarray(np.full((20, 30, 3), 90, dtype=np.uint8)).save(picture)
    out = tmp_path / "out.png"
    assert main(words("reconstruct", weights, picture, "--out", out)) == 0
    assert "PSNR" in capsys.readouterr().out
    with Image.open(out) as drawn:
        assert drawn.width > drawn.height
    before = out.read_bytes()
    assert main(words("reconstruct", weights, picture, "--out", out)) == 1
    assert out.read_bytes() == before
    again = words("reconstruct", weights, "digits", "--limit", 3, "--mask-kind", "grid")
    assert main([*again, "--out", str(out), "--overwrite"]) == 0


def test_reconstruct_with_a_drawn_mask(weights: Path, tmp_path: Path) -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out.pdf"
    call = words("reconstruct", weights, "digits", "--limit", 2, "--mask", tmp_path / "mask.png")
    assert main([*call, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"%PDF")


def test_reconstruct_refuses_before_work(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.png"
    for call, message in (
        (words("reconstruct", weights, "nothing.png", "--out", out), "nothing.png"),
        (words("reconstruct", weights, "digits", "--out", tmp_path / "x.txt"), ".txt"),
        (words("reconstruct", weights, "digits", "--mask-ratio", 1.5, "--out", out), "1.5"),
        (words("reconstruct", weights, "digits", "--pixels", "visible", "--out", out), "raw"),
        (words("reconstruct", tmp_path / "no", "digits", "--out", out), "no weights"),
    ):
        assert main(call) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_a_classifier_cannot_reconstruct(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from crate_mae import load_model
    from crate_mae.models.autoencoder import CrateMAE

    model = load_model(weights)
    assert isinstance(model, CrateMAE)
    folder = save_model(
        CrateClassifier.from_pretrained(model, num_classes=3), tmp_path / "classifier"
    )
    assert main(words("reconstruct", folder, "digits", "--out", tmp_path / "x.png")) == 1
    assert "no decoder" in capsys.readouterr().err
    out = tmp_path / "features.npz"
    assert main(words("extract", folder, "digits", "--limit", 5, "--out", out)) == 0


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "parquet"])
@pytest.mark.parametrize(("pool", "shape"), [("mean", (7, 16)), ("tokens", (7, 17, 16))])
def test_extract_writes_features(
    weights: Path,
    tmp_path: Path,
    suffix: str,
    pool: str,
    shape: tuple[int, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / f"features.{suffix}"
    call = words("extract", weights, "digits", "--limit", 7, "--pool", pool, "--out", out)
    assert main(call) == 0
    assert f"wrote {out}: {shape} float32" in capsys.readouterr().out
    if suffix == "safetensors":  # the others are for other programs
        features = load_features(out)
        assert tuple(features.values.shape) == shape
        assert features.labels is not None
        assert len(features.names) == 7
    assert main(call) == 1, "an existing file is not overwritten"


@pytest.mark.parametrize("verb", ["probe", "knn"])
def test_probe_and_knn_beside_baselines(
    weights: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "rows.json"
    call = words(verb, weights, "digits", "--limit", 300, "--test-limit", 100, "--json", target)
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "random baseline" in out
    rows = {row["subject"]: row for row in json.loads(target.read_text("utf-8"))["rows"]}
    assert set(rows) == {"model", "random baseline", "raw pixels"}
    assert rows["raw pixels"]["dim"] == 64
    assert rows["raw pixels"]["accuracy"] > 0.8
    assert all(0 <= row["accuracy"] <= 1 for row in rows.values())


def test_unlabelled_images_cannot_be_probed(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    assert main(words("probe", weights, f"imagefolder:{tmp_path}")) == 1
    assert "no labels" in capsys.readouterr().err


def test_pretrain_on_a_flat_folder_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for index in range(24):
        pixels = generator.integers(0, 255, (12, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index}.png")
    out = tmp_path / "run"
    call = words(
        "pretrain", "--config", "digits", "--data.source", f"imagefolder:{images}",
        "--data.val_split", "null", "--model.channels", 3,
        "--model.patch_size", 4, "--model.dim", 16, "--model.depth", 1, "--model.decoder_depth", 1,
        "--optim.epochs", 2, "--optim.batch_size", 8, "--optim.warmup_epochs", 1,
        "--trainer.accelerator", "cpu", "--out", out,
    )  # fmt: skip
    assert main(call) == 0
    assert "finished" in capsys.readouterr().out
    assert main(words("info", out)) == 0
    assert main(call) == 1
    assert "--resume" in capsys.readouterr().err
