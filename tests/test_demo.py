"""The demo from the command line: interrupted, continued, read again; on a smaller recipe."""

import json
from functools import partial
from pathlib import Path

import pytest
import yaml

from crate_mae import demo
from crate_mae.cli import main
from crate_mae.training.folder import load_config_values
from crate_mae.training.parse import recipe
from crate_mae.training.run import pretrain


@pytest.fixture(autouse=True)
def short_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped recipe with three epochs and a narrow model of one layer a side."""
    values = yaml.safe_load(recipe("digits").read_text())
    values["model"].update(dim=16, depth=1, decoder_depth=1, num_heads=2, decoder_num_heads=2)
    values["optim"].update(epochs=3, warmup_epochs=1)
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(demo, "RECIPE", str(path))


def test_an_interrupted_demo_goes_on_and_leaves_pictures_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr(demo, "pretrain", partial(pretrain, stop_after=5))
        assert main(["demo", "--out", str(out)]) == 143
    assert not (out / "summary.json").exists()
    assert not (out / "report.html").exists()
    assert f"training in {out}" in capsys.readouterr().out

    assert main(["demo", "--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert f"continuing in {out}" in first
    assert json.loads((out / "summary.json").read_text())["step"] == 66
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
