"""Reports of runs: every number is that of the files, measured once, and the page needs nothing."""

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_cases import change, measured_run, read_page, short_probes
from source_cases import Write
from training_runs import small_config

from crate_mae.batches.config import DataConfig
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.masked import MaskedBatches
from crate_mae.cli import VERBS, main
from crate_mae.report.layer_tables import layer_tables
from crate_mae.report.page import templates, write_report
from crate_mae.report.sections import measuring_commands
from crate_mae.runs import measure_missing as measure
from crate_mae.runs.contents import Run
from crate_mae.runs.measure_missing import held_out
from crate_mae.whitebox.catalogue import MEASURES
from crate_mae.whitebox.table import Measurement, read_table


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """No probe takes long."""
    short_probes(monkeypatch)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose report has been made: only ever copied."""
    return measured_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(measured, tmp_path / "run"))


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
    column = table.heads.index("accuracy")
    assert table.heads[column + 1] == "95 % interval"
    for row, shown, values in zip(rows, table.rows, table.values, strict=True):
        assert shown[0] == row["subject"]
        assert values[column] == str(row["accuracy"])
        assert shown[column] == f"{row['accuracy']:.2%}"
        low, high = row["interval"]
        assert shown[column + 1] == f"{low:.1%} to {high:.1%}"
        assert values[column + 1] == str(low)
        assert shown[table.heads.index("width")] == f"{row['dim']:,}"


def test_classes_and_errors_are_those_of_the_files(measured: Path) -> None:
    page = read_page(measured / "report.html")
    rows = [r for r in json.loads((measured / "evaluation.json").read_text())["rows"]
            if r["method"] == "probe"]  # fmt: skip
    table = page.table("Accuracy by class, linear probe")
    assert table.heads == ["Class", "model", "random baseline", "raw pixels"]
    for line, values in zip(table.rows, table.values, strict=True):
        wanted = [row["per_class"][line[0]] for row in rows]
        assert [float(str(value)) for value in values[1:]] == wanted
    psnr = json.loads((measured / "reconstruction.json").read_text())["psnr"]
    assert f"8 images of digits test, PSNR {sum(psnr) / 8:.2f} dB on average." in page.text


def test_pictures_are_of_the_images_that_the_run_held_back() -> None:
    config = small_config(data=DataConfig(source="digits", limit=200, val_share=0.2))
    data = ImageDataModule(
        config.data, model=config.model, kind=MaskedBatches(masking=config.masking), batch_size=32
    )
    data.open()
    back = data.val_source
    assert back is not None
    run = Run(folder=Path(), config=asdict(config), config_text="", data=data.facts())
    found = held_out(run, 1000)
    assert not found.trained_on
    names = [found.source.name(index) for index in range(len(found.source))]
    assert names == [back.name(index) for index in range(40)]


@pytest.mark.parametrize("folders", [("train", "valid"), ("train",)])
def test_an_address_that_validates_is_looked_at_as_the_run_did(
    folders: tuple[str, ...], write: Write, tmp_path: Path
) -> None:
    for folder in folders:
        for number in range(3):
            write(f"theirs/{folder}/a/of-{folder}-{number}.png", (8, 8))
    theirs = f"imagefolder:{tmp_path / 'theirs'}"
    config = small_config(data=DataConfig(source="digits", limit=200, val_source=theirs))
    data = ImageDataModule(
        config.data, model=config.model, kind=MaskedBatches(masking=config.masking), batch_size=32
    )
    data.open()
    back = data.val_source
    assert back is not None
    assert back.split == folders[-1]
    run = Run(folder=tmp_path / "run", config=asdict(config), config_text="", data=data.facts())
    found = held_out(run, 1000)
    assert not found.trained_on
    assert found.source.fingerprint() == back.fingerprint()
    (analysing,) = [line for line in measuring_commands(run) if "analyze" in line]
    assert f"{theirs} --split {folders[-1]} " in analysing


def test_a_classifier_is_looked_at_on_the_test_images_that_it_found() -> None:
    config: dict[str, Any] = {"data": {"source": "digits", "test_source": None, "test_split": None}}
    run = Run(folder=Path(), config=config, config_text="", data={"split": "train"})
    assert not any(run.looked_at)
    run.data["test"] = {"source": "digits", "split": "test"}
    assert list(run.looked_at) == [None, "test"]
    assert not held_out(run, 8).trained_on
    run.data["test"] = {"source": "digits", "split": "train"}
    assert not any(run.looked_at), "a part held out of the training images"
    config["data"]["test_source"] = "npy:x.npy"
    assert list(run.looked_at) == ["npy:x.npy", "train"]
    config["data"]["test_split"] = "validation"
    assert list(run.looked_at) == ["npy:x.npy", "validation"]


def test_seeds_and_layers_have_their_columns(run: Path) -> None:
    def several(values: dict[str, Any]) -> None:
        for layer, row in enumerate(values["rows"]):
            row.update(std=0.0125, layer=layer or None)

    change(run / "evaluation.json", several)
    write_report(run, measure=False)
    table = read_page(run / "report.html").table("Images told apart by frozen features")
    accuracies = [row[table.heads.index("accuracy")] for row in table.rows]
    assert all(text.endswith(" ± 1.25%") for text in accuracies)
    layers = [row[table.heads.index("layer")] for row in table.rows]
    assert layers == ["final", "1", "\u2013", "3", "4", "\u2013"], "raw pixels have none"


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
        for at, name in ((3, "model"), (4, "random baseline"))
    }
    assert shown == wanted
    whole = {row.measure for row in rows if row.head is None}
    noted = sum(
        "Measured: " in part
        for part in measured.joinpath("report.html").read_text().split("<p class")
    )
    assert noted == len(whole), "a table for every measure"
    assert whole <= set(MEASURES), "explain the new measure in whitebox/catalogue.py"


def test_a_table_says_of_each_model_what_was_measured() -> None:
    def row(model: str, tensor: str) -> Measurement:
        return Measurement(
            model=model, side="encoder", layer=0, point="sparsify", measure="zero_fraction",
            mean=0.5, images=1, tensor=tensor, precision="float32",
        )  # fmt: skip

    ((_, alike),) = layer_tables([row("model", "z'"), row("other", "z'")])
    assert "Measured: z'." in alike.notes
    ((_, unlike),) = layer_tables([row("model", "z'"), row("other", "codes a")])
    assert "Measured: z' (model); codes a (other)." in unlike.notes


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


def test_the_page_of_a_run_that_began_with_weights_names_them(run: Path) -> None:
    (run / "start.json").write_text(json.dumps({"weights": "cifar10-small", "sha256": "12ab" * 16}))
    write_report(run, measure=False)
    page = read_page(run / "report.html")
    again = next(line for code in page.codes for line in code.splitlines() if "-again" in line)
    assert "--init-from cifar10-small" in again
    assert f"It began with the weights of cifar10-small, SHA-256 {'12ab' * 16}." in page.text
    (run / "start.json").write_text("[")
    write_report(run, measure=False)
    assert "start.json cannot be read" in read_page(run / "report.html").text


def test_nothing_is_measured_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compare_models", "reconstruct_source", "analyse_models"):
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
    told = "summary, probe, layers, picture and its caption"
    assert text.count("measured on other weights") == 5, told
    write_report(run, limit=100, test_limit=50)
    assert "measured on other weights" not in read_page(run / "report.html").text
    fresh = json.loads((run / "evaluation.json").read_text())
    assert (
        fresh["sha256"]
        == hashlib.sha256((run / "weights" / "model.safetensors").read_bytes()).hexdigest()
    )
    assert {(row["num_train"], row["num_test"]) for row in fresh["rows"]} == {(100, 50)}


def test_another_limit_measures_again_and_none_keeps(run: Path) -> None:
    def counts() -> set[tuple[int, int]]:
        rows = json.loads((run / "evaluation.json").read_text())["rows"]
        return {(row["num_train"], row["num_test"]) for row in rows}

    assert main(["report", str(run), "--limit", "80", "--test-limit", "40"]) == 0
    assert counts() == {(80, 40)}
    first = (run / "evaluation.json").stat().st_mtime_ns
    for given in ([], ["--limit", "80"]):
        assert main(["report", str(run), *given]) == 0
        assert (run / "evaluation.json").stat().st_mtime_ns == first
    assert "80 training images, 40 test images (digits test)" in read_page(run / "report.html").text


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("try `a --b`, or `c`.", "try <code>a --b</code>, or <code>c</code>."),
        ("`a <b>`", "<code>a &lt;b&gt;</code>"),
        ("plain & short", "plain &amp; short"),
        ("a name with one ` in it", "a name with one ` in it"),
        ("`a` and a name with `one", "<code>a</code> and a name with `one"),
    ],
)
def test_commands_in_sentences_are_shown_as_code(text: str, shown: str) -> None:
    macros: Any = templates().get_template("macros.html").module
    assert str(macros.with_code(text)) == shown
    assert f"<li>{shown}</li>" in str(macros.sentences("Title", [text], "good"))
