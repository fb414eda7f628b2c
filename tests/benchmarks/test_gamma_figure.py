"""The picture of what the weight of the coding rate does."""

import json
from pathlib import Path
from typing import Any

import pytest
from figure_cases import texts

from gamma_figure import draw_weights, main, run_of_files, runs_by_weight, runs_without

RECORD: dict[str, Any] = {
    "matrix": {
        "models": {
            "crate": None,
            "crate-0.1": {"objective.gamma": 0.1},
            "crate-0.3": {"objective.gamma": 0.3},
            "crate-0.1-half": {"objective.gamma": 0.1, "masking.ratio": 0.5},
            "vitmae": {"vitmae": "parameters"},
        }
    },
    "compared": {
        "crate": {"0": {"loss": 0.4, "knn": 0.3, "probe": 0.45}, "1": {"loss": 0.42, "knn": 0.32}},
        "crate-0.1": {"0": {"loss": 0.41, "knn": 0.4, "probe": 0.5, "psnr": 16.0}},
        "crate-0.3": {},
        "crate-0.1-half": {"0": {"loss": 0.2, "knn": 0.9, "probe": 0.9}},
        "vitmae": {"0": {"loss": 0.3, "knn": 0.8, "probe": 0.8}},
    },
}


def written(folder: Path) -> str:
    """The files of a run, as its commands write them."""
    stem = folder / "run"
    for method, accuracy in (("probe", 0.57), ("knn", 0.53)):
        rows = [
            {"subject": "model", "accuracy": accuracy}, {"subject": "pixels", "accuracy": 0.9},
        ]  # fmt: skip
        Path(f"{stem}-{method}.json").write_text(json.dumps({"rows": rows}))
    Path(f"{stem}-metrics.csv").write_text("step,val/loss,train/loss\n0,0.9,\n1,,0.8\n2,0.31,\n")
    return str(stem)


def test_runs_that_differ_in_the_weight_alone_are_taken() -> None:
    assert runs_by_weight(RECORD) == {
        0.0: [{"loss": 0.4, "knn": 0.3, "probe": 0.45}, {"loss": 0.42, "knn": 0.32}],
        0.1: [{"loss": 0.41, "knn": 0.4, "probe": 0.5}],
    }
    assert runs_without(RECORD, "vitmae") == {0.0: [{"loss": 0.3, "knn": 0.8, "probe": 0.8}]}
    with pytest.raises(ValueError, match=r"holds crate, .*not nobody"):
        runs_without(RECORD, "nobody")


def test_a_run_is_read_from_its_files(tmp_path: Path) -> None:
    assert run_of_files(written(tmp_path)) == {"probe": 0.57, "knn": 0.53, "loss": 0.31}


@pytest.mark.usefixtures("svg_words")
def test_weights_and_measures_are_named(tmp_path: Path) -> None:
    words = texts(draw_weights({"short": runs_by_weight(RECORD)}, tmp_path / "a.svg"))
    for expected in ("0", "0.1", "short", "masked loss", "linear probe, %"):
        assert expected in words
    assert "0.3" not in words, "no run has it"


def test_it_is_drawn_by_a_command_and_not_over_a_file(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text(json.dumps(RECORD))
    words = ["--short", str(record), "--without", str(record), "crate", "--long", "0.03"]
    words += [written(tmp_path), "--out", str(tmp_path / "a.png")]
    assert main(words) == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(FileExistsError):
        main(words)
