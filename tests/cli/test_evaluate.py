"""The verbs probe, knn and extract, and every command and snippet of docs/evaluation.md."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from model_cases import digits_model
from pages import blocks_of, code_of, commands_in, commands_of

from crate_mae import save_model
from crate_mae.cli import main
from crate_mae.common.files import file_hash
from crate_mae.evaluation.feature_files import load_facts
from crate_mae.sources.address import open_pair
from crate_mae.vitmae.model import vitmae_baseline
from crate_mae.vitmae.vitmae_folder import save_vitmae
from crate_mae.weights.weights_folder import load_autoencoder, weights_hash

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
FEW = ["--limit", "100", "--test-limit", "60"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(digits_model(), tmp_path_factory.mktemp("work") / "runs" / "demo" / "weights")


def test_the_pages_commands_and_snippets_run(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parents[2])
    # Few images can be separated, where the minimum is far away: not what is asked here.
    monkeypatch.setattr("crate_mae.evaluation.regression.MAX_STEPS", 20)
    assert len(commands_of(PAGE)) == 17
    assert len(code_of(PAGE)) == 1
    short = ["--optim.epochs", "1", "--optim.warmup_epochs", "0", "--data.limit", "160"]
    for language, block in blocks_of(PAGE):
        if language == "python":
            exec(block, {})
            continue
        for verb, *words in commands_in(block, "crate-mae"):
            few = FEW if verb != "extract" and "digits" in words else []
            few = short if verb in ("pretrain", "finetune") else few
            assert main([verb, *words, *few]) == 0, (verb, words)
    assert json.loads(Path("probe.json").read_text("utf-8"))["rows"][0]["pool"] == "both"


@pytest.mark.parametrize(
    ("whiten", "tried"),
    [("choose", {0, 1, 10, 100, 1000}), ("yes", {1, 10, 100, 1000}), ("0.5,0", {0, 0.5})],
)
def test_whitening_is_chosen_and_told(
    whiten: str, tried: set[int], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "knn.json"
    words = ["knn", str(weights), "digits", *FEW, "--pool", "layers", "--whiten", whiten]
    assert main([*words, "--no-baselines", "--json", str(target)]) == 0
    (row,) = json.loads(target.read_text("utf-8"))["rows"]
    assert {point["whitening"] for point in row["grid"]} == tried
    best = max(row["grid"], key=lambda point: point["accuracy"])  # the first of equals
    assert (row["whitening"], row["k"]) == (best["whitening"], best["k"])
    assert row["whitened"] == (row["whitening"] > 0)
    assert f"whitening {row['whitening']:g}, k = {row['k']}" in capsys.readouterr().out


def test_words_that_are_no_way_of_whitening(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["knn", "cifar10-small", "digits", "--whiten", "maybe"])
    assert "'maybe' is none of no, yes, choose, and no strengths" in capsys.readouterr().err


def test_the_page_names_every_key(weights: Path, tmp_path: Path) -> None:
    named = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("## JSON") :]))
    for verb, more in (("probe", ["--solver", "sgd", "--epochs", "2"]), ("knn", []), ("probe", [])):
        target = tmp_path / f"{verb}{len(more)}.json"
        words = [verb, str(weights), "digits", *FEW, *more, "--seeds", "2", "--json", str(target)]
        assert main([*words, "--no-baselines"]) == 0
        facts = json.loads(target.read_text("utf-8"))
        assert set(facts) <= named
        assert set(facts["rows"][0]) <= named


def test_what_a_json_file_tells(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    words = ["knn", str(weights), "digits", *FEW, "--seeds", "2", "--seed", "5", "--json"]
    assert main([*words, str(target), "--after", "0,final", "--k", "1,3"]) == 0
    facts = json.loads(target.read_text("utf-8"))
    assert facts["sha256"] == weights_hash(weights)
    assert facts["command"][:3] == ["crate-mae", "knn", str(weights)]
    assert facts["settings"] == {"k": [1, 3], "seeds": [5, 6], "shots": None}
    assert facts["data"]["train"]["count"] == 100
    assert facts["data"]["test"]["split"] == "test"
    assert len(facts["data"]["test"]["fingerprint"]) == 64
    assert facts["environment"]["torch"] == torch.__version__
    layers = [(row["subject"], row["layer"]) for row in facts["rows"]]
    assert layers == [
        ("model", 0), ("model", None), ("random baseline", 0), ("random baseline", None),
        ("raw pixels", None),
    ]  # fmt: skip
    assert {len(row["runs"]) for row in facts["rows"]} == {2}


def test_a_vitmae_beside_and_in_place_of_the_weights(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = vitmae_baseline(load_autoencoder(weights), seed=4)
    folder = save_vitmae(twin, tmp_path / "vit")
    target = tmp_path / "rows.json"
    words = ["knn", str(weights), "digits", *FEW, "--vitmae", str(folder), "--json", str(target)]
    assert main(words) == 0
    assert "kNN, ViT-MAE" in capsys.readouterr().out
    facts = json.loads(target.read_text("utf-8"))
    assert facts["others"]["ViT-MAE"]["sha256"] == file_hash(folder / "model.safetensors")
    beside = next(row for row in facts["rows"] if row["subject"] == "ViT-MAE")
    target.unlink()
    assert main(["knn", str(folder), "digits", *FEW, "--json", str(target)]) == 0
    facts = json.loads(target.read_text("utf-8"))
    assert facts["sha256"] == file_hash(folder / "model.safetensors")
    assert facts["rows"][0]["accuracy"] == beside["accuracy"]
    assert [row["subject"] for row in facts["rows"]] == ["model", "random baseline", "raw pixels"]
    assert main(["probe", str(folder), "digits", "--vitmae", "parameters"]) == 1
    assert "needs CRATE-MAE weights" in capsys.readouterr().err
    out = tmp_path / "layer.safetensors"
    words = ["extract", str(folder), "digits", "--limit", "9", "--after", "1", "--out", str(out)]
    assert main(words) == 0
    assert load_facts(out)["layer"] == 1
    assert load_facts(out)["weights_sha256"] == file_hash(folder / "model.safetensors")


def test_rows_are_printed_and_kept_as_they_come(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The raw pixels are interrupted: what was measured before them stays."""
    target = tmp_path / "rows.json"
    words = ["knn", str(weights), "digits", *FEW, "--json", str(target)]
    interrupted = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("crate_mae.evaluation.compare.raw_pixels", interrupted)
    assert main(words) == 130
    facts = json.loads(target.read_text("utf-8"))
    assert facts["complete"] is False
    assert [row["subject"] for row in facts["rows"]] == ["model", "random baseline"]
    out = capsys.readouterr().out
    assert out.index("kNN, model, mean: ") < out.index("interrupted; what was measured until then")
    assert "random baseline" in out[out.index("until then") :]
    monkeypatch.undo()
    target.unlink()
    assert main(words) == 0
    whole = json.loads(target.read_text("utf-8"))
    assert whole["complete"] is True
    assert whole["rows"][:2] == facts["rows"]


