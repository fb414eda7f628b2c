"""Reports of runs: true to the files, escaped, honest about what is missing, never in the way."""

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from crate_mae.cli import VERBS, main
from crate_mae.report import measure, words
from crate_mae.report.page import write_report
from crate_mae.whitebox.table import read_table
from report_cases import Page, measured_run, read_page, small_run

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


def change(path: Path, edit: Callable[[Any], None]) -> None:
    """Nothing; edits the values of a JSON file."""
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_a_page_is_whole_and_needs_nothing(measured: Path) -> None:
    page = read_page(measured / "report.html")
    assert page.headings[:2] == ["small", "Summary"]
    assert len(set(page.ids)) == len(page.ids)
    assert page.links
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    assert len(page.images) == 3 + 1 + 1 + 3, "epochs, sheet, curves, analysis"
    for image in page.images:
        kind, _, code = str(image["src"]).partition(";base64,")
        content = base64.b64decode(code, validate=True)
        if kind == "data:image/svg+xml":
            assert b"<svg" in content
        else:
            assert kind == "data:image/png"
            Image.open(io.BytesIO(content)).load()
        assert len(str(image["alt"])) > 20
    assert not {"style", "onclick", "onload", "onerror"} & page.attributes
    assert all(table.caption and None not in table.scopes for table in page.tables)
    html = (measured / "report.html").read_text()
    outside = [url for url in re.findall(r"https?://[^\s\"'<]+", html) if "w3.org" not in url]
    assert outside == []
    assert len(html) < 4_000_000


