"""Targets are judged by known numbers; their result is kept, never overwritten, and told."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, laid_out

import targets
from crate_mae.common.peak_memory import PeakMemory
from promises import TARGETS, Target, judged
from speed import growth
from speed.harness import alternate
from speed.settings import Settings
from tables import PAGE, fill_page, targets_table


def part(work: str, **rounds: list[float]) -> dict[str, Any]:
    """A part with subjects that took these times."""
    names = {name.replace("_", "-"): {"rounds": seconds} for name, seconds in rounds.items()}
    return {"cases": [{"work": work, "subjects": names}]}


@pytest.mark.parametrize(("reference", "met"), [([1.9, 38.0], True), ([1.7, 34.0], False)])
def test_speed_is_the_median_ratio_within_rounds(reference: list[float], met: bool) -> None:
    target = Target(title="t", part="p", kind="speed", wanted=1.8)
    measured = part("train", crate=[1.0, 20.0], crate_reference=reference)
    (row,) = judged([target], {"p": measured})
    assert row["measured"] == pytest.approx(reference[0])
    assert row["met"] is met


def test_memory_growth_and_limit_are_read() -> None:
    memory = {"crate": {"peak": 50}, "crate-reference": {"peak": 100}}
    slopes = {"memory_exponent": 0.9, "memory_exponent_at_the_end": 1.2, "note": None}
    case = {"work": "train", "memory": memory, "subjects": {}}
    case["limit"] = {"share": {"crate": {"median": 0.8, "lower": 0.7, "upper": 0.9}}}
    parts = {"p": {"cases": [case], "growth": [{"work": "train", "subjects": {"crate": slopes}}]}}
    kinds: list[tuple[Any, float]] = [("memory", 0.6), ("growth", 1.1), ("limit", 0.85)]
    rows = judged([Target(title=k, part="p", kind=k, wanted=w) for k, w in kinds], parts)
    assert [row["measured"] for row in rows] == [0.5, 1.2, 0.8]
    assert [row["met"] for row in rows] == [True, False, False]
    assert (rows[2]["lower"], rows[2]["upper"]) == (0.7, 0.9)
    table = "\n".join(targets_table(rows))
    assert "| memory | at most 0.6 | 0.50 |  | yes |" in table
    assert "| limit | at least 0.85 | 0.80 | 0.70 to 0.90 | **no** |" in table


def test_what_could_not_be_measured_is_not_met() -> None:
    memory = {"crate": {"peak": 50}, "crate-reference": {"note": "no memory"}}
    parts = {"p": {"cases": [{"work": "train", "memory": memory}]}}
    (row,) = judged([Target(title="t", part="p", kind="memory", wanted=0.6)], parts)
    assert (row["measured"], row["met"]) == (None, None)
    assert all(row["measured"] is None for row in judged(TARGETS, {}))


def in_this_process(
    make_step: Callable[..., Callable[[], object]], arguments: dict[str, Any], **_: Any
) -> PeakMemory:
    """As `peak_memory`, but the step runs here and takes as many bytes as it has tokens."""
    make_step(**arguments)()
    tokens = arguments["job"].tokens
    return PeakMemory(peak=100 + tokens, loaded=1, settled=100, seconds=(0.1,), method="made up")


def test_a_quick_run_measures_every_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "peak_memory", in_this_process)
    briefly = functools.partial(alternate, shortest=0.001)
    monkeypatch.setattr("speed.run_bench.alternate", briefly)
    assert targets.main(["--quick", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text("utf-8"))
    assert path.name.startswith("quick-")
    assert len(result["targets"]) == len(TARGETS)
    assert all(row["measured"] is not None for row in result["targets"])
    page = path.with_suffix(".md").read_text("utf-8")
    assert page in capsys.readouterr().out
    assert "no evidence" in page
    with pytest.raises(FileNotFoundError, match="make bench"):
        targets.newest(tmp_path)  # a quick result is never taken


def fake_run(settings: Settings, *, keep: Callable[[Any], None], **_: Any) -> dict[str, Any]:
    """A part as `run_bench` gives it, in which every subject takes as long as its number."""
    names = {n: {"rounds": [1.0 + i]} for i, n in enumerate(settings.subjects or ())}
    empty: dict[str, Any] = {"cases": [], "subjects": {"crate": ""}, "notes": []}
    facts = {"processor": "x", "threads": 1, "torch": "2"}
    done = {**empty, "machine": facts, "settings": settings.to_dict()}
    keep(done)
    if settings.limit or settings.memory or settings.growth:
        return done
    for work in settings.works:
        done["cases"].append({"work": work, "subjects": names})
    return done


def test_results_are_numbered_and_survive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "result_page", lambda _: "a page")
    first, second = (targets.measure(tmp_path, run=fake_run) for _ in range(2))
    assert second.stem == f"{first.stem}-2"
    rows = {row["target"]: row for row in json.loads(first.read_text("utf-8"))["targets"]}
    assert rows["cifar10: step, times as fast as the reference arithmetic"]["measured"] == 2.0
    calls = []

    def interrupted(settings: Settings, **options: Any) -> dict[str, Any]:
        calls.append(settings)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fake_run(settings, **options)

    with pytest.raises(KeyboardInterrupt):
        targets.measure(tmp_path, run=interrupted)
    kept = json.loads((tmp_path / f"{first.stem}-3.json").read_text("utf-8"))
    assert list(kept["parts"]) == ["base, training", "base, features"]


def test_a_result_is_named_after_the_machine() -> None:
    from datetime import UTC, datetime

    day = datetime(2026, 11, 24, tzinfo=UTC)
    facts = {"processor": "Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz", "cores": 2}
    assert targets._slug(facts, day, quick=False) == "intel-xeon-e5-2686-v4-2-cores-2026-11-24"


def test_foreign_files_are_no_results(tmp_path: Path) -> None:
    for name, content in {
        "rows": {"targets": [{"name": "another tool's"}], "date": "2099-01-01"},
        "other": {"format": "crate-mae-quality/1", "targets": [{}]},
        "list": [1, 2],
        "begun": {"format": targets.FORMAT, "quick": False, "date": "2099-01-01", "targets": []},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(FileNotFoundError, match="make bench"):
        targets.newest(tmp_path)
    row = {"target": "t", "measured": 1.0}
    whole = {"format": targets.FORMAT, "quick": False, "date": "2026-11-24", "targets": [row]}
    (tmp_path / "ours.json").write_text(json.dumps(whole))
    assert targets.newest(tmp_path).name == "ours.json"


def test_a_subject_that_ran_out_of_memory_is_not_measured() -> None:
    case = {"work": "train", "subjects": {"crate": {"rounds": [1.0]}}}
    kinds: list[Any] = ["speed", "limit"]
    for kind in kinds:
        target = Target(title="t", part="p", kind=kind, wanted=1)
        (row,) = judged([target], {"p": {"cases": [case]}})
        assert (row["measured"], row["met"]) == (None, None)


def test_the_page_is_filled_between_its_comments(tmp_path: Path) -> None:
    row = {
        "target": "base: step", "wanted": 1.8, "at_most": False, "measured": 2.5, "lower": 2.4,
        "upper": 2.6, "met": True,
    }  # fmt: skip
    facts = {"processor": "P", "cores": 2, "threads": 2, "memory_gib": 8, "torch": "2"}
    result = {
        "format": targets.FORMAT, "quick": False, "date": "2026-11-24T10:00:00+00:00",
        "machine": facts, "targets": [row],
    }  # fmt: skip
    for name, date in (("old", "2026-11-20"), ("new", "2026-11-24")):
        (tmp_path / f"{name}.json").write_text(json.dumps({**result, "date": date}))
    path = targets.newest(tmp_path)
    assert path.name == "new.json"
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "speed.md"
    page.write_text("above\n\n<!-- targets -->\n\nold\n\n<!-- /targets -->\n\nbelow\n")
    assert fill_page(path, tmp_path) == "docs/speed.md holds new.json"
    filled = page.read_text("utf-8")
    assert filled.startswith("above\n\n<!-- targets -->\n\n| target |")
    assert filled.endswith("\n\n<!-- /targets -->\n\nbelow\n")
    assert "| base: step | at least 1.8 | 2.50 | 2.40 to 2.60 | yes |" in filled
    assert "(../benchmarks/results/new.md)" in filled
    assert laid_out(filled) == filled
    fill_page(path, tmp_path)
    assert page.read_text("utf-8") == filled
    page.write_text("no place\n")
    assert "has no place for the table: <!-- targets -->" in fill_page(path, tmp_path)
    assert page.read_text("utf-8") == "no place\n"
    page.write_text("<!-- /targets --> <!-- targets -->")
    with pytest.raises(ValueError, match="in this order"):
        fill_page(path, tmp_path)


def test_the_speed_page_holds_the_newest_result(tmp_path: Path) -> None:
    folder, page = ROOT / "benchmarks" / "results", ROOT / PAGE
    (tmp_path / "docs").mkdir()
    (tmp_path / PAGE).write_text(page.read_text("utf-8"))
    fill_page(targets.newest(folder), tmp_path)
    assert (tmp_path / PAGE).read_text("utf-8") == page.read_text("utf-8")
