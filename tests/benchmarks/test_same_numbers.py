"""Records of equal numbers: what counts as a number, and that a difference is found and named."""

import json
from pathlib import Path

import pytest

from same_numbers import differences, leaves, main

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_numbers_and_digests_count_and_words_do_not() -> None:
    values = {"a": [1, {"b": 0.5, "name": "model"}], "digest": "0" * 64, "none": None}
    assert dict(leaves(values)) == {"/a/0": 1, "/a/1/b": 0.5, "/digest": "0" * 64, "/none": None}


def test_every_kind_of_difference_is_named() -> None:
    before = {"/same": 1.0, "/other": 0.1, "/gone": 2}
    after = {"/same": 1.0, "/other": 0.1 + 2**-56, "/new": 3}
    assert differences(before, after) == [
        "/other: 0.1 -> 0.10000000000000002",
        "/gone: 2 -> missing",
        "/new: missing -> 3",
    ]


def test_the_kept_records_are_equal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = RESULTS / "same-numbers-before-2026-11-29.json"
    after = RESULTS / "same-numbers-after-2026-11-29.json"
    assert main(["--compare", str(before), str(after)]) == 0
    assert "all 20502 numbers are equal" in capsys.readouterr().out
    record = json.loads(after.read_text("utf-8"))
    place = next(iter(record["numbers"]))
    record["numbers"][place] += 1
    (tmp_path / "changed.json").write_text(json.dumps(record))
    assert main(["--compare", str(before), str(tmp_path / "changed.json")]) == 1
    assert place in capsys.readouterr().out
