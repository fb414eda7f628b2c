"""The picture of a record of few labels."""

import json
from pathlib import Path
from typing import Any

import pytest
from figure_cases import texts

from few_labels_figure import draw_few_labels, main

ROWS: list[dict[str, Any]] = [
    {
        "set": name, "subject": subject, "measure": measure, "shots": shots, "mean": 0.5,
        "std": None if shots is None else 0.02,
    }
    for name in ("cups", "dogs")
    for subject in ("model", "model, untrained", "pixels")
    for measure in ("probe", "finetune", "knn")
    for shots in (None, 20, 5)
    if measure == "probe" or (shots == 20 and subject != "pixels")
]  # fmt: skip


@pytest.mark.usefixtures("svg_words")
def test_a_panel_for_each_set_and_the_subjects_that_are_asked_for(tmp_path: Path) -> None:
    path = draw_few_labels({"rows": ROWS}, ["model", "pixels"], tmp_path / "a.svg")
    words = texts(path)
    for expected in ("cups", "dogs", "model", "pixels", "labels a class", "5", "20", "all"):
        assert expected in words
    assert "model, untrained" not in words


def test_it_is_drawn_by_a_command_and_not_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"rows": ROWS}))
    words = [str(tmp_path / "record.json"), "--out", str(tmp_path / "a.png")]
    assert main([*words, "--subject", "model", "--subject", "model, untrained"]) == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(FileExistsError):
        main([*words, "--subject", "model"])


@pytest.mark.parametrize("subjects", [[], ["model", "other"], ["model"] * 9])
def test_subjects_that_are_not_there_are_refused(subjects: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of the record \(model, model, untrained, pixels\)"):
        draw_few_labels({"rows": ROWS}, subjects, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
