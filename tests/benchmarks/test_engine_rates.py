"""What a record of engine rates says on a page, and in which order engines take their turns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import engine_rates as subject

SECONDS = {
    "torch": [1.0, 2.0, 1.0], "onnx": [0.5, 1.0, 0.25], "openvino": [1.0, 2.0, 1.0],
    "int8": [0.25, 0.5, 0.5],
}  # fmt: skip


def row(name: str, **more: Any) -> dict[str, Any]:
    engines = {
        engine: {"cpu_seconds": seconds, "seconds": seconds, "relative": 0.0125}
        for engine, seconds in SECONDS.items()
    }
    given = {"model": name, "weights": "random", "image_size": [32, 16], "batch": 8, **more}
    return {**given, "engines": engines}


def test_ratios_are_taken_within_rounds() -> None:
    probe = {"address": "digits", "tested": 300, "float32": 0.9, "int8": 0.895}
    lines = subject.page_lines(
        {"rows": [row("base"), row("small", weights="abc", probe=probe, batch=1952)]}
    )
    assert lines[2].split(" | ") == [
        "| `base` (32x16, random weights)", "8", "2.00 times (2.00 to 4.00)",
        "1.00 times (1.00 to 1.00)", "4.00 times (2.00 to 4.00)", "1.2%", "- |",
    ]  # fmt: skip
    assert lines[3].startswith("| `small` (32x16) | 1,952 |")
    assert lines[3].endswith("| 90.0%, 89.5% (digits) |")


def test_another_engine_begins_each_round() -> None:
    order: list[str] = []

    def noting(engine: str) -> Callable[[], torch.Tensor]:
        return lambda: order.append(engine) or torch.zeros(1)  # type: ignore[func-returns-value]

    found = subject._seconds({engine: noting(engine) for engine in subject.ENGINES}, 5)
    assert order[::4] == [*subject.ENGINES, "torch"]
    assert sorted(order) == sorted(subject.ENGINES * 5)
    assert all(len(times) == 5 for one in found.values() for times in one.values())


def test_what_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (([], "name models"), (["base", "--docs", "page.md"], "give --json")):
        with pytest.raises(SystemExit):
            subject.main(words)
        assert message in capsys.readouterr().err
