"""What operators cost: the record, the table made of it, and what a pass computes."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import operator_cost
from crate_mae.common.peak_memory import PeakMemory, peak_memory
from operator_cost import KINDS, PLACE, main, make_pass, page_lines, record_link

SMALL = ["--dim", "24", "--heads", "3", "--tokens", "64,128", "--rounds", "2"]


def test_a_record_is_made_and_goes_into_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    measured: list[PeakMemory] = []

    def once(make: Any, sizes: dict[str, Any], **options: Any) -> PeakMemory:
        """Measured for the first row alone: each row would need a process of its own."""
        asked.append(sizes)
        if not measured:
            measured.append(peak_memory(make, sizes, **options))
        return replace(measured[0], peak=measured[0].settled + len(asked))

    monkeypatch.setattr(operator_cost, "peak_memory", once)
    page, target = tmp_path / "page.md", tmp_path / "record.json"
    page.write_text(f"Before.\n\n<!-- {PLACE} -->\n<!-- /{PLACE} -->\n\nAfter.\n")
    assert main([*SMALL, "--json", str(target), "--docs", str(page)]) == 0
    record = json.loads(target.read_text("utf-8"))
    assert [(row["tokens"], row["attention"]) for row in record["rows"]] == [
        (tokens, kind) for tokens in (64, 128) for kind in KINDS
    ]
    assert [(each["tokens"], each["kind"]) for each in asked] == [
        (tokens, kind) for tokens in (64, 128) for kind in KINDS
    ]
    assert measured[0].peak > 0
    for number, row in enumerate(record["rows"], start=1):
        assert row["peak_bytes"] == number
        assert len(row["cpu_seconds"]) == 2
        assert min(row["cpu_seconds"]) > 0
        assert row["ratio"]["lowest"] <= row["ratio"]["median"] <= row["ratio"]["highest"]
    mssa, exact, _ = record["rows"][:3]
    assert mssa["ratio"] == {"median": 1, "lowest": 1, "highest": 1}
    ratios = [a / b for a, b in zip(exact["cpu_seconds"], mssa["cpu_seconds"], strict=True)]
    assert exact["ratio"]["median"] == pytest.approx(median(ratios))
    lines = page_lines(record)
    assert page.read_text("utf-8") == "\n".join(
        [
            *("Before.", "", f"<!-- {PLACE} -->", "", *lines, "", record_link("record.json"), ""),
            *(f"<!-- /{PLACE} -->", "", "After.", ""),
        ]
    )
    assert capsys.readouterr().out.splitlines() == lines
    page.write_text(f"<!-- {PLACE} -->\n<!-- /{PLACE} -->\n")
    assert main(["--record", str(target), "--docs", str(page)]) == 0
    assert lines[2] in page.read_text("utf-8")
    with pytest.raises(SystemExit):
        main([*SMALL, "--docs", str(page)])


def test_the_table_holds_medians_spans_and_growth() -> None:
    def row(kind: str, tokens: int, seconds: list[float], mebibytes: int) -> dict[str, object]:
        ratio = {"median": 0.5, "lowest": 0.25, "highest": 0.75}
        return {"attention": kind, "tokens": tokens, "cpu_seconds": seconds, "ratio": ratio,
                "peak_bytes": mebibytes << 20}  # fmt: skip

    rows = [row(kind, 10, [1.0, 2.0, 9.0], 3) for kind in KINDS]
    rows += [row(kind, 2000, [10.0, 20.0, 30.0], 4000) for kind in KINDS]
    _, _, small, large, _, grown = page_lines({"rows": rows})
    cells = "0.50 (0.25 to 0.75) | 0.50 (0.25 to 0.75)"
    assert small == f"| 10 | 2 s | {cells} | 3 MiB | 3 MiB | 3 MiB |"
    assert large == f"| 2,000 | 20 s | {cells} | 4,000 MiB | 4,000 MiB | 4,000 MiB |"
    assert grown == (
        "From 10 to 2,000 tokens processor time grows: `mssa` 10 times, `exact` 10 times, `tssa`"
        " 10 times."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_goes_backward_through_the_operator(kind: str) -> None:
    one = make_pass(kind=kind, dim=12, heads=3, tokens=5)  # type: ignore[arg-type]
    one()
    operator, x, _ = one.args  # type: ignore[attr-defined]
    assert type(operator).__name__.lower().startswith(kind)
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in operator.parameters())


def test_a_result_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(FileExistsError):
        main([*SMALL, "--json", str(tmp_path / "record.json")])
