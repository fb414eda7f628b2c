"""The demo from the command line: interrupted, continued, read again; on a smaller recipe."""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from figure_cases import colours_in, pixels

from crate_mae import demo
from crate_mae.cli import main
from crate_mae.training.parse import parse_pretrain, recipe
from crate_mae.training.pretrain import pretrain
from crate_mae.training.run_folder import load_config_values


@pytest.fixture(autouse=True)
def short_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped recipe on fewer digits, with a narrow model of one layer a side; brief probes."""
    values = yaml.safe_load(recipe("digits").read_text())
    values["model"].update(dim=16, depth=1, decoder_depth=1, num_heads=2, decoder_num_heads=2)
    values["optim"].update(epochs=3, warmup_epochs=1)
    values["data"].update(limit=400)
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(demo, "RECIPE", str(path))
    monkeypatch.setattr("crate_mae.evaluation.regression.MAX_STEPS", 20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The pictures of the trained model, only ever read, and what is told of them."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, demo.show_trained(folder)


def test_an_interrupted_demo_goes_on_and_leaves_pictures_and_numbers(
    trained: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr(demo, "pretrain", partial(pretrain, stop_after=5))
        assert main(["demo", "--out", str(out)]) == 143
    assert not (out / "summary.json").exists()
    assert not (out / "report.html").exists()
    told = capsys.readouterr().out
    assert told.index("on photographs it never saw") < told.index(f"training in {out}")
    shown = tmp_path / "demo-cifar10-small"
    drawn = {name: (shown / name).stat().st_mtime_ns for name in demo.PICTURES}
    for name in demo.PICTURES:
        assert (shown / name).read_bytes() == (trained[0] / name).read_bytes(), "the same each time"

    assert main(["demo", "--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert f"continuing in {out}" in first
    assert "on photographs it never saw" not in first, "shown once"
    assert str(shown) in first
    assert drawn == {name: (shown / name).stat().st_mtime_ns for name in demo.PICTURES}
    assert json.loads((out / "summary.json").read_text())["step"] == 18
    lines = [line.split() for line in first.splitlines()]
    for subject in (["model"], ["random", "baseline"], ["raw", "pixels"]):
        for method in ("probe", "kNN"):
            assert any(line[: len(subject) + 1] == [*subject, method] for line in lines)
    assert "PSNR" in first
    assert f"open        {out}/report.html" in first
    for name in ("reconstruction.png", "training.png", "evaluation.json", "metrics.csv",
                 "report.html", "analysis/layers.csv"):  # fmt: skip
        assert (out / name).stat().st_size > 0
    assert load_config_values(out)["masking"]["ratio"] == 0.5
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    assert len(rows) == 6
    page = (out / "report.html").read_text()
    for row in rows:
        assert f'data-value="{row["accuracy"]}"' in page

    stamp = (out / "metrics.jsonl").stat().st_mtime_ns
    assert main(["demo", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() in first
    assert (out / "metrics.jsonl").stat().st_mtime_ns == stamp, "nothing was trained again"
    (out / "evaluation.json").unlink()
    assert main(["demo", "--out", str(out)]) == 0
    assert (out / "evaluation.json").exists()


def test_a_folder_of_another_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("another run was touched")

    for name in ("pretrain", "show_trained", "draw_training", "write_report"):
        monkeypatch.setattr(demo, name, never)
    own = parse_pretrain(["--config", demo.RECIPE])[0].to_dict()
    others: dict[str, dict[str, Any]] = {
        "optim.epochs: 3 -> 9": {"optim": {**own["optim"], "epochs": 9}},
        "data.source: digits -> npy:mine.npy": {"data": {**own["data"], "source": "npy:mine.npy"}},
        "task: None -> classify": {"task": "classify"},
    }
    for number, (told, changes) in enumerate(others.items()):
        for finished in (False, True):
            folder = tmp_path / f"{number}-{finished}"
            folder.mkdir()
            values = {**own, "name": "mine", **changes}
            (folder / "config.yaml").write_text(yaml.safe_dump(values))
            if finished:
                (folder / "summary.json").write_text("{}")
            assert main(["demo", "--out", str(folder)]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"error: {folder} holds another run, mine on ")
            assert told in line
            assert line.endswith("name another folder with --out")
    folder = tmp_path / "started"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(own))
    (folder / "start.json").write_text('{"weights": "photos64", "sha256": "0"}')
    assert main(["demo", "--out", str(folder)]) == 1
    assert "start: random weights -> photos64" in capsys.readouterr().err


def test_what_a_resumed_run_may_change_leaves_it_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed: list[bool] = []

    def stopped(*_: object, resume: bool, **__: object) -> SimpleNamespace:
        resumed.append(resume)
        return SimpleNamespace(finished=False)

    monkeypatch.setattr(demo, "pretrain", stopped)
    monkeypatch.setattr(demo, "show_trained", lambda folder: f"shown in {folder}")
    values = parse_pretrain(["--config", demo.RECIPE])[0].to_dict()
    values["name"] = "another"
    values["data"]["workers"] = 1
    values["trainer"]["accelerator"] = "cpu"
    del values["objective"]["gamma"]  # as a version wrote it that did not know of it
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["demo", "--out", str(tmp_path)]) == 143
    assert f"continuing in {tmp_path}" in capsys.readouterr().out
    assert resumed == [True]


def test_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    (here / "below").mkdir(parents=True)
    shown: list[Path] = []
    trained: list[Path] = []

    def stopped(_config: object, folder: Path, **_: object) -> SimpleNamespace:
        trained.append(folder)
        return SimpleNamespace(finished=False)

    monkeypatch.setattr(demo, "show_trained", shown.append)
    monkeypatch.setattr(demo, "pretrain", stopped)
    for place, out in ((here, "."), (here / "below", "..")):
        monkeypatch.chdir(place)
        assert main(["demo", "--out", out]) == 143
    assert shown == [tmp_path / "here-cifar10-small"] * 2
    assert trained == [here] * 2


def test_the_trained_model_is_shown_at_once(trained: tuple[Path, str]) -> None:
    """Three pictures of the size they should have; the number told."""
    folder, told = trained
    for name in demo.PICTURES:
        picture = pixels(folder / name)
        assert picture.shape[0] > 300
        assert picture.shape[1] > 800
        assert colours_in(picture) > 100, "something is drawn"
        assert name in told
    found = re.search(r"completed, ([\d.]+) dB", told)
    assert found is not None
    assert 14 < float(found[1]) < 25
