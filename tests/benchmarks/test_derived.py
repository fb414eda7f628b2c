"""The table of analyses: from the rows of an analysis to what it says of layers."""

import csv
import json
from pathlib import Path

import pytest

import derived

COLUMNS = ("model", "side", "layer", "point", "measure", "head", "mean", "images")
ROWS = [
    ("encoder", 0, "input", "subspace_coding_rate", "", 100.0),
    ("encoder", 0, "compress", "subspace_coding_rate", "", 90.0),
    ("encoder", 1, "input", "subspace_coding_rate", "", 50.0),
    ("encoder", 1, "compress", "subspace_coding_rate", "", 40.0),
    ("encoder", 0, "compress", "mssa_shift_gradient_cosine", "", 0.9),
    ("encoder", 1, "compress", "mssa_shift_gradient_cosine", "", 0.7),
    ("encoder", 0, "compress", "shrink_gradient_cosine", "", 0.5),
    ("encoder", 0, "sparsify", "zero_fraction", "", 0.2),
    ("encoder", 1, "sparsify", "zero_fraction", "", 0.6),
    ("encoder", 1, "sparsify", "zero_fraction", "3", 0.9),  # of a head: not the layer's
    ("decoder", 0, "input", "mirror_cka", "", 0.1),  # what enters is no work of the layer
    ("decoder", 0, "expand", "mirror_cka", "", 0.4),
    ("decoder", 0, "decompress", "mirror_cka", "", 0.8),
]


def analysis(folder: Path, models: dict[str, float]) -> Path:
    """A folder of an analysis whose values are those of `ROWS` times a factor, by model."""
    folder.mkdir()
    with (folder / "layers.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for model, factor in models.items():
            for *place, value in ROWS:
                writer.writerow([model, *place, factor * float(value), 7])
    return folder


def test_facts_are_means_over_layers_beside_the_baseline(tmp_path: Path) -> None:
    folder = analysis(tmp_path / "a", {"model": 1.0, "random baseline": 0.5})
    target, page = tmp_path / "record.json", tmp_path / "page.md"
    page.write_text("before\n\n<!-- derived -->\n\nold\n\n<!-- /derived -->\n\nafter\n")
    words = [f"plain={folder}", "--json", str(target), "--docs", str(page)]
    assert derived.main(words) == 0
    record = json.loads(target.read_text())
    own, random = (record["analyses"]["plain"][model] for model in derived.MODELS)
    assert record["analyses"]["plain"]["images"] == 7
    assert own["rate_change"] == pytest.approx((90 / 100 - 1 + 40 / 50 - 1) / 2)
    assert own["aligned"] == pytest.approx(0.8)
    assert own["zeros"] == 0.6
    assert own["mirror_cka"] == pytest.approx(0.6)
    assert random["aligned"] == pytest.approx(0.4)
    assert own["rebuilt"] is None
    row = derived.table_lines(record)[2]
    assert row == (
        "| `plain` | -15.0 % (-15.0 %) | 0.80 (0.40) | 0.50 (0.25) | 60 % (30 %) |  |  | 0.60"
        " (0.30) |  |"
    )
    assert row in page.read_text()
    assert "old" not in page.read_text()
    again = tmp_path / "again.md"
    again.write_text("<!-- derived --><!-- /derived -->")
    assert derived.main(["--record", str(target), "--docs", str(again)]) == 0
    assert row in again.read_text()
    with pytest.raises(ValueError, match="lacks <!-- derived -->"):
        derived.main(["--record", str(target), "--docs", str(analysis_page(tmp_path))])


def analysis_page(folder: Path) -> Path:
    page = folder / "bare.md"
    page.write_text("nothing here\n")
    return page


def test_what_is_no_analysis_is_refused(tmp_path: Path) -> None:
    folder = analysis(tmp_path / "a", {"model": 1.0})
    with pytest.raises(ValueError, match="no rows of the random baseline"):
        derived.main([f"plain={folder}"])
    with pytest.raises(ValueError, match="name analyses as NAME=FOLDER, not 'plain'"):
        derived.main(["plain"])
    with pytest.raises(FileNotFoundError, match=r"layers\.csv"):
        derived.main([f"plain={tmp_path}"])
    for words in ([], [f"plain={folder}", "--record", "x.json"]):
        with pytest.raises(SystemExit):
            derived.main(words)
