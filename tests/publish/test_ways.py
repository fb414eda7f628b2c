"""How results, weights and masks that a card tells of were had: nothing passes for the plain."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from model_cases import digits_model

from crate_mae import save_model
from crate_mae.batches.config import Masking
from crate_mae.cli import main
from crate_mae.models.classifier import CrateClassifier
from crate_mae.publish.package import Package, build_package
from crate_mae.publish.ways import masking_text, plainest, told, unusual
from crate_mae.training.callbacks import BEST
from crate_mae.training.parse import parse_pretrain
from crate_mae.weights.shipped import TENSORS
from crate_mae.weights.weights_folder import weights_hash

SIZE = (8, 8)
"""Of the images of the digits."""

Results = Callable[..., Path]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_model(digits_model(0), tmp_path / "weights")


@pytest.fixture
def results(weights: Path, tmp_path: Path) -> Results:
    """What writes rows as `probe --json` does, measured on the weights."""

    def write(*rows: dict[str, Any], name: str = "rows.json", **more: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"sha256": weights_hash(weights), "rows": rows, **more}))
        return path

    return write


def row(accuracy: float, **more: Any) -> dict[str, Any]:
    """A row of the plain measure, with some of its values replaced."""
    plain = {
        "subject": "model", "method": "knn", "pool": "mean", "layer": None, "shots": None,
        "image_size": list(SIZE), "accuracy": accuracy, "seeds": [0], "num_train": 900,
        "num_test": 100, "num_classes": 10, "tested_on": "digits test", "k": 20,
        "temperature": 0.07, "whitened": False, "folds": 5, "num_held_out": 900,
    }  # fmt: skip
    return {**plain, **more}


def text_of(package: Package) -> str:
    content = package.files["README.md"]
    assert isinstance(content, bytes)
    return content.decode()


def metrics_in(text: str) -> dict[str | None, float]:
    """The results that the Hub reads in a card, by the names of their metrics."""
    found = ModelCard(text).data.get("eval_results", [])
    return {result.metric_name: result.metric_value for result in found}


def cells_of(line: str) -> list[str]:
    return [cell.strip().strip("*") for cell in line.strip("|").split("|")]


def lines_of(text: str) -> list[dict[str, str]]:
    """The rows of all comparisons in a card, by the heads of their columns."""
    found, heads = [], None
    for line in text.splitlines():
        if line.startswith("| features of |"):
            heads = cells_of(line)
        elif heads is not None and line.startswith("| "):
            found.append(dict(zip(heads, cells_of(line), strict=True)))
        elif not line.startswith("|"):
            heads = None
    return found


# --- results ----------------------------------------------------------------------------------


def test_whitened_neighbours_of_larger_images_are_told_as_such(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, folder = tmp_path / "k.json", tmp_path / "published"
    words = ["knn", str(weights), "digits", "--limit", "200", "--test-limit", "100"]
    words += ["--whiten", "yes", "--image-size", "16", "--baselines", "random"]
    assert main([*words, "--json", str(found)]) == 0
    capsys.readouterr()
    assert main(["push", str(weights), "--results", str(found), "--out", str(folder)]) == 0
    text = (folder / "README.md").read_text("utf-8")
    measured = json.loads(found.read_text())["rows"]
    shown = lines_of(text)
    assert [line["features of"] for line in shown] == [
        "model at 16 x 16 pixels", "random baseline at 16 x 16 pixels",
    ]  # fmt: skip
    for line, given in zip(shown, measured, strict=True):
        assert given["whitening"] > 0
        assert line["setting"] == (
            f"whitening {given['whitening']:g}, k = {given['k']},"
            f" temperature {given['temperature']:g}"
        )
    assert f"setting chosen by 5-fold cross-validation of {measured[0]['num_held_out']}" in text
    name = "accuracy, nearest neighbours, whitened, at 16 x 16 pixels"
    assert metrics_in(text) == {name: measured[0]["accuracy"]}
    again = text_of(build_package(folder, name="published", title="Anew"))
    assert lines_of(again) == shown, "what is published tells it again"
    assert metrics_in(again) == metrics_in(text)


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({}, "nearest neighbours"),
        ({"whitened": True, "whitening": 0.1}, "nearest neighbours, whitened"),
        ({"whitened": False, "whitening": 0.0}, "nearest neighbours"),
        ({"whitening": 0.1, "whitened": None}, "nearest neighbours, whitened"),
        ({"pool": "layers"}, "nearest neighbours, pool layers"),
        ({"pool": "cls", "layer": 0}, "nearest neighbours, pool cls, layer 0"),
        ({"shots": 5}, "nearest neighbours, 5 of every class"),
        ({"image_size": [16, 8]}, "nearest neighbours, at 16 x 8 pixels"),
        ({"method": "probe", "solver": "exact", "normalise": "standardise"}, "linear probe"),
        ({"method": "probe", "solver": "sgd", "epochs": 90, "normalise": "batch_norm"},
         "linear probe, SGD, 90 epochs, batch norm"),
        ({"method": "probe", "normalise": "none"}, "linear probe, not standardised"),
        ({"runs": [{"whitened": True}, {"whitened": False}], "seeds": [0, 1]},
         "nearest neighbours, whitened with some seeds"),
        ({"runs": [{"whitened": True}, {"whitening": 1e-3}], "seeds": [0, 1]},
         "nearest neighbours, whitened"),
    ],
)  # fmt: skip
def test_the_name_of_a_metric_says_what_is_not_plain(
    more: dict[str, Any], name: str, weights: Path, results: Results
) -> None:
    text = text_of(build_package(weights, name="mine", results=[results(row(0.75, **more))]))
    assert metrics_in(text) == {f"accuracy, {name}": 0.75}


def test_the_hub_is_told_the_plain_row_and_never_the_best(weights: Path, results: Results) -> None:
    rows = [
        row(0.9, pool="layers"), row(0.8, whitened=True, whitening=0.1),
        row(0.5), row(0.6), row(0.95, subject="random baseline"),
    ]  # fmt: skip
    text = text_of(build_package(weights, name="mine", results=[results(*rows)]))
    assert metrics_in(text) == {"accuracy, nearest neighbours": 0.5}
    assert [line["accuracy"] for line in lines_of(text)] == [
        "90.00%", "80.00%", "50.00%", "60.00%", "95.00%",
    ]  # fmt: skip
    text = text_of(build_package(weights, name="mine", results=[results(*rows[1::-1])]))
    assert metrics_in(text) == {"accuracy, nearest neighbours, whitened": 0.8}, "the first"
    assert plainest(rows, "probe", "model", SIZE) is None


def test_rows_of_several_files_keep_what_sets_them_apart(weights: Path, results: Results) -> None:
    plain = results(row(0.5), name="plain.json")
    few = results(row(0.25, shots=5, num_train=50), row(0.3, shots=5, num_train=50, pool="layers"),
                  name="few.json")  # fmt: skip
    small = results(row(0.4, image_size=[4, 4]), name="small.json")
    sgd = results(
        row(0.6, method="probe", solver="sgd", epochs=90, learning_rate=0.1, k=None),
        name="sgd.json",
    )
    package = build_package(weights, name="mine", results=[plain, few, small, sgd])
    text = text_of(package)
    assert text.count("\nFrozen features: ") == 2, "few labels have a table of their own"
    before, after = text.split("\nFrozen features: ")[1:]
    assert before.startswith("900 training images, 100 test images (digits test)")
    assert after.startswith("50 training images (5 of every class), 100 test images (digits test)")
    assert [(line["features of"], line["method"], line["accuracy"]) for line in lines_of(text)] == [
        ("model", "kNN", "50.00%"), ("model at 4 x 4 pixels", "kNN", "40.00%"),
        ("model", "probe, SGD, 90 epochs", "60.00%"),
        ("model", "kNN", "25.00%"), ("model", "kNN", "30.00%"),
    ]  # fmt: skip
    reached = text.split("## What it reaches\n")[1].split("\n## ")[0]
    assert "\n\n\n" not in reached
    for words in ("Frozen features", r"\| features of"):
        assert len(re.findall(rf"(?:^|\n)\n{words}", reached)) == 2, "a paragraph of its own"
    assert metrics_in(text)["accuracy, nearest neighbours"] == 0.5


def test_of_several_seeds_the_settings_and_nothing_else_are_told(
    weights: Path, results: Results
) -> None:
    runs: list[dict[str, Any]] = [
        {"k": k, "temperature": 0.07, "on_edge": [], "secret": "secret"} for k in (5, 20)
    ]
    path = results(row(0.5, runs=runs, seeds=[0, 1], std=0.01, secret="secret"))
    package = build_package(weights, name="mine", results=[path])
    (line,) = lines_of(text_of(package))
    assert line["setting"] == "2 different"
    for content in package.files.values():
        if isinstance(content, bytes):
            assert b"secret" not in content


@pytest.mark.parametrize(
    "odd", [True, -3, 1e308, float("nan"), "x\ny|<b>", [], [1], {"a": 1}, [[]]]
)
def test_odd_rows_still_make_a_card(odd: Any, weights: Path, results: Results) -> None:
    keys = row(0.5).keys() | {"runs", "on_edge", "solver", "normalise", "epochs", "whitening"}
    for kept in ({"accuracy", "subject", "method"}, {"accuracy", "subject", "method", "seeds"}):
        wrong = row(0.5) | dict.fromkeys(keys - kept, odd)
        text = text_of(build_package(weights, name="mine", results=[results(wrong)]))
        assert "50.00%" in text
        assert "<b>" not in text.split("---\n", 2)[2]
        assert len(metrics_in(text)) == 1
    assert unusual({}, SIZE) == []
    assert told({"subject": "model", "method": "knn"}, SIZE) == {
        "subject": "model", "method": "knn",
    }  # fmt: skip


def test_an_interrupted_comparison_is_said_to_be_one(
    weights: Path, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    for complete, said in ((False, True), (True, False), (None, False)):
        path = results(row(0.5), complete=complete)
        package = build_package(weights, name="mine", results=[path])
        sentences = [text for text in package.left_out if "interrupted" in text]
        assert [str(path) in text for text in sentences] == [True] * said
        assert "50.00%" in text_of(package), "a row that is there is whole"
        assert str(path) not in text_of(package)
        assert main(["push", str(weights), "a/b", "--dry-run", "--results", str(path)]) == 0
        assert ("interrupted" in capsys.readouterr().err) is said


def test_a_folder_cannot_be_private(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ["a/b"], ["a/b", "--dry-run"]):
        with pytest.raises(SystemExit):
            main(["push", str(weights), *words, "--private", "--out", str(tmp_path / "out")])
        assert "leave --private out" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert main(["push", str(weights), "a/b", "--private", "--dry-run"]) == 0


# --- the run ----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 15 steps whose best weights are of step 5."""
    folder = tmp_path / "run"
    for name, seed in (("weights", 1), ("weights-best", 2)):
        save_model(digits_model(seed), folder / name)
    (folder / "checkpoints").mkdir()
    for name, step in (("last.ckpt", 15), (BEST, 5)):
        torch.save({"global_step": step}, folder / "checkpoints" / name)
    (folder / "summary.json").write_text(json.dumps({"step": 15, "metrics": {}}))
    config, _ = parse_pretrain(["--config", "digits"])
    values = config.to_dict()
    values["optim"] |= {"epochs": 3, "batch_size": 64}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def made_of(folder: Path) -> dict[str, str]:
    """How a model was made, as the table in its card has it."""
    text = text_of(build_package(folder, name="mine"))
    section = text.split("## How it was made\n")[1].split("\n## ")[0]
    lines = [cells_of(line) for line in section.splitlines() if line.startswith("| ")]
    return {line[0]: line[1] for line in lines}


