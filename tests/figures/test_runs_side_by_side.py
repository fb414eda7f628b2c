"""The picture of several runs: drawn for what is there, refused where nothing is."""

from pathlib import Path

import pytest

from crate_mae.figures.runs_side_by_side import draw_runs

RECORDS = [{"step": step, "val/loss": 1 / (1 + step)} for step in range(5)]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_curves_and_accuracies_are_drawn(tmp_path: Path, suffix: str) -> None:
    names = ["runs/$a_b$", "runs/b"]
    accuracies = [{"linear probe": (0.5, 0.4, 0.6)}, {"nearest neighbours": (0.3, 0.2, 0.4)}]
    path = draw_runs(names, [RECORDS, []], accuracies, tmp_path / f"a.{suffix}")
    assert path.stat().st_size > 1000
    if suffix == "svg":
        text = path.read_text("utf-8")
        assert "runs/$a_b$" in text
        for found in accuracies:
            assert all(f"<!-- {method} -->" in text for method in found)
    again = draw_runs(names, [RECORDS, []], accuracies, tmp_path / f"b.{suffix}")
    if suffix == "png":
        assert again.read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError):
        draw_runs(names, [RECORDS, []], accuracies, path)


def test_training_losses_stand_in_and_nothing_is_refused(tmp_path: Path) -> None:
    records = [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": float("nan")}]
    for name, runs, shown in (
        ("one", [records], ["training loss"]),
        ("two", [RECORDS, records], ["validation loss or", "training loss"]),
    ):
        path = draw_runs(
            ["a", "b"][: len(runs)], runs, [{}, {}][: len(runs)], tmp_path / f"{name}.svg"
        )
        text = path.read_text("utf-8")
        losses = ["validation loss", "validation loss or", "training loss"]
        assert [loss for loss in losses if f"<!-- {loss} -->" in text] == shown
    with pytest.raises(ValueError, match="none of these runs"):
        draw_runs(["a", "b"], [[], [{"step": 1}]], [{}, {}], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
