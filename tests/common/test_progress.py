"""Progress on a terminal, silence elsewhere, and times and sizes as people read them."""

import io
import sys

import pytest

from crate_mae.common.progress import progress_bar
from crate_mae.common.text import bytes_text, duration, time_text


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_for_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    show = progress_bar("reading")
    assert show is not None
    for _ in range(2):  # a second pass over the same work
        for done in (1, 3, 4):
            show(done, 4)
    lines = screen.getvalue().splitlines()
    last = [line for line in lines if "4/4" in line]
    assert len(last) == 2
    assert all(line.lstrip("\r").startswith("reading: 100%") for line in last)
    assert screen.getvalue().endswith("\n"), "what is printed next begins a line"


def test_files_and_pipes_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress_bar("reading") is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (6.6, "7s"), (200, "3m20s"), (3600, "1h00m"), (3720.4, "1h02m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_and_sizes_have_three_digits() -> None:
    assert [time_text(value) for value in (0.00123, 0.9996, 12.345)] == ["1.23 ms", "1 s", "12.3 s"]
    assert [bytes_text(value) for value in (None, 1536, 1023.9 * 1024, 5 << 20, 1 << 40)] == [
        "-", "1.5 KiB", "1 MiB", "5 MiB", "1,024 GiB",
    ]  # fmt: skip
