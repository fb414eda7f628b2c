"""Runs side by side, made by hand: what differs, what is best, what may not be compared."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from crate_mae.evaluation.metrics import wilson_interval
from crate_mae.runs.compare_runs import OTHER_TRAINING_LOSSES, compared, read_runs
from crate_mae.runs.contents import Run
from crate_mae.runs.differences import CHOOSING
from crate_mae.training.config import FinetuneConfig, PretrainConfig, TrainerConfig
from crate_mae.training.run_folder import Start
from crate_mae.training.segment_config import SegmentConfig


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are named relative to it."""
    monkeypatch.chdir(tmp_path)


def row(method: str, accuracy: float, tested: int = 1000, **facts: Any) -> dict[str, Any]:
    """A line of a comparison, with its interval."""
    low, high = wilson_interval(accuracy * tested, tested)
    usual = {
        "num_train": 800, "num_test": tested, "num_classes": 10, "shots": None, "pool": "mean",
        "tested_on": "digits held out",
    }  # fmt: skip
    result = {"method": method, "accuracy": accuracy, "interval": [low, high]}
    return {"subject": "model", **usual, **result, **facts}


def old_row(method: str, accuracy: float) -> dict[str, Any]:
    """A line that says nothing of how it was measured."""
    whole = row(method, accuracy)
    return {key: whole[key] for key in ("subject", "method", "accuracy", "interval")}


