"""What a report prints as commands: they do what was done, or are not there and a sentence is."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from report_cases import change, read_page, short_probes
from training_runs import small_config, write_recipe

from crate_mae.cli import main
from crate_mae.cli.draw import reconstruct_parser
from crate_mae.cli.evaluate import knn_parser, probe_parser
from crate_mae.cli.inspect import analyze_parser
from crate_mae.report.page import write_report
from crate_mae.report.sections import commands_data, measuring_commands
from crate_mae.runs import measure_missing
from crate_mae.runs.contents import Run

PARSERS = {
    "reconstruct": reconstruct_parser,
    "probe": probe_parser,
    "knn": knn_parser,
    "analyze": analyze_parser,
}


def made(*, recorded: str | None = None, commands: tuple[str, ...] = (), **changes: Any) -> Run:
    """A masked run on a folder of photographs; `changes` are of its settings, by section."""
    config: dict[str, Any] = {
        "data": {"source": "imagefolder:/photos", "val_share": 0.1},
        "masking": {"kind": "block", "ratio": 0.6},
    }
    for section, values in changes.items():
        config[section] = {**config.get(section, {}), **values}
    return Run(
        folder=Path("runs/made"), config=config, config_text="", commands=list(commands),
        data={"source": recorded or config["data"]["source"]},
    )  # fmt: skip


def parsed(run: Run) -> dict[str, Any]:
    """What the verbs read of the measuring commands, by verb: none may be refused."""
    found = {}
    for line in measuring_commands(run):
        name, verb, *words = shlex.split(line)
        assert name == "crate-mae"
        found[verb] = PARSERS[verb]().read(words)
    return found


def test_commands_read_the_images_as_the_run_does() -> None:
    keys = {"image_key": "a picture", "label_key": "kind", "follow_links": True}
    found = parsed(made(data={**keys, "split": "unlabelled"}))
    assert set(found) == set(PARSERS)
    for given in found.values():
        assert {key: getattr(given, key) for key in keys} == keys
    assert {found[verb].split for verb in ("reconstruct", "analyze")} == {"unlabelled"}
    assert {found[verb].train_split for verb in ("probe", "knn")} == {"unlabelled"}
    assert {found[verb].test_split for verb in ("probe", "knn")} == {None}
    assert found["reconstruct"].mask_kind == ["block"]
    assert found["reconstruct"].mask_ratio == [0.6]
    plain = parsed(made())
    assert {(g.image_key, g.label_key, g.follow_links) for g in plain.values()} == {
        (None, None, False)
    }


@pytest.mark.parametrize(("own", "limit"), [(160, 160), (None, 50_000), (60_000, 50_000)])
def test_the_printed_probe_learns_from_no_more_images_than_the_run(
    own: int | None, limit: int
) -> None:
    run = made(data={"limit": own})
    run.evaluation = {"limit": 50_000, "test_limit": 300, "rows": []}
    found = parsed(run)
    for verb in ("probe", "knn"):
        assert (found[verb].limit, found[verb].test_limit) == (limit, 300)


@pytest.mark.parametrize(
    "masking", [{"square": 2, "kind": "random"}, {"ratio": 0.25, "ratio_max": 0.75}]
)
def test_masks_that_the_verb_cannot_draw_have_no_command(masking: dict[str, Any]) -> None:
    assert set(parsed(made(masking=masking))) == {"probe", "knn", "analyze"}


@pytest.mark.parametrize(
    ("recorded", "command"),
    [
        ("dataset:TensorDataset", "(called from Python)"),
        ("pictures", "(called from Python)"),
        ("imagefolder:/others", "(called from Python)"),
    ],
)
def test_images_given_in_python_have_no_command(recorded: str, command: str) -> None:
    run = made(recorded=recorded, commands=(command,))
    found = commands_data(run)
    assert found["again"] is None
    assert found["resume"] is None
    assert found["measure"] == ""
    assert recorded in found["python"]
    assert "pretrain(..., dataset=...)" in found["python"]
    supervised = Run(**{**vars(run), "config": {"data": run.config["data"]}})
    assert "finetune(..., dataset=..., test_dataset=...)" in commands_data(supervised)["python"]


def test_images_that_moved_are_named_where_they_are_now() -> None:
    moved = commands_data(made(recorded="imagefolder:/before", commands=("crate-mae pretrain",)))
    assert moved["again"].startswith("crate-mae pretrain --config runs/made/config.yaml")
    assert moved["resume"] == "crate-mae pretrain --resume runs/made"
    assert moved["python"] is None
    assert "imagefolder:/photos" in moved["measure"]
    called = commands_data(made(commands=("(called from Python)",)))
    assert called["again"] == moved["again"]
    assert "val_dataset=..." in called["python"]


def test_old_accuracies_are_not_told_of_a_run_that_went_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_missing, "_analyse", lambda *_: None)  # not what this is about
    short_probes(monkeypatch)
    run, recipe = tmp_path / "run", write_recipe(small_config(), tmp_path / "small.yaml")
    begin = ["pretrain", "--config", str(recipe), "--out", str(run), "--stop-after", "2"]
    assert main(begin) == 143
    few = ["--limit", "60", "--test-limit", "30"]
    assert main(["report", str(run), "--device", "cpu", *few]) == 0
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    old = next(f"{row['accuracy']:.1%}" for row in rows if row["subject"] == "model")
    assert f"Linear probe: {old}" in read_page(run / "report.html").text
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(run)]) == 0
    told = capsys.readouterr().out
    assert "finished: folder=" in told
    assert "Linear probe: " not in told
    again = "measured on other weights than those that lie in the run folder now:"
    again += f" `crate-mae report {run}`"
    assert f"Linear probe and nearest neighbours were {again}" in told
    assert main(["report", str(run), "--no-measure"]) == 0
    page = read_page(run / "report.html").text
    assert "Linear probe: " not in page
    assert again in page.replace("\n", " ")
    # An unchanged limit is no reason to keep what is of other weights.
    assert main(["report", str(run), "--device", "cpu", *few]) == 0
    assert "measured on other weights" not in read_page(run / "report.html").text


def test_a_page_says_that_a_data_set_came_from_python(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_recipe(small_config(), run / "config.yaml")
    (run / "command.txt").write_text("(called from Python)\n")
    (run / "data.json").write_text('{"source": "dataset:Mine", "images": 160}')
    page = read_page(write_report(run, measure=False).path)
    assert "a data set given in Python (dataset:Mine)" in page.text
    assert not [code for code in page.codes if "-again" in code or "--resume" in code]
    change(run / "data.json", lambda values: values.update(source="digits"))
    page = read_page(write_report(run, measure=False).path)
    assert [code for code in page.codes if "-again" in code]
