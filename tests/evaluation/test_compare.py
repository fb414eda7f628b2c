"""Comparisons: which subjects, layers, pools and seeds, how they are summed up and printed."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from model_cases import digits_model
from PIL import Image

from crate_mae.cli import main
from crate_mae.evaluation import compare as module
from crate_mae.evaluation import features as features_module
from crate_mae.evaluation.backbones import random_baseline
from crate_mae.evaluation.choosing import chosen_by
from crate_mae.evaluation.compare import compare_features, compare_models
from crate_mae.evaluation.features import extract_features
from crate_mae.evaluation.knn import nearest_neighbours
from crate_mae.evaluation.metrics import few_shot, wilson_interval, with_majority_of
from crate_mae.evaluation.probe import linear_probe
from crate_mae.evaluation.rows import Row, comparison_table, confusion_table, grid_table
from crate_mae.models.autoencoder import CrateMAE, build_model
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.cost import parameter_count
from crate_mae.sources.address import open_pair
from crate_mae.sources.base import ImageSource
from crate_mae.vitmae.model import vitmae_baseline
from crate_mae.weights.weights_folder import save_model

Pair = tuple[ImageSource, ImageSource]


@pytest.fixture(scope="module")
def model() -> CrateMAE:
    return digits_model(seed=7)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return open_pair("digits", limit=200, test_limit=80)


def key(row: Row) -> tuple[str, str, str, int | None]:
    return row.method, row.subject, row.pool, row.layer


def test_rows_are_the_measures_of_the_features(model: CrateMAE, pair: Pair) -> None:
    rows = compare_models(model, *pair)
    subjects = ("model", "random baseline", "raw pixels")
    assert [(r.method, r.subject) for r in rows] == [
        (method, subject) for method in ("probe", "knn") for subject in subjects
    ]
    train, test = (extract_features(model, source) for source in pair)
    assert rows[0].results == (linear_probe(train, test),)
    assert rows[3].results == (nearest_neighbours(train, test),)
    twin = random_baseline(model, 0)
    train, test = (extract_features(twin, source) for source in pair)
    assert rows[1].results == (linear_probe(train, test),)
    count = sum(p.numel() for p in model.parameters())
    assert [row.parameters for row in rows[:3]] == [count, count, None]
    assert [row.dim for row in rows[:3]] == [16, 16, 64]


def test_layers_pools_and_seeds(
    model: CrateMAE, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    extract = features_module.extract_all

    def counted(subject: CrateMAE, *words: object, **more: object) -> object:
        made.append("model" if subject is model else "twin")
        return extract(subject, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "extract_all", counted)
    rows = compare_models(
        model,
        *pair,
        measures={"knn": nearest_neighbours},
        pools=("cls", "both"),
        layers=(0, None),
        seeds=(3, 4, 5),
        shots=4,
    )
    assert made == ["model"] * 2 + ["twin"] * 6, "features are computed once, twins once a seed"
    asked = [(pool, layer) for layer in (0, None) for pool in ("cls", "both")]
    assert [key(row) for row in rows] == [
        *(
            ("knn", name, pool, layer)
            for name in ("model", "random baseline")
            for pool, layer in asked
        ),
        ("knn", "raw pixels", "pixels", None),
    ]
    row = next(row for row in rows if key(row) == ("knn", "model", "both", 0))
    train, test = (extract_features(model, s, pool="both", layer=0) for s in pair)
    assert test.labels is not None
    expected = [
        with_majority_of(
            nearest_neighbours(few_shot(train, 4, seed), test, seed=seed), train, test.labels
        )
        for seed in (3, 4, 5)
    ]
    assert list(row.results) == expected
    accuracies = [result.accuracy for result in expected]
    assert row.accuracy == fmean(accuracies)
    assert row.std == stdev(accuracies)
    assert row.interval == wilson_interval(fmean(accuracies) * 80, 80)
    assert {result.num_train for result in row.results} == {40}
    twin = next(row for row in rows if key(row) == ("knn", "random baseline", "cls", None))
    known, unknown = (extract_features(random_baseline(model, 4), s, pool="cls") for s in pair)
    alone = nearest_neighbours(few_shot(known, 4, 4), unknown, seed=4)
    assert twin.results[1] == with_majority_of(alone, known, test.labels)


def test_only_a_part_of_the_training_images_is_called_held_out(
    model: CrateMAE, tmp_path: Path
) -> None:
    """Images without splits: a part of them tests, or all of those of another address."""
    for name in ("mine", "theirs"):
        np.save(tmp_path / f"{name}.npy", np.zeros((20, 8, 8), np.uint8))
        np.save(tmp_path / f"{name}_labels.npy", np.arange(20) % 2)
    mine, theirs = (f"npy:{tmp_path / name}.npy" for name in ("mine", "theirs"))
    for other, told in ((None, f"{mine} held out"), (theirs, theirs)):
        images = open_pair(mine, test_address=other)
        (row,) = compare_models(model, *images, measures={"knn": nearest_neighbours}, baselines=())
        assert row.tested_on == told


def test_a_row_as_plain_values(model: CrateMAE, pair: Pair) -> None:
    measures = {"probe": partial(linear_probe, penalties=(1.0, 0.1)), "knn": nearest_neighbours}
    rows = compare_models(model, *pair, measures=measures, seeds=(0, 1), baselines=())  # type: ignore[arg-type]
    for row in rows:
        plain = row.to_dict()
        assert json.loads(json.dumps(plain)) == {
            **plain,
            **({"by_k": {str(k): v for k, v in plain["by_k"].items()}} if "by_k" in plain else {}),
            "runs": json.loads(json.dumps(plain["runs"])),
        }
        assert plain["accuracy"] == fmean(run["accuracy"] for run in plain["runs"])
        assert plain["seeds"] == [0, 1]
        assert [run["seed"] for run in plain["runs"]] == [0, 1]
        assert plain["std"] == row.std
        assert sum(map(sum, plain["confusion"]["counts"])) == 80
        for name in ("subject", "method", "pool", "layer", "dim", "chance", "num_train", "grid"):
            assert name in plain
        setting = ("penalty",) if row.method == "probe" else ("k", "temperature")
        assert all(name in plain for name in setting)
    assert len(rows[0].to_dict()["grid"]) == 2


def test_other_models_share_the_protocol(model: CrateMAE, pair: Pair) -> None:
    trained = vitmae_baseline(model, seed=9)

    drawn = partial(vitmae_baseline, model, "parameters")
    rows = compare_models(
        model,
        *pair,
        measures={"knn": nearest_neighbours},
        layers="all",
        others={"ViT-MAE": trained, "untrained": drawn},
        baselines=(),
    )
    assert len(rows) == 3 * 4
    at = {key(row): row for row in rows}
    train, test = (extract_features(trained, s, layer=2) for s in pair)
    assert at["knn", "ViT-MAE", "mean", 2].results == (nearest_neighbours(train, test),)
    assert at["knn", "ViT-MAE", "mean", 2].dim == 16


def test_layers_are_checked_before_any_work(model: CrateMAE, pair: Pair) -> None:
    def never(what: str) -> Callable[[int, int], None] | None:
        raise AssertionError(what)

    with pytest.raises(ValueError, match=r"layers \[7\] do not exist"):
        compare_models(model, *pair, layers=(7,), progress=never)
    with pytest.raises(ValueError, match="at least one measure"):
        compare_models(model, *pair, measures={})
    with pytest.raises(ValueError, match="images of every class were asked for"):
        compare_models(model, *pair, shots=100)


def test_progress_names_the_subject_and_the_part(model: CrateMAE, pair: Pair) -> None:
    heard: dict[str, int] = {}

    def progress(what: str) -> Callable[[int, int], None]:
        def hear(done: int, total: int) -> None:
            heard[what] = done
            assert done <= total

        return hear

    compare_models(model, *pair, measures={"knn": nearest_neighbours}, progress=progress)
    assert heard["model, train"] == 200
    assert heard["raw pixels, test"] == 80
    assert "random baseline, knn" in heard


def test_the_table(model: CrateMAE, pair: Pair) -> None:
    rows = compare_models(model, *pair)
    text = comparison_table(rows)
    lines = text.splitlines()
    heads = "features of method accuracy 95 % interval balanced F1 width parameters setting"
    assert lines[0].split() == heads.split()
    assert lines[1].split()[:2] == ["model", "probe"]
    assert f"{rows[0].accuracy:.2%}" in lines[1]
    assert f"penalty {rows[0].result.setting['penalty']:g}" in lines[1]
    assert any(line.split()[:3] == ["raw", "pixels", "kNN"] for line in lines)
    best = [max(row.accuracy for row in part) for part in (rows[:3], rows[3:])]
    marked = {line.split("*")[0].split()[-1] for line in lines[1:7] if "*" in line}
    assert marked == {f"{accuracy:.2%}" for accuracy in best}
    assert "* highest accuracy of its method" in lines
    assert "200 training images, 80 test images (digits test), 10 classes" in text
    assert f"{rows[0].result.chance:.2%}" in text
    assert "layer" not in lines[0]
    several = compare_models(
        model,
        *pair,
        measures={"knn": nearest_neighbours},
        layers="all",
        pools=("cls",),
        seeds=(0, 1),
        shots=1,
    )
    text = comparison_table(several)
    heads = text.splitlines()[0]
    assert heads.index("layer") < heads.index("pool") < heads.index("width")
    assert "final" in text
    assert "±" in text
    assert "(1 of every class)" in text
    assert "setting fixed, none chosen on held-out images: kNN, model, kNN, random" in text


def test_the_whole_grid_is_printed(model: CrateMAE, pair: Pair) -> None:
    train, test = (extract_features(model, source) for source in pair)
    measures = {
        "probe": partial(linear_probe, solver="sgd", epochs=2),
        "knn": partial(nearest_neighbours, k=(1, 3), temperatures=(0.1, 1.0)),
    }
    rows = compare_features(train, test, measures=measures)  # type: ignore[arg-type]
    for row in rows:
        text = grid_table(row)
        for point in row.result.grid:
            assert f"{point.accuracy:.2%}" in text
        assert text.count("*") == 2, "the legend and the chosen one"
        assert chosen_by(row.result.folds, row.result.num_held_out) in text
    assert "k = 3" in grid_table(rows[1])
    (fixed,) = compare_features(
        train, test, measures={"knn": partial(nearest_neighbours, k=(3,), temperatures=(1,))}
    )
    assert "the setting was fixed, k = 3, temperature 1" in grid_table(fixed)
    mistakes = confusion_table(rows[0])
    top = rows[0].result.top_confusions[0]
    cells = [str(top[key]) for key in ("count", "true", "predicted")]
    assert cells in [line.split() for line in mistakes.splitlines()]


def test_edges_are_told(model: CrateMAE, pair: Pair) -> None:
    train, test = (extract_features(model, source) for source in pair)
    narrow = partial(linear_probe, penalties=(1e5, 1e6, 1.0))
    (row,) = compare_features(train, test, measures={"probe": narrow})
    assert row.result.on_edge == ["penalty 1 is the smallest tried"]
    assert "on the edge of the grid, penalty 1 is the smallest tried: probe, features, mean" in (
        comparison_table([row])
    )


def test_test_images_that_are_training_images_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, classes in (("train", "ab"), ("test", "ab")):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (4, 4)).save(tmp_path / split / name / f"{number}.png")
    address = f"imagefolder:{tmp_path}"
    open_pair(address)
    open_pair(f"imagefolder:{tmp_path / 'train'}")  # a fifth is held out
    assert not caplog.messages
    open_pair(address, train_split="test", test_limit=4)
    assert "4 of 4 test images are training images" in caplog.text
    open_pair("digits", train_split="all", test_split="test", test_limit=7)
    assert "7 of 7 test images are training images" in caplog.text


def test_the_twin_of_a_classifier_is_one() -> None:
    model = build_model("debug")
    classifier = CrateClassifier.from_pretrained(model, num_classes=7, pool="cls")
    twin = random_baseline(classifier, 3)
    assert isinstance(twin, CrateClassifier)
    assert twin.head.out_features == 7
    assert twin.pool == "cls"
    assert parameter_count(twin) == parameter_count(classifier)
    other = random_baseline(model, 3)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(twin.eval().encode(images), other.eval().encode(images))


def test_no_seed_moves_the_test_images(tmp_path: Path, model: CrateMAE) -> None:
    """An address without a test split: the same fifth is held out whatever is drawn elsewhere."""
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            image = Image.new("L", (8, 8), 40 + 60 * (name == "b") + number)
            image.save(tmp_path / "images" / name / f"{number}.png")
    folder, found = save_model(model, tmp_path / "weights"), []
    for seed in ("0", "9"):
        target = tmp_path / f"{seed}.json"
        words = [str(folder), f"imagefolder:{tmp_path / 'images'}", "--no-baselines"]
        assert main(["knn", *words, "--limit", "20", "--seed", seed, "--json", str(target)]) == 0
        found.append(json.loads(target.read_text())["data"])
    assert found[0] == found[1]
    assert found[0]["test"]["count"] == 8
