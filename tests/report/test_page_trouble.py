"""Reports of troubled runs: escaped, honest about what is missing, never in the way of files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from report_cases import Page, change, measured_run, read_page, small_run

from crate_mae.cli import main
from crate_mae.report.page import write_report

HOSTILE = (
    """</script><script>alert(1)</script>"'><img src=x onerror=alert(2)> $name {{ 7 * 7 }} &amp;"""
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose report has been made: only ever copied."""
    return measured_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(measured, tmp_path / "run"))


def test_a_picture_of_somebody_else_is_kept(run: Path) -> None:
    (run / "reconstruction.json").unlink()
    (run / "reconstruction.png").write_bytes(b"mine")
    (told,) = write_report(run).left_out
    assert "reconstruction.png is none of ours" in told
    assert (run / "reconstruction.png").read_bytes() == b"mine"


def test_a_result_of_somebody_else_is_kept(run: Path) -> None:
    (run / "evaluation.json").write_text('{"mine": 1}')
    report = write_report(run)
    assert any("none of ours" in sentence for sentence in report.left_out)
    assert (run / "evaluation.json").read_text() == '{"mine": 1}'
    assert "none of ours" in read_page(run / "report.html").text


def test_names_from_files_are_text(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["name"] = HOSTILE
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "command.txt").write_text(HOSTILE + "\n")
    change(run / "data.json", lambda values: values.update(source=HOSTILE))
    change(run / "environment.json", lambda values: values["packages"].update({HOSTILE: "1"}))

    def rename(values: dict[str, Any]) -> None:
        for row in values["rows"]:
            row["per_class"] = {HOSTILE: 0.5, "\ud800\x00": 0.25}
            row["tested_on"] = row["pool"] = HOSTILE

    change(run / "evaluation.json", rename)

    def relabel(values: dict[str, Any]) -> None:
        for row in values["rows"]:
            row["measure"] = row["measure"].replace("atoms_used", HOSTILE)

    change(run / "analysis" / "layers.json", relabel)
    (run / "log.txt").write_text(f"2026-01-01 00:00:00,000 WARNING {HOSTILE}\n")
    write_report(run, measure=False)
    page = read_page(run / "report.html")
    assert page.headings[0] == HOSTILE
    assert len(page.scripts) == len(page.styles) == 1
    assert not {"onerror", "onload"} & page.attributes
    assert all(str(image["src"]).startswith("data:image/") for image in page.images)
    assert page.text.count(HOSTILE) > 8
    assert "\x00" not in (run / "report.html").read_text()


def test_a_foreign_file_is_never_overwritten(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<!DOCTYPE html><p>mine</p>")
    assert main(["report", str(run), "--no-measure", "--out", str(mine)]) == 1
    assert "is no report of ours" in capsys.readouterr().err
    assert "mine" in mine.read_text()
    ours = tmp_path / "ours.html"
    for _ in range(2):
        assert main(["report", str(run), "--no-measure", "--out", str(ours)]) == 0
    for out, told in (
        (tmp_path / "page.txt", "an .html file"),
        (tmp_path / "no" / "page.html", "no folder"),
        (tmp_path / "run.html", "is no file"),
    ):
        if out.name == "run.html":
            out.mkdir()
        assert main(["report", str(run), "--no-measure", "--out", str(out)]) == 1
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--limit", "0"], ["--test-limit", "-1"]])
def test_limits_below_one_are_refused(run: Path, words: list[str]) -> None:
    assert main(["report", str(run), *words]) == 1


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_missing_data_are_told_of_and_the_page_is_written(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["source"] = "imagefolder:/nowhere/at/all"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for name in ("evaluation.json", "reconstruction.json"):
        (run / name).unlink()
    shutil.rmtree(run / "analysis")
    left_out = write_report(run).left_out
    assert [sentence.split(":")[0] for sentence in left_out] == [
        "Left out, reconstructions",
        "Left out, probe and nearest neighbours",
        "Left out, layer analysis",
    ]
    text = read_page(run / "report.html").text
    assert all(sentence in text for sentence in left_out)
    assert text.count("/nowhere/at/all") >= 3


def test_a_data_set_made_in_python_is_not_opened_again(run: Path) -> None:
    change(run / "data.json", lambda values: values.update(source="dataset:Mine"))
    change(run / "evaluation.json", lambda values: values.update(sha256="0" * 64))
    (told,) = write_report(run).left_out
    assert "made in Python (dataset:Mine)" in told
    page = read_page(run / "report.html")
    assert told in page.text
    assert "measured on other weights" in page.text, "the old numbers stay, marked"
    assert not [code for code in page.codes if "crate-mae probe" in code or "-again" in code]


def test_an_unfinished_run_says_so(run: Path) -> None:
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:4]) + '\n{"step": 5, "tr')
    write_report(run, measure=False)
    page = read_page(run / "report.html")
    steps = [json.loads(line)["step"] for line in lines[:4]]
    assert f"Step {max(steps) + 1} of 18. This run is not finished" in page.text
    assert f"crate-mae pretrain --resume {run}" in "\n".join(page.codes)


def test_a_run_that_broke_says_so(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "nonfinite.json").write_text('{"step": 7}')
    write_report(run, measure=False)
    assert "a number was not finite" in read_page(run / "report.html").text


def test_the_barest_run_has_a_page(tmp_path: Path, measured: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    shutil.copy(measured / "config.yaml", run)
    report = write_report(run)
    page = read_page(report.path)
    assert "No step has been recorded" in page.text
    assert page.images == []
    assert any("no weights yet" in sentence for sentence in report.left_out)


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", '{"rows": 3, "sha256": 1}', '{"rows": [{"accuracy": "x"}, 1]}']
)
def test_damaged_results_are_no_reason_to_fail(run: Path, content: str) -> None:
    for name in ("evaluation.json", "reconstruction.json", "data.json", "environment.json",
                 "summary.json", "analysis/layers.json"):  # fmt: skip
        (run / name).write_text(content)
    (run / "metrics.jsonl").write_text(content + '\n3\n{"step": "x"}\n{"step": 1, "val/loss": NaN}')
    (run / "reconstructions" / "epoch-0003.png").write_bytes(b"no picture")
    report = write_report(run, measure=False)
    assert Page(report.path.read_text()).headings[1] == "Summary"
    assert any("epoch-0003.png" in sentence for sentence in report.left_out)


@pytest.mark.parametrize("odd", [None, True, -3, 1e308, 10**30, "x", "\ud800", [], [1], {"a": []}])
def test_odd_values_anywhere_are_no_reason_to_fail(run: Path, odd: object) -> None:
    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoil(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoil(item, key) for item in value]
        return value if key in ("subject", "method", "accuracy", "measure") else odd

    for name in ("evaluation.json", "reconstruction.json", "data.json", "environment.json",
                 "summary.json", "analysis/layers.json"):  # fmt: skip
        values = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(spoil(values)))
    shutil.rmtree(run / "reconstructions")
    page = read_page(write_report(run, measure=False).path)
    assert page.table("Images told apart by frozen features").rows


def test_images_without_labels_leave_the_probe_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(72):
        Image.effect_noise((8, 8), 90).save(pictures / f"{index}.png")
    run = small_run(tmp_path / "run", source=f"imagefolder:{pictures}", val_split=None, limit=None)
    capsys.readouterr()
    assert main(["report", str(run), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Left out, probe and nearest neighbours: ")
    assert "has no labels" in told
    page = read_page(run / "report.html")
    assert "The summary says why" in page.text
    facts = json.loads((run / "reconstruction.json").read_text())
    assert facts["trained_on"] is False
    assert not (run / "evaluation.json").exists()
    assert page.table("Rate within the subspaces, R^c").rows