def write_weights(folder: Path, content: str) -> str:
    """The SHA-256 of a weights folder's tensor file, after it was written."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "preprocess.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_text(content)
    return hashlib.sha256(content.encode()).hexdigest()


def made(
    name: str,
    loss: float,
    *rows: dict[str, Any],
    data: dict[str, Any] | None = None,
    kind: str = "masking",
    **settings: Any,
) -> Run:
    """A pre-training run with weights, some settings and results."""
    config: dict[str, Any] = {
        "name": name, "seed": 0, kind: {"ratio": 0.75}, "optim": {"base_lr": 1e-3},
        "record": {"log_every": len(name)},
    }  # fmt: skip
    for key, value in settings.items():
        section, _, setting = key.rpartition("__")
        (config.setdefault(section, {}) if section else config)[setting] = value
    records = [{"step": 9, "train/loss": loss + 0.1}, {"step": 19, "val/loss": loss}]
    sha256 = write_weights(Path(name) / "weights", f"{name} {loss}")
    evaluation = {"sha256": sha256, "rows": list(rows)} if rows else None
    return Run(
        folder=Path(name),
        config=config,
        config_text="",
        records=records,
        evaluation=evaluation,
        data=data or {},
    )


def supervised(name: str, result: dict[str, Any], **settings: Any) -> Run:
    """A supervised run with weights, whose test gave this."""
    run = made(name, 0.3, kind="unused", **settings)
    del run.config["unused"]
    sha256 = write_weights(Path(name) / "weights-best", f"{name} best")
    run.evaluation = {"weights": "weights-best", "sha256": sha256, **result}
    return run


def said(runs: list[Run], rule: str) -> list[str]:
    """What is answered by a rule."""
    return [answer.text for answer in compared(runs).answers() if answer.rule == rule]


def names_of_settings() -> set[str]:
    """Every setting of every kind of run, by its dotted name."""

    def names(values: dict[str, Any], prefix: str = "") -> set[str]:
        return {
            name
            for key, value in values.items()
            for name in (
                names(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
            )
        }

    masks = SegmentConfig(masks="masks")
    kinds = (
        PretrainConfig(), PretrainConfig(method="simdino"), FinetuneConfig(),
        FinetuneConfig(task="segment", segment=masks),
    )  # fmt: skip
    return set().union(*(names(kind.to_dict()) for kind in kinds))


def test_settings_that_differ_and_numbers() -> None:
    first = made("a", 0.3, row("probe", 0.7), row("knn", 0.5))
    second = made("b", 0.4, row("probe", 0.6), row("knn", 0.51), optim__base_lr=2e-3)
    found = compared([first, second])
    assert found.differing == {"optim.base_lr": [1e-3, 2e-3]}, "records and names do not count"
    assert found.numbers()[0] == {
        "steps": 20, "train/loss": pytest.approx(0.4), "val/loss": 0.3, "probe": 0.7, "knn": 0.5,
        "test": None, "parameters": None,
    }  # fmt: skip
    texts = {answer.text: answer.good for answer in found.answers()}
    assert texts == {
        "Linear probe: a has 70.0%, b 60.0%.": True,
        "Nearest neighbours: b has 51.0%, a 50.0%: the intervals overlap, no clear difference.":
            None,
    }  # fmt: skip
    lines = found.table().splitlines()
    assert lines[0].split() == [
        "run", "optim.base_lr", "steps", "training", "loss", "validation", "loss", "probe", "kNN",
    ]  # fmt: skip
    assert "0.3*" in lines[1]
    assert "70.00%*" in lines[1]
    assert "51.00%*" in lines[2]
    assert json.loads(json.dumps(found.to_dict()))["differing"] == found.differing
    assert found.accuracies()[0]["linear probe"][0] == 0.7


@pytest.mark.parametrize(
    "settings",
    [
        {"masking__ratio": 0.5},
        {"data__source": "digits"},
        {"model__patch_size": [4, 4]},
        {"image_size": 64},
        {"segment__masks": "masks"},
        {"segment__val_masks": "masks"},
        {"segment__classes": 3},
        {"segment__class_names": ["leaf", "rest"]},
        {"segment__ignore": 0},
        {"data__shots": 10},
        {"data__share": 0.1},
        {"data__image_key": "picture"},
        {"data__label_key": "kind"},
    ],
)
def test_losses_of_different_things_are_not_compared(settings: dict[str, Any]) -> None:
    runs = [made("a", 0.3), made("b", 0.2, **settings)]
    (text,) = said(runs, "other losses")
    (name,) = (key.replace("__", ".") for key in settings)
    assert text == (
        f"Validation losses are of different things ({name}): compare accuracies alone."
    )
    assert "0.2*" not in compared(runs).table()


@pytest.mark.parametrize("settings", [{"segment__head": "depict"}, {"segment__freeze": True}])
def test_losses_of_other_heads_on_the_same_masks_are_compared(settings: dict[str, Any]) -> None:
    runs = [made("a", 0.3), made("b", 0.2, **settings)]
    assert said(runs, "other losses") == []
    assert "0.2*" in compared(runs).table()


def test_there_are_settings_of_the_names_that_are_looked_for() -> None:
    there = names_of_settings()
    for name in {*CHOOSING, *OTHER_TRAINING_LOSSES} - {"training images"}:
        assert any(key.startswith(name) for key in there), name


def test_runs_of_other_seeds_have_a_spread() -> None:
    runs = [made(str(seed), 0.3, row("probe", p), seed=seed) for seed, p in ((0, 0.5), (1, 0.6))]
    found = compared(runs)
    assert found.only_seeds_differ
    assert "probe over 2 seeds: 55.00% ± 7.07%" in found.table()
    assert not any(answer.rule == "best run" for answer in found.answers())


def test_what_is_not_measured_is_named() -> None:
    found = compared([made("runs/a", 0.3), made("runs/b", 0.3)])
    assert "no setting differs" in found.table()
    assert "`crate-mae report runs/a`" in found.table()
    assert found.accuracies() == [{}, {}]


def test_folders_are_read(tmp_path: Path) -> None:
    for name, rate in (("a", 1e-3), ("b", 2e-3)):
        (tmp_path / name).mkdir()
        settings = {"masking": {}, "optim": {"base_lr": rate}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings))
    found = read_runs([tmp_path / "a", tmp_path / "b"])
    assert found.differing == {"optim.base_lr": [1e-3, 2e-3]}
    with pytest.raises(ValueError, match="at least two"):
        read_runs([tmp_path / "a"])
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_runs([tmp_path / "a", tmp_path / "none"])


@pytest.mark.parametrize(
    ("settings", "marked"),
    [
        ({"optim__base_lr": 2e-3}, {"0.2*", "0.3*"}),
        ({"masking__ratio": 0.5}, set()),
        ({"simdino__eps": 0.5}, set()),
        ({"objective__gamma": 0.1}, {"0.2*"}),
    ],
)
def test_the_lowest_loss_is_marked_where_losses_are_of_the_same(
    settings: dict[str, Any], marked: set[str]
) -> None:
    table = compared([made("a", 0.3), made("b", 0.2, **settings)]).table()
    assert {word for word in table.split() if word[1:].endswith("*")} == marked


def test_what_could_not_be_measured_is_told() -> None:
    first, second = made("runs/a", 0.3), made("runs/b", 0.3)
    first.problems.append("Left out, probe and nearest neighbours: digits has no labels.")
    found = compared([first, second])
    assert "runs/a: Left out, probe and nearest neighbours: digits has no labels." in found.table()
    (missing,) = [answer.text for answer in found.answers() if answer.rule == "not measured"]
    assert "of 1 runs" in missing
    assert "runs/b" in missing
    assert found.to_dict()["problems"] == [first.problems, []]


def test_runs_that_began_with_other_weights_do_not_repeat_each_other() -> None:
    runs = [made(str(seed), 0.3, row("probe", 0.5), seed=seed) for seed in range(3)]
    runs[0].start = Start(weights="photos64", sha256="83ab12cd" + "0" * 56)
    runs[1].start = Start(weights="runs/mine", sha256="ffffffff" + "0" * 56)
    found = compared(runs)
    assert found.differing["started from"] == ["photos64 83ab12cd", "runs/mine ffffffff", None]
    assert not found.only_seeds_differ
    assert "± " not in found.table()
    runs[1].start = Start(weights="a/copy", sha256=runs[0].start.sha256)
    assert compared(runs[:2]).only_seeds_differ, "the same weights under two names"
    for run in runs[:2]:
        run.config["weights"] = run.name
    assert "started from" not in compared(runs[:2]).differing, "their settings tell it"


# -- measured alike -------------------------------------------------------------------------------


def test_accuracies_on_other_test_images_are_not_compared() -> None:
    two: dict[str, Any] = {"tested_on": "npy:two.npz held out", "num_classes": 2}
    runs = [
        made("runs/a", 0.3, row("probe", 0.57), row("knn", 0.5)),
        made("runs/e", 0.3, row("probe", 1.0, **two), row("knn", 0.6), optim__base_lr=2e-3),
    ]
    found = compared(runs)
    probe, knn = said(runs, "best run")
    assert probe == (
        "Linear probe: not measured alike, so no run is called the best: test images (digits held"
        " out, npy:two.npz held out) and numbers of classes (10, 2) differ. Measure each run alike:"
        " `crate-mae probe RUN ADDRESS`, with the same address for all."
    )
    assert knn == "Nearest neighbours: runs/e has 60.0%, runs/a 50.0%."
    table = found.table()
    assert probe in table
    assert "100.00%" in table
    assert "100.00%*" not in table
    assert "60.00%*" in table, "the other column is as before"
    assert list(found.accuracies()[1]) == [
        "linear probe\n(not measured alike)",
        "nearest neighbours",
    ]


def test_accuracies_of_other_amounts_have_no_spread() -> None:
    runs = [
        made("0", 0.3, row("probe", 0.57, num_train=1000), row("knn", 0.5), seed=0),
        made("1", 0.3, row("probe", 0.47, num_train=60), row("knn", 0.6), seed=1),
    ]
    found = compared(runs)
    assert found.only_seeds_differ
    assert [answer.text for answer in found.answers()] == [
        "Linear probe: not measured alike, so no run is called the best: numbers of training images"
        " (1,000, 60) differ. Measure alike: `crate-mae report 0 --limit 60 --test-limit 1000`."
    ]
    assert "probe over" not in found.table()
    assert "57.00%*" not in found.table()
    assert "kNN over 2 seeds: 55.00% ± 7.07%" in found.table()


def test_the_least_amount_is_measured_of_every_run_that_has_more() -> None:
    amounts = {"a": (50, 20), "b": (60, 10), "c": (50, 10), "d": (70, 10), "e": (50, 30)}
    runs = [
        made(name, 0.3, row("knn", 0.5, test, num_train=train), optim__base_lr=number + 1.0)
        for number, (name, (train, test)) in enumerate(amounts.items())
    ]
    (text,) = said(runs, "best run")
    commands = [f"`crate-mae report {name} --limit 50 --test-limit 10`" for name in "abd"]
    assert text.endswith(f"Measure alike: {', '.join(commands)}, and so on.")


@pytest.mark.parametrize(
    ("facts", "differ", "command"),
    [
        ({"shots": 5}, "shots (all, 5)", "probe RUN ADDRESS`, with the same address and the same"),
        ({"pool": "cls"}, "pools (mean, cls)", "probe RUN ADDRESS --pool mean`"),
        ({"num_classes": 9}, "numbers of classes (10, 9)", "probe RUN ADDRESS`"),
        (
            {"num_test": 7},
            "numbers of test images (1,000, 7)",
            "report a --limit 800 --test-limit 7",
        ),
    ],
)
def test_what_was_not_measured_alike_is_named(
    facts: dict[str, Any], differ: str, command: str
) -> None:
    runs = [made("a", 0.3, row("probe", 0.9)), made("b", 0.3, row("probe", 0.1, **facts), seed=1)]
    (text,) = said(runs, "best run")
    assert f": {differ} differ. " in text
    assert f"`crate-mae {command}" in text
    assert not {"90.00%*", "±"} & set(compared(runs).table().split())


def test_masked_runs_beside_simdino_are_of_other_pools() -> None:
    runs = [
        made("a", 0.3, row("probe", 0.9)),
        made("b", 0.3, row("probe", 0.1, pool="cls"), kind="simdino"),
    ]
    (text,) = said(runs, "best run")
    assert "pools (mean, cls) differ" in text
    assert "90.00%*" not in compared(runs).table()


def test_a_result_that_does_not_say_how_it_was_measured_is_compared() -> None:
    runs = [made("a", 0.3, old_row("probe", 0.9)), made("b", 0.3, row("probe", 0.1))]
    assert said(runs, "best run") == ["Linear probe: a has 90.0%, b 10.0%."]


def classified(accuracy: float, **facts: Any) -> dict[str, Any]:
    """The test of a classifier; its images are those of a fingerprint."""
    usual = {"tested_on": "digits test", "fingerprint": "f" * 64}
    result = row("", accuracy, **{**usual, **facts})
    return {**result, "data": {"test": {"fingerprint": result.pop("fingerprint")}}}


def test_supervised_runs_are_compared_on_the_same_test_images() -> None:
    few, many = classified(0.7, num_train=100), classified(0.9, num_train=1000, pool="layers")
    runs = [supervised("few", few, data__shots=10), supervised("many", many)]
    assert said(runs, "best run") == ["Test: many has 90.0%, few 70.0%."]
    assert "90.00%*" in compared(runs).table()


@pytest.mark.parametrize(
    ("facts", "differ"),
    [
        ({"tested_on": "npy:two.npz test"}, "test images (digits test, npy:two.npz test)"),
        ({"fingerprint": "e" * 64}, "fingerprints of the test images (ffffffff, eeeeeeee)"),
        ({"num_classes": 2}, "numbers of classes (10, 2)"),
    ],
)
def test_supervised_runs_on_other_test_images_are_not_compared(
    facts: dict[str, Any], differ: str
) -> None:
    runs = [supervised("a", classified(0.57)), supervised("e", classified(1.0, **facts), seed=1)]
    assert said(runs, "best run") == [
        f"Test: not measured alike, so no run is called the best: {differ} differ. Test all runs on"
        " the same images: with one data.test_source, data.test_split and data.test_limit."
    ]
    assert not {"100.00%*", "±"} & set(compared(runs).table().split())


def test_masks_of_other_test_images_are_not_compared() -> None:
    results = [
        {"mean_iou": 0.5, "tested_on": f"imagefolder:{name} test", "num_test": 9} for name in "ab"
    ]
    runs = [supervised(str(i), result, task="segment") for i, result in enumerate(results)]
    (text,) = said(runs, "best run")
    assert text.startswith("Mean IoU: not measured alike")
    assert [numbers["mean_iou"] for numbers in compared(runs).numbers()] == [0.5, 0.5]


# -- results of other weights ---------------------------------------------------------------------


def test_results_of_other_weights_do_not_count() -> None:
    runs = [
        made(f"runs/{number}", 0.3, row("probe", share), row("knn", 0.5), seed=number)
        for number, share in enumerate((0.9, 0.6, 0.5))
    ]
    assert "probe over 3 seeds" in compared(runs).table()
    write_weights(Path("runs/0/weights"), "trained on")
    found = compared(runs)
    numbers = found.numbers()
    assert (numbers[0]["probe"], numbers[0]["knn"], numbers[0]["val/loss"]) == (None, None, 0.3)
    assert numbers[1]["probe"] == 0.6
    told = (
        "its results are of other weights than lie there now and do not count: `crate-mae report"
        " runs/0`, or --measure, measures again."
    )
    table = found.table()
    assert f"runs/0: {told}" in table
    assert "90.00%" not in table
    assert "60.00%*" in table
    assert "probe over 2 seeds: 55.00% ± 7.07%" in table
    assert found.to_dict()["problems"] == [[told], [], []]
    assert list(found.accuracies()[0]) == []


def test_a_result_of_other_weights_is_no_best_run() -> None:
    runs = [
        made("a", 0.3, row("probe", 0.9), row("knn", 0.9)),
        made("b", 0.3, row("probe", 0.1), row("knn", 0.1), optim__base_lr=1.0),
    ]
    assert len(said(runs, "best run")) == 2
    write_weights(Path("a/weights"), "trained on")
    assert compared(runs).answers() == [], "the table says what to do"


def test_a_test_of_other_weights_does_not_count() -> None:
    runs = [supervised("a", classified(0.9)), supervised("b", classified(0.7), optim__base_lr=1.0)]
    write_weights(Path("a/weights"), "the last ones were not tested")
    assert said(runs, "best run") == ["Test: a has 90.0%, b 70.0%."]
    write_weights(Path("a/weights-best"), "trained on")
    found = compared(runs)
    assert [numbers["test"] for numbers in found.numbers()] == [None, 0.7]
    assert "90.00%" not in found.table()
    assert "`crate-mae finetune --resume a` tests again" in found.table()


def test_weights_that_are_gone_or_damaged_are_not_those_measured() -> None:
    runs = [made(name, 0.3, row("probe", 0.9)) for name in "ab"]
    (Path("a") / "weights" / "config.json").write_text("no JSON")
    (Path("b") / "weights").rename("elsewhere")
    assert [numbers["probe"] for numbers in compared(runs).numbers()] == [None, None]


# -- hardware -------------------------------------------------------------------------------------

OTHER_HARDWARE: dict[str, Any] = {
    "accelerator": "gpu", "devices": 2, "num_nodes": 2, "strategy": "ddp", "tf32": True,
    "precision": "bf16-mixed", "accumulate": 4, "compile": True, "recompute": True,
    "deterministic": True, "loggers": ["csv"],
}  # fmt: skip
WHOLE_BATCH = {"objective__gamma": 0.1, "objective__over": "batch"}


def differing_on(name: str, **settings: Any) -> dict[str, list[Any]]:
    """In what two seeds differ that one setting of the trainer sets apart."""
    other = {f"trainer__{name}": OTHER_HARDWARE[name]}
    return compared(
        [made("a", 0.3, **settings), made("b", 0.3, seed=1, **other, **settings)]
    ).differing


@pytest.mark.parametrize("name", [field.name for field in fields(TrainerConfig)])
def test_hardware_is_left_out_and_rounding_is_not(name: str) -> None:
    expected: dict[str, list[Any]] = {"seed": [0, 1]}
    if name in ("precision", "tf32"):
        usual = {"precision": "32-true", "tf32": False}[name]
        expected[f"trainer.{name}"] = [usual, OTHER_HARDWARE[name]]
    assert differing_on(name) == expected


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        (WHOLE_BATCH, True),
        ({**WHOLE_BATCH, "objective__features": "class_token"}, True),
        ({"kind": "simdino", "simdino__reduce_cov": False}, True),
        ({**WHOLE_BATCH, "objective__gamma": 0.0}, False),
        ({**WHOLE_BATCH, "objective__over": "step"}, False),
        ({**WHOLE_BATCH, "objective__features": "tokens"}, False),
        ({"kind": "simdino", "simdino__reduce_cov": True}, False),
    ],
)
def test_accumulation_counts_where_the_loss_is_of_a_batch(
    settings: dict[str, Any], counts: bool
) -> None:
    found = differing_on("accumulate", **settings)
    assert found.get("trainer.accumulate") == ([1, 4] if counts else None)
    assert "trainer.devices" not in differing_on("devices", **settings)


# -- training images ------------------------------------------------------------------------------

ONE, OTHER = "1" * 64, "2" * 64


def of_images(fingerprint: str | None, source: str | None = "digits") -> dict[str, Any]:
    """What a run wrote of its training images."""
    return {"source": source, "split": "train", "fingerprint": fingerprint}


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (of_images(ONE), of_images(OTHER), ["digits 11111111", "digits 22222222"]),
        (
            of_images(ONE, "dataset:Photos"),
            of_images(ONE, "dataset:Scans"),
            ["dataset:Photos 11111111", "dataset:Scans 11111111"],
        ),
        (of_images(None, "dataset:A"), of_images(None), ["dataset:A", "digits"]),
    ],
)
def test_seeds_on_other_images_of_the_same_settings_differ(
    first: dict[str, Any], second: dict[str, Any], told: list[str]
) -> None:
    runs = [
        made("a", 0.3, row("probe", 0.9), data=first),
        made("b", 0.2, row("probe", 0.1), data=second, seed=1),
    ]
    found = compared(runs)
    assert found.differing == {"seed": [0, 1], "training images": told}
    assert not found.only_seeds_differ
    table = found.table()
    assert "training images" in table
    assert "±" not in table
    assert not {"0.2*", "0.3*"} & set(table.split())
    (text,) = said(runs, "other losses")
    assert "(training images)" in text


@pytest.mark.parametrize("old", [{}, of_images(None), of_images(None, None), {"fingerprint": 3}])
def test_images_that_were_not_recorded_are_no_difference(old: dict[str, Any]) -> None:
    runs = [made("a", 0.3, data=of_images(ONE)), made("b", 0.2, data=old, seed=1)]
    assert compared(runs).only_seeds_differ
    runs[1] = made("c", 0.2, data=of_images(ONE), seed=2)
    assert compared(runs).only_seeds_differ


def drawn(seed: int, fingerprint: str, name: str, **settings: Any) -> Run:
    """A run whose settings say how many of its source's images it trains on."""
    data = of_images(fingerprint)
    return made(name, 0.3 - 0.1 * seed, row("probe", 0.5), data=data, seed=seed, **settings)


