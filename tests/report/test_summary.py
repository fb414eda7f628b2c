"""The summary of a report: key numbers and verdicts of runs made by hand, with known answers."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from crate_mae.evaluation.comparison import headline
from crate_mae.report.summary import key_numbers, status, summary_data, verdicts
from crate_mae.runs.contents import Run


def line(subject: str, accuracy: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    """A line of a comparison."""
    return {"subject": subject, "method": "probe", "accuracy": accuracy,
            "interval": [low, high], **more}  # fmt: skip


def made(**changes: Any) -> Run:
    """A run of a hundred images in batches of ten, three epochs, two validations."""
    values: dict[str, Any] = {
        "folder": Path("made"),
        "config": {"masking": {}, "model": {}, "optim": {"batch_size": 10, "epochs": 3}},
        "config_text": "",
        "data": {"images": 105},
        "records": [
            {"step": 4, "val/loss": 0.9, "val/mean_colour": 1.0, "speed/images_per_s": 30.0},
            {"step": 5, "speed/images_per_s": 10.0},
            {"step": 6, "speed/images_per_s": 500.0},
            {"step": 9, "val/loss": 0.25, "val/mean_colour": 1.0, "val/patch_mean": 0.2},
            {"step": 11, "val/loss": float("nan")},
        ],
    }
    return Run(**(values | changes))


def with_weights(folder: Path) -> str:
    """The SHA-256 of weights that lie in a folder now, of which only their bytes matter here."""
    (folder / "weights").mkdir()
    for name in ("config.json", "preprocess.json", "model.safetensors"):
        (folder / "weights" / name).write_text("{}")
    return hashlib.sha256(b"{}").hexdigest()


def by_verdict(run: Run) -> dict[bool | None, list[str]]:
    """Sentences by what they say: better, worse or undecided, those that there are."""
    found: dict[bool | None, list[str]] = {}
    for sentence, better in verdicts(run):
        found.setdefault(better, []).append(sentence)
    return found


def test_the_first_line_counts_and_not_the_best() -> None:
    rows = [line("model", 0.6, 0.5, 0.7), line("model", 0.9, 0.8, 1.0, layer=2)]
    assert headline(rows, "probe", "model") is rows[0]
    assert headline(rows, "probe", "raw pixels") is None


def test_completion_is_set_beside_one_colour_and_the_patch_means() -> None:
    found = by_verdict(made())
    assert set(found) == {True, None}
    (better,), (beside,) = found[True], found[None]
    few = summary_data(made())["few_steps"]
    assert few.startswith("30 optimiser steps are very few"), "said at the top"
    assert summary_data(made(data={"images": 10**6}))["few_steps"] is None
    assert "75% below that of the best single colour (0.25 against 1)" in better
    assert "above the error of knowing each removed patch's true mean, 0.2" in beside
    records = [{"step": 1, "val/loss": 1.5, "val/mean_colour": 1.0, "val/patch_mean": 2.0}]
    found = by_verdict(made(records=records))
    assert "50% above that of the best single colour" in found[False][0]
    assert "It has hardly learned (loss 1.5, one colour 1)" in found[False][0]
    assert True not in found, "below the patch means, but above one colour"
    records = [{"step": 1, "val/loss": 0.5, "val/mean_colour": 1.0, "val/patch_mean": 0.7}]
    found = by_verdict(made(records=records))
    assert "it predicts structure within patches" in found[True][1]
    normed = {"masking": {}, "model": {"norm_pix_loss": True}}
    found = by_verdict(made(records=records, config=normed))
    assert len(found[True]) == 1, "a normalised loss has no patch means"


@pytest.mark.parametrize(("accuracy", "better"), [(0.3, True), (0.1, False)])
def test_a_supervised_run_is_set_beside_the_most_frequent_class(
    accuracy: float, better: bool, tmp_path: Path
) -> None:
    found = {"accuracy": accuracy, "chance": 0.2, "sha256": with_weights(tmp_path)}
    run = made(folder=tmp_path, config={}, evaluation=found)
    assert set(by_verdict(run)) == {better}
    numbers = {number.label: number for number in key_numbers(run)}
    assert numbers["test accuracy"].value == f"{accuracy:.1%}"
    assert numbers["test accuracy"].note == "most frequent class 20.0%"


def test_key_numbers_are_last_finite_values_and_medians(tmp_path: Path) -> None:
    rows = [line("model", 0.7, 0.6, 0.8), line("random baseline", 0.4, 0.3, 0.5)]
    run = made(folder=tmp_path, evaluation={"rows": rows, "sha256": with_weights(tmp_path)})
    numbers = {number.label: (number.value, number.note) for number in key_numbers(run)}
    assert numbers["validation loss"][0] == "0.25"
    assert numbers["validation loss"][1].endswith("one colour gets 1")
    assert numbers["linear probe"] == ("70.0%", "random baseline 40.0%")
    assert numbers["images per second"] == ("30", "median of training")
    assert numbers["training images"] == ("105", "seen up to 3 times each")
    assert "parameters" not in numbers, "there are no weights"


def test_the_status_counts_whole_batches() -> None:
    assert status(made(summary={"step": 30})) == ("Finished after 30 optimiser steps.", True)
    sentence, finished = status(made())
    assert not finished
    assert sentence.startswith("Step 12 of 30. This run is not finished")
    assert "not finite" in status(made(nonfinite={"step": 11}))[0]
    assert status(made(data={}))[0].startswith("Step 12. ")


def test_accuracies_of_other_weights_are_no_key_numbers_and_no_verdicts(tmp_path: Path) -> None:
    sha256 = with_weights(tmp_path)
    rows = [line("model", 0.7, 0.6, 0.8), line("raw pixels", 0.4, 0.3, 0.5)]
    found = {"rows": rows, "sha256": sha256}
    run = made(folder=tmp_path, evaluation=found)
    assert "linear probe" in {number.label for number in key_numbers(run)}
    assert "Linear probe: 70.0%, 30.0 points above" in " ".join(text for text, _ in verdicts(run))
    run.evaluation = {**found, "sha256": "0" * 64}
    assert "linear probe" not in {number.label for number in key_numbers(run)}
    told = by_verdict(run)
    assert "70.0%" not in str(told)
    assert f"`crate-mae report {tmp_path}` measures them again" in str(told[False])
    assert len(told[True]) == 1, "what the losses say stays"
    run.evaluation = {"sha256": "0" * 64, "rows": []}
    assert False not in by_verdict(run), "nothing was measured"


@pytest.mark.parametrize("config", [{}, {"task": "segment"}])
def test_a_test_of_other_weights_is_no_key_number(tmp_path: Path, config: dict[str, Any]) -> None:
    found: dict[str, Any] = {"accuracy": 0.9, "chance": 0.2, "sha256": with_weights(tmp_path)}
    found |= {"mean_iou": 0.9, "majority_mean_iou": 0.2}
    run = made(folder=tmp_path, config=config, evaluation=found)
    assert any(number.label.startswith("test ") for number in key_numbers(run))
    run.evaluation = {**found, "sha256": "0" * 64}
    assert not any(number.label.startswith("test ") for number in key_numbers(run))
    ((text,),) = by_verdict(run).values()
    assert text.startswith("The test was measured on other weights")
    assert f"`crate-mae finetune --resume {tmp_path}`" in text


@pytest.mark.parametrize(
    ("masking", "words"),
    [
        ({"kind": "block", "ratio": 0.75}, "75%, block"),
        ({"kind": "random", "ratio": 0.5, "square": 2},
         "50%, random, squares of 2 x 2 patches"),
        ({"kind": "random", "ratio": 0.25, "ratio_max": 0.75},
         "25% to 75%, drawn for each image, random"),
        ({"kind": "grid", "ratio": 0.25, "ratio_max": 0.5, "ratio_per": "step"},
         "25% to 50%, drawn for each step, grid"),
    ],
)  # fmt: skip
def test_every_setting_of_masks_is_told(masking: dict[str, Any], words: str) -> None:
    facts = summary_data(made(config={"masking": masking}))["facts"]
    assert ["Patches removed", words] in [[cell.text for cell in row] for row in facts.rows]


def test_commands_to_try_read_the_images_of_the_run(tmp_path: Path) -> None:
    rows = [line("model", 0.3, 0.2, 0.4), line("raw pixels", 0.7, 0.6, 0.8),
            line("random baseline", 0.7, 0.6, 0.8)]  # fmt: skip
    settings = {"source": "parquet:p", "image_key": "scan", "follow_links": True}
    run = made(
        folder=tmp_path,
        config={"masking": {}, "data": settings},
        data={"source": "parquet:p"},
        evaluation={"rows": rows, "sha256": with_weights(tmp_path)},
    )
    told = " ".join(text for text, _ in verdicts(run))
    assert "parquet:p --pool mean,layers --image-key scan --follow-links`" in told
    assert "--within 8h --data.image_key scan --data.follow_links true`" in told
    run.data["source"] = "dataset:Mine"
    told = " ".join(text for text, _ in verdicts(run))
    assert "parquet:p" not in told
    assert "ADDRESS --pool mean,layers`" in told
