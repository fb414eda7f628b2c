"""Progress on a terminal, lines elsewhere, and times and sizes as people read them."""

import io
import sys

import pytest

from crate_mae.common.progress import progress_bar, progress_lines
from crate_mae.common.text import bytes_text, duration, time_text


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_for_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    show = progress_bar("reading")
    for _ in range(2):  # a second pass over the same work
        for done in (1, 3, 4):
            show(done, 4)
    lines = screen.getvalue().splitlines()
    last = [line for line in lines if "4/4" in line]
    assert len(last) == 2
    assert all(line.lstrip("\r").startswith("reading: 100%") for line in last)
    assert screen.getvalue().endswith("\n"), "what is printed next begins a line"


def test_files_and_pipes_get_nothing_of_short_work(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    show = progress_bar("reading")
    for done in range(1, 101):
        show(done, 100)
    assert written.getvalue() == ""


def test_files_and_pipes_get_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand parts of half a second: lines at 10 s, then every 30 s, with the time left."""
    now = 0.0
    show = progress_lines("features", clock=lambda: now)
    for done in range(1, 1001):
        now = done / 2
        show(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "features: 20 of 1,000 (2%), about 8m10s left"
    assert lines[1] == "features: 80 of 1,000 (8%), about 7m40s left"
    assert len(lines) == 1 + (500 - 10 - 1) // 30
    show(10, 1000)  # a second pass begins to count anew
    now += 9
    show(20, 1000)
    assert capsys.readouterr().err == ""
    now += 1
    show(500, 1000)
    assert capsys.readouterr().err == "features: 500 of 1,000 (50%), about 10s left\n"


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