def test_the_policy_allows_this_script_and_style_alone(measured: Path) -> None:
    page = read_page(measured / "report.html")
    (policy,) = (m["content"] for m in page.metas if m.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    for source, (text,) in (("script-src", page.scripts), ("style-src", page.styles)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{source} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_every_accuracy_is_the_one_in_the_file(measured: Path) -> None:
    rows = json.loads((measured / "evaluation.json").read_text())["rows"]
    table = read_page(measured / "report.html").table("Images told apart by frozen features")
    assert len(table.rows) == len(rows) == 6
    column = table.heads.index("Accuracy")
    for row, shown, values in zip(rows, table.rows, table.values, strict=True):
        assert shown[0] == {"model": "this model"}.get(row["subject"], row["subject"])
        assert values[column] == str(row["accuracy"])
        assert shown[column] == f"{row['accuracy']:.2%}"
        assert [float(str(v)) for v in values[column + 1 : column + 3]] == row["interval"]
        assert shown[table.heads.index("Width")] == f"{row['dim']:,}"


def test_seeds_and_layers_have_their_columns(run: Path) -> None:
    def several(values: dict[str, Any]) -> None:
        for layer, row in enumerate(values["rows"]):
            row.update(std=0.0125, layer=layer or None)

    change(run / "evaluation.json", several)
    write_report(run, measure=False)
    table = read_page(run / "report.html").table("Images told apart by frozen features")
    assert {row[table.heads.index("Std over seeds")] for row in table.rows} == {"1.25%"}
    layers = [row[table.heads.index("Layer")] for row in table.rows]
    assert layers == ["final", "1", "2", "3", "4", "5"]


def test_every_layer_number_is_the_one_in_the_file(measured: Path) -> None:
    rows, facts = read_table(measured / "analysis")
    assert facts["images"] == 355, "the whole test split"
    table = read_page(measured / "report.html").table("Rate within the subspaces, R^c")
    wanted = {
        (row.side, str(row.layer), row.point, row.model): row.mean
        for row in rows
        if row.measure == "subspace_coding_rate"
    }
    shown = {
        (line[0], line[1], line[2], name): float(str(values[at]))
        for line, values in zip(table.rows, table.values, strict=True)
        for at, name in ((3, "model"), (4, "random twin"))
    }
    assert shown == wanted
    whole = {row.measure for row in rows if row.head is None}
    noted = sum(
        "Measured: " in part
        for part in measured.joinpath("report.html").read_text().split("<p class")
    )
    assert noted == len(whole), "a table for every measure"
    assert whole <= set(words.MEASURES), "explain the new measure in report/words.py"


def test_losses_hashes_and_settings_are_those_of_the_run(measured: Path) -> None:
    page = read_page(measured / "report.html")
    metrics = json.loads((measured / "summary.json").read_text())["metrics"]
    numbers = page.table("The same in numbers")
    assert len(numbers.rows) == 3
    assert numbers.values[-1][numbers.heads.index("Validation loss")] == str(metrics["val/loss"])
    assert f"{metrics['val/loss']:.4g}" in page.text
    hashes = page.table("Files of the run")
    assert "weights/model.safetensors" in [row[0] for row in hashes.rows]
    for name, size, digest in hashes.rows:
        content = (measured / name).read_bytes()
        assert size == f"{len(content):,}"
        assert digest == hashlib.sha256(content).hexdigest()
    assert (measured / "config.yaml").read_text() in page.codes


def test_commands_on_the_page_run(measured: Path, run: Path) -> None:
    lines = [
        line for code in read_page(measured / "report.html").codes for line in code.splitlines()
    ]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("crate-mae ")]
    assert [words[0] for words in commands] == [
        "pretrain", "pretrain", "reconstruct", "probe", "knn", "analyze", "report",
    ]  # fmt: skip
    assert all(words[0] in VERBS for words in commands)
    again = [word.replace(str(measured), str(run)) for word in commands[2]]
    assert main(again) == 0
    drawn = (Path(f"{run}-completed.png")).read_bytes()
    assert drawn == (run / "reconstruction.png").read_bytes(), "the very picture of the page"


def test_nothing_is_measured_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compare", "reconstruct_source", "analyse_subjects"):
        monkeypatch.setattr(measure, name, lambda *_, **__: pytest.fail("measured again"))
    assert write_report(run).left_out == []


def test_only_gathering_measures_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evaluation.json", "reconstruction.json"):
        (run / name).unlink()
    shutil.rmtree(run / "analysis")
    assert main(["report", str(run), "--no-measure"]) == 0
    assert "wrote" in capsys.readouterr().out
    assert not (run / "evaluation.json").exists()
    assert not (run / "analysis").exists()
    page = read_page(run / "report.html")
    assert "They have not been measured" in page.text
    assert "layers of this run have not been measured" in page.text
    assert len(page.images) == 3 + 1, "the pictures of the training are still there"


def test_stale_results_are_marked_or_measured_again(run: Path) -> None:
    change(run / "evaluation.json", lambda values: values.update(sha256="0" * 64))
    change(run / "analysis" / "layers.json", lambda v: v["facts"].update(sha256="0" * 64))
    change(run / "reconstruction.json", lambda values: values.update(sha256="0" * 64))
    write_report(run, measure=False)
    text = read_page(run / "report.html").text
    assert text.count("measured on other weights") == 4, "probe, layers, picture and its caption"
    write_report(run, limit=100, test_limit=50)
    assert "measured on other weights" not in read_page(run / "report.html").text
    fresh = json.loads((run / "evaluation.json").read_text())
    assert (
        fresh["sha256"]
        == hashlib.sha256((run / "weights" / "model.safetensors").read_bytes()).hexdigest()
    )
    assert {(row["num_train"], row["num_test"]) for row in fresh["rows"]} == {(100, 50)}


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


def test_a_supervised_run_keeps_its_one_test(measured: Path, tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    words = ["--weights", str(measured), "--data.source", "digits", "--data.test_split", "test"]
    words += ["--optim.epochs", "1", "--optim.warmup_epochs", "0", "--optim.batch_size", "64"]
    assert main(["finetune", *words, "--trainer.accelerator", "cpu", "--out", str(run)]) == 0
    tested = (run / "evaluation.json").read_bytes()
    assert write_report(run).left_out == []
    assert (run / "evaluation.json").read_bytes() == tested
    found = json.loads(tested)
    page = read_page(run / "report.html")
    assert page.headings[1:4] == ["Summary", "Better than the baseline", "Training"] or (
        found["accuracy"] <= found["chance"]
    )
    assert "Frozen features" not in page.headings
    values = dict(zip((row[0] for row in page.table("The test").rows),
                      (row[1] for row in page.table("The test").values), strict=True))  # fmt: skip
    assert values["Accuracy"] == str(found["accuracy"])
    assert values["Always the most frequent class"] == str(found["chance"])
    assert values["Test images"] == str(float(found["num_test"]))
    by_class = page.table("Accuracy by class")
    assert {row[0]: line[1] for row, line in zip(by_class.rows, by_class.values, strict=True)} == {
        name: str(share) for name, share in found["per_class"].items()
    }
    change(run / "evaluation.json", lambda values: values.update(sha256="0" * 64))
    write_report(run, measure=False)
    assert "measured on other weights" in read_page(run / "report.html").text


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