def test_baselines_and_image_size_as_asked(weights: Path, tmp_path: Path) -> None:
    def rows(*words: str) -> list[dict[str, Any]]:
        target = tmp_path / "rows.json"
        call = ["knn", str(weights), "digits", *FEW, "--json", str(target), *words]
        assert main(call) == 0
        found: list[dict[str, Any]] = json.loads(target.read_text("utf-8"))["rows"]
        target.unlink()
        return found

    plain = rows("--baselines", "random")
    assert [row["subject"] for row in plain] == ["model", "random baseline"]
    assert [row["subject"] for row in rows("--baselines", "none")] == ["model"]
    large = rows("--image-size", "16")
    assert [row["image_size"] for row in plain] == [[8, 8]] * 2
    assert [row["image_size"] for row in large] == [[16, 16]] * 3
    assert [row["dim"] for row in large] == [16, 16, 256]
    assert large[0]["accuracy"] != plain[0]["accuracy"]


def test_few_labels_are_drawn_several_times(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "rows.json"
    words = ["probe", str(weights), "digits", "--test-limit", "60", "--shots", "2"]
    assert main([*words, "--baselines", "none", "--json", str(target)]) == 0
    (row,) = json.loads(target.read_text("utf-8"))["rows"]
    assert row["seeds"] == [0, 1, 2, 3, 4]
    assert len({run["accuracy"] for run in row["runs"]}) > 1
    assert row["std"] > 0
    assert (row["folds"], row["num_held_out"], row["num_train"]) == (5, 20, 20)
    out = capsys.readouterr().out
    assert "5-fold cross-validation of 20 training images" in out
    # Of all training digits, not of two of each: threes, as counted here.
    train, test = open_pair("digits", test_limit=60)
    counts = Counter(train.label(index) for index in range(len(train)))
    ((most, _),) = counts.most_common(1)
    of_test = [test.label(index) for index in range(60)].count(most) / 60
    assert row["majority"] == str(most)
    assert row["chance"] == pytest.approx(of_test)
    assert f"the most frequent class alone ({most}) gives {of_test:.2%}" in out


def test_verbose_shows_every_grid_and_mistakes(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["knn", str(weights), "digits", *FEW, "--pool", "cls,mean,both", "--after", "all"]
    assert main([*words, "--no-baselines"]) == 0
    brief = capsys.readouterr().out
    assert brief.count("(* chosen)") == 8
    assert "4 more grids: --verbose" in brief
    assert main([*words, "--no-baselines", "--verbose"]) == 0
    full = capsys.readouterr().out
    assert full.count("(* chosen)") == 12
    assert full.count("most frequent mistakes") == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe", "W", "digits", "--epochs", "3"], "--epochs is not for the solver exact"),
        (["probe", "W", "digits", "--solver", "sgd", "--penalties", "1"], "--penalties is not for"),
        (["probe", "W", "digits", "--normalise", "batch_norm"], "use solver sgd"),
        (["probe", "W", "digits", "--after", "9"], "layers [9] do not exist"),
        (["knn", "W", "digits", "--seeds", "0"], "--seeds must be at least 1"),
        (["knn", "W", "digits", "--shots", "5000"], "5000 images of every class"),
        (["knn", "W", "digits", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["knn", "W", "digits", "--vitmae", "nothing"], "no weights at nothing"),
        (["knn", "W", "digits", "--json", "W"], "not overwritten"),
        (["knn", "W", "digits", "--baselines", "none,random"], "none stands alone"),
        (["knn", "W", "digits", "--no-baselines", "--baselines", "random"], "exclude each other"),
        (["knn", "W", "digits", "--image-size", "9"], "nearest size"),
        (["knn", "W", "digits", "--whiten", "-1"], "must be 0 or above"),
        (["knn", "a.safetensors", "digits"], "should hold test features"),
        (["knn", "a.safetensors", "b.safetensors"], "there is no file a.safetensors"),
        (["knn", "a.safetensors", "b.safetensors", "--pool", "cls"], "--pool is for images"),
        (["knn", "a.safetensors", "b.safetensors", "--follow-links"], "--follow-links is for imag"),
        (
            ["probe", "a.safetensors", "b.safetensors", "--baselines", "random"],
            "--baselines is for images",
        ),
        (["knn", "a.npz", "b.npz"], "extract them again with --out a.safetensors"),
    ],
)
def test_what_is_refused(
    weights: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(weights) if word == "W" else word for word in words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["knn", "--k", "0"], "k must be"),
        (["knn", "--temperatures", "nan"], "temperature must be above 0"),
        (["knn", "--shots", "0"], "shots must be at least 1"),
        (["knn", "--shots", "5000"], "5000 images of every class"),
        (["probe", "--penalties=-1"], "penalties must be"),
        (["probe", "--solver", "sgd", "--learning-rates", "inf"], "learning rates must be"),
        (["probe", "--solver", "sgd", "--weight-decays=-1"], "weight decays must be"),
        (["probe", "--solver", "sgd", "--epochs", "0"], "at least 1 epoch"),
    ],
)
def test_settings_are_checked_before_features_are_computed(
    weights: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = Mock(side_effect=RuntimeError("features were computed first"))
    monkeypatch.setattr("crate_mae.evaluation.compare.extract_all", work)
    assert main([words[0], str(weights), "digits", *words[1:]]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--pool", "max"],
        ["--after", "last"],
        ["--after", "-1"],
        ["--k", "a"],
        ["--seed", "-1"],
        ["--seed", str(10**23)],
    ],
)
def test_words_that_cannot_be_read(weights: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["knn", str(weights), "digits", *words])
    assert left.value.code == 2
