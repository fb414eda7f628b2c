"""Runs side by side, made by hand: what differs, what is best, what may not be compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from crate_mae.evaluation.metrics import wilson_interval
from crate_mae.runs.compare_runs import compared, read_runs
from crate_mae.runs.contents import Run
from crate_mae.training.run_folder import Start


def row(method: str, accuracy: float, tested: int = 1000) -> dict[str, Any]:
    """A line of a comparison, with its interval."""
    low, high = wilson_interval(accuracy * tested, tested)
    return {"subject": "model", "method": method, "accuracy": accuracy, "interval": [low, high]}


def made(name: str, loss: float, *rows: dict[str, Any], **settings: Any) -> Run:
    """A masked run with some settings and results."""
    config: dict[str, Any] = {
        "name": name, "seed": 0, "masking": {"ratio": 0.75}, "optim": {"base_lr": 1e-3},
        "record": {"log_every": len(name)},
    }  # fmt: skip
    for key, value in settings.items():
        section, _, setting = key.rpartition("__")
        (config.setdefault(section, {}) if section else config)[setting] = value
    records = [{"step": 9, "train/loss": loss + 0.1}, {"step": 19, "val/loss": loss}]
    evaluation = {"rows": list(rows)} if rows else None
    return Run(
        folder=Path(name), config=config, config_text="", records=records, evaluation=evaluation
    )


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
    "settings", [{"masking__ratio": 0.5}, {"data__source": "digits"}, {"model__patch_size": [4, 4]}]
)
def test_losses_of_different_things_are_not_compared(settings: dict[str, Any]) -> None:
    found = compared([made("a", 0.3), made("b", 0.2, **settings)])
    (said,) = [answer.text for answer in found.answers() if answer.rule == "other losses"]
    assert next(iter(found.differing)) in said


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