def test_seeds_that_drew_other_images_of_one_source_repeat_each_other() -> None:
    runs = [drawn(0, ONE, "a", data__limit=9), drawn(1, OTHER, "b", data__limit=9)]
    found = compared(runs)
    assert found.only_seeds_differ
    assert "probe over 2 seeds" in found.table()
    assert "0.2*" in found.table(), "nothing was held out of what was drawn"
    again = drawn(1, ONE, "c", data__limit=9)
    assert compared([*runs, again]).differing["training images"] == [
        "digits 11111111", "digits 22222222", "digits 11111111",
    ]  # fmt: skip
    runs[1].data["source"] = "dataset:Photos"
    assert not compared(runs).only_seeds_differ


def test_losses_on_images_held_out_of_drawn_ones_are_not_compared() -> None:
    settings = {"data__limit": 9, "data__val_share": 0.1}
    runs = [drawn(0, ONE, "a", **settings), drawn(1, OTHER, "b", **settings)]
    assert compared(runs).only_seeds_differ
    assert "0.2*" not in compared(runs).table()
    (text,) = said(runs, "other losses")
    assert "(held-out images drawn by the seed)" in text
    for run in runs:
        run.config["data"]["val_split"] = "val"
    assert said(runs, "other losses") == []
    assert "0.2*" in compared(runs).table()


