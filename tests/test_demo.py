"""The demo from the command line: whole, read again, and continued; on a smaller recipe."""

import json
from pathlib import Path

import pytest
import yaml

from crate_mae import demo
from crate_mae.cli import main
from crate_mae.training.folder import load_config_values
from crate_mae.training.parse import recipe


@pytest.fixture(autouse=True)
def short_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped recipe with three epochs instead of many."""
    values = yaml.safe_load(recipe("digits").read_text())
    values["optim"].update(epochs=3, warmup_epochs=1)
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(demo, "RECIPE", str(path))


def test_the_demo_leaves_pictures_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    first = capsys.readouterr().out
    for word in ("probe, model", "probe, random twin", "probe, raw pixels", "kNN, model", "PSNR"):
        assert word in first
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


def test_an_interrupted_demo_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    from crate_mae.training.run import pretrain

    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr(demo, "pretrain", partial(pretrain, stop_after=5))
        assert main(["demo", "--out", str(out)]) == 143
    assert not (out / "summary.json").exists()
    assert main(["demo", "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["step"] == 66
