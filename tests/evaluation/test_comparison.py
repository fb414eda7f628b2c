"""One layout of a comparison for every printing of it, and rows that others may have written."""

from typing import Any

import pytest

from crate_mae.common.plain_tables import Cell, Table, as_text
from crate_mae.evaluation.comparison import comparison_layout, counts_text, setting_text
from crate_mae.publish.card import markdown_table
from crate_mae.report.blocks import captioned


def row(subject: str, accuracy: float, **more: Any) -> dict[str, Any]:
    """A line of a comparison as a JSON file holds it."""
    return {
        "subject": subject, "method": "probe", "pool": "mean", "layer": None, "dim": 1234,
        "parameters": 411_568, "accuracy": accuracy, "interval": [accuracy - 0.01, accuracy + 0.01],
        "std": None, "seeds": [0], "num_train": 900, "num_test": 1, "num_classes": 10,
        "chance": 0.1, "tested_on": "digits test", "penalty": 0.5, **more,
    }  # fmt: skip


ROWS = [
    row("model", 0.75),
    row("random baseline", 0.5, on_edge=["penalty 0.5 is the largest tried"]),
    row("raw pixels", 0.25, pool="pixels", parameters=None, converged=False),
]


def test_text_markdown_and_report_show_the_same_cells() -> None:
    layout = comparison_layout(ROWS)
    assert list(layout.heads) == [
        "features of", "method", "accuracy", "95 % interval", "width", "parameters", "setting",
    ]  # fmt: skip
    lines = as_text(layout).splitlines()
    markdown = markdown_table(layout).splitlines()
    assert lines[0].split() == " ".join(layout.heads).split()
    assert markdown[0] == f"| {' | '.join(layout.heads)} |"
    for line, marked, cells in zip(lines[1:4], markdown[2:], layout.rows, strict=True):
        texts = [cell.text for cell in cells]
        assert line.replace("*", " ").split() == " ".join(texts).split()
        assert [text.strip() for text in marked.replace("**", "").strip("|").split("|")] == texts
        assert ("*" in line) == ("**" in marked) == any(cell.best for cell in cells)
    table = captioned("A comparison", layout)
    assert table.rows == layout.rows
    assert table.notes[0] == "Bold: highest accuracy of its method."
    assert [note.lower() for note in table.notes[1:]] == [f"{n}.".lower() for n in layout.notes]


def test_the_numbers_behind_the_texts_are_those_of_the_rows() -> None:
    layout = comparison_layout(ROWS, whole=True)
    assert {"layer", "pool"} <= set(layout.heads), "a card stands alone"
    for given, cells in zip(ROWS, layout.rows, strict=True):
        accuracy = cells[list(layout.heads).index("accuracy")]
        assert accuracy.value == given["accuracy"]
        assert accuracy.interval == tuple(given["interval"])
        assert cells[list(layout.heads).index("width")] == Cell(text="1,234", value=1234)
    assert layout.rows[2][-1].text == "penalty 0.5 (not converged)"
    assert layout.notes == [
        "900 training images, 1 test image (digits test), 10 classes; the most frequent class alone"
        " gives 10.00%",
        "on the edge of the grid, penalty 0.5 is the largest tried: probe, random baseline, mean",
    ]


def test_several_seeds_are_one_line_with_their_spread() -> None:
    runs = [{"penalty": 0.5}, {"penalty": 1.0}]
    layout = comparison_layout([row("model", 0.75, std=0.0125, seeds=[0, 1], runs=runs)])
    texts = dict(zip(layout.heads, (cell.text for cell in layout.rows[0]), strict=True))
    assert texts["accuracy"] == "75.00% ± 1.25%"
    assert texts["setting"] == "2 different"
    assert "over 2 seeds" in layout.notes[1]
    assert not layout.rows[0][2].best, "one line alone is no best"


@pytest.mark.parametrize("odd", [None, True, -3, 1e308, float("nan"), 10**30, "x", [], [1], {}])
def test_odd_values_are_shown_or_left_out(odd: object) -> None:
    keys = set(ROWS[0]) - {"subject", "method", "accuracy"}
    layout = comparison_layout([row("model", 0.75, **dict.fromkeys(keys, odd))] * 2, whole=True)
    text = as_text(layout)
    assert "75.00%" in text
    assert "75.00%" in markdown_table(layout)


def test_nothing_of_a_file_acts_in_markdown() -> None:
    table = comparison_layout([row("<b>|`x`[y](z)*", 0.5)])
    (line,) = markdown_table(table).splitlines()[2:]
    assert "<" not in line
    assert r"&lt;b&gt;\|\`x\`\[y\](z)\*" in line


def test_what_is_missing_is_not_said() -> None:
    assert counts_text({}) == ""
    assert counts_text({"num_test": 3, "shots": 5}) == "3 test images"
    assert setting_text({"k": 5, "temperature": 0.07, "other": 1}) == "k = 5, temperature 0.07"
    assert as_text(Table(heads=["a"], rows=[[Cell(text="")]])) == "a\n"