@pytest.mark.parametrize(
    ("settings", "repeats"),
    [
        ({"data__shots": 5}, True),
        ({"data__share": 0.1}, True),
        ({"data__limit": 9}, False),
        ({}, False),
    ],
)
def test_seeds_of_supervised_runs_draw_the_labels(settings: dict[str, Any], repeats: bool) -> None:
    runs = [supervised(str(seed), classified(0.9), seed=seed, **settings) for seed in (0, 1)]
    for run, fingerprint in zip(runs, (ONE, OTHER), strict=True):
        run.data = of_images(fingerprint)
    assert compared(runs).only_seeds_differ == repeats
    assert ("test over 2 seeds" in compared(runs).table()) == repeats


@pytest.mark.parametrize("settings", [{"data__limit": 9}, {"data__val_share": 0.5}])
def test_settings_that_choose_images_tell_that_they_differ(settings: dict[str, Any]) -> None:
    runs = [made("a", 0.3, data=of_images(ONE)), made("b", 0.3, data=of_images(OTHER), **settings)]
    assert list(compared(runs).differing) == [key.replace("__", ".") for key in settings]


def test_what_folders_hold_is_set_beside_each_other() -> None:
    for name, fingerprint in (("a", ONE), ("b", OTHER)):
        sha256 = write_weights(Path(name) / "weights", name)
        settings = {"masking": {}, "data": {"source": "digits"}}
        facts = {"sha256": sha256, "rows": [row("probe", 0.5)]}
        (Path(name) / "config.yaml").write_text(yaml.safe_dump(settings))
        (Path(name) / "data.json").write_text(json.dumps(of_images(fingerprint)))
        (Path(name) / "evaluation.json").write_text(json.dumps(facts))
    write_weights(Path("a/weights"), "trained on")
    found = read_runs(["a", "b"])
    assert found.differing == {"training images": ["digits 11111111", "digits 22222222"]}
    assert [numbers["probe"] for numbers in found.numbers()] == [None, 0.5]