def test_the_best_weights_tell_their_own_steps(run: Path) -> None:
    last = made_of(run)
    assert last["steps"] == "15 optimiser steps, 3 epochs, 64 images a step"
    assert made_of(run / "weights") == last
    assert "weights" not in last
    best = made_of(run / "weights-best")
    assert best["steps"] == "5 optimiser steps of a run of 15 (3 epochs, 64 images a step)"
    assert best["weights"] == "the best of the run by validation, not the last"
    torch.save({"global_step": 15}, run / "checkpoints" / BEST)
    assert made_of(run / "weights-best")["weights"].endswith("which were the last")
    (run / "summary.json").unlink()
    best = made_of(run / "weights-best")
    assert best["steps"] == "15 optimiser steps of a run of 3 epochs, 64 images a step"
    assert best["weights"] == "the best of the run by validation"


def test_the_best_weights_tell_them_again_where_they_are_published(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert main(["push", str(run / "weights-best"), "--out", str(folder)]) == 0
    (folder / "README.md").unlink()
    assert made_of(folder) == made_of(run / "weights-best")


def test_a_step_that_is_not_known_is_not_made_up(run: Path) -> None:
    folder, checkpoint = run / "weights-best", run / "checkpoints" / BEST
    for spoil in (lambda: checkpoint.write_bytes(b"no checkpoint"), checkpoint.unlink):
        spoil()
        package = build_package(folder, name="mine")
        assert any("step of these weights is left out" in text for text in package.left_out)
        told_of = made_of(folder)
        assert told_of["steps"] == (
            "not known, of a run of 15 optimiser steps (3 epochs, 64 images a step)"
        )
        assert told_of["weights"] == "the best of the run by validation"
    measured = {"sha256": weights_hash(folder), "weights": "weights-best", "step": 10, "rows": []}
    (run / "evaluation.json").write_text(json.dumps(measured))
    assert made_of(folder)["steps"].startswith("10 optimiser steps of a run of 15 (")
    (run / "evaluation.json").write_text(json.dumps(measured | {"sha256": "0" * 64}))
    assert not made_of(folder)["steps"].startswith("10 ")


def test_a_model_for_other_sizes_than_its_configurations_says_its_own(tmp_path: Path) -> None:
    model = CrateClassifier(digits_model(0).config, num_classes=3, pool="mean")
    assert "for 8 x 8 pixel images of" in text_of(
        build_package(save_model(model, tmp_path / "own"), name="mine")
    )
    model.preprocess = replace(model.preprocess, size=(16, 24))
    folder = save_model(model, tmp_path / "larger")
    assert "for 16 x 24 pixel images of" in text_of(build_package(folder, name="mine"))
    assert (folder / TENSORS).read_bytes() == (tmp_path / "own" / TENSORS).read_bytes()


# --- masks ------------------------------------------------------------------------------------


def test_every_setting_of_the_masks_is_told(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["masking"] |= {"ratio": 0.25, "ratio_max": 0.75, "square": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert made_of(run)["patches removed"] == (
        "25 % to 75 % (drawn for every image), random, squares of 2 x 2 patches"
    )
    base: dict[str, Any] = {"kind": "random", "ratio": 0.25, "ratio_max": 0.75}
    changes = {"kind": "block", "ratio": 0.125, "ratio_max": 0.5, "ratio_per": "step", "square": 3}
    assert changes.keys() == {field.name for field in fields(Masking)}, "all that there are"
    texts = {masking_text(base | {key: value}) for key, value in changes.items()}
    assert len(texts | {masking_text(base)}) == 1 + len(changes)
    assert "12.5 % to 75 %" in masking_text(base | {"ratio": 0.125})
    # What older recipes lack had its default; what newer ones have is not known.
    assert masking_text({"ratio": 0.75, "other": []}) == "75 %, random"


@pytest.mark.parametrize("key", ["kind", "ratio", "ratio_max", "ratio_per", "square"])
@pytest.mark.parametrize(
    "odd", [True, "much", -3, 1e308, float("nan"), [0.5], {"a": 1}, 10**30, "<b>"]
)
def test_damaged_masks_are_left_out(key: str, odd: Any) -> None:
    whole: dict[str, Any] = {"kind": "random", "ratio": 0.25, "ratio_max": 0.75, "square": 1}
    assert masking_text(whole)
    assert masking_text(whole | {key: odd}) == ""


@pytest.mark.parametrize("odd", [None, 3, [], {}, {"ratio": "x"}, {"ratio": 0.5, "kind": ["a"]}])
def test_a_card_is_made_without_them(odd: Any, run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"masking": odd}))
    assert "patches removed" not in made_of(run)
    assert "steps" in made_of(run)
