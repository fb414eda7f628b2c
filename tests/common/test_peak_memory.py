"""Peak memory against allocations of a known size, and processes that fail in every way."""

import os
import signal
import time
from collections.abc import Callable

import pytest
import torch
from processes import PATIENCE

from crate_mae.common.peak_memory import OutOfMemoryError, PeakMemory, peak_memory

MEGA = 1_000_000


def make_filler(kept: int = 0, passing: int = 0, first: int = 0) -> Callable[[], object]:
    """A step that holds `passing` bytes while it runs; `kept` from the first run on.

    The first run alone takes `first` bytes and gives them back.
    """
    held: list[torch.Tensor] = []

    def step() -> None:
        if not held:
            torch.ones(first, dtype=torch.uint8)
            held.append(torch.ones(kept, dtype=torch.uint8))
        torch.ones(passing, dtype=torch.uint8)

    return step


def make_failure(kind: str) -> Callable[[], object]:
    """A step that fails in one of several ways."""

    def step() -> None:
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "import":
            raise ModuleNotFoundError("no such library")
        if kind == "huge":
            torch.empty(1 << 60, dtype=torch.uint8)
        if kind == "slow":
            time.sleep(PATIENCE)
        raise KeyError("what")

    return step


def near(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= 0.1 * wanted


@pytest.fixture(scope="module")
def measured() -> PeakMemory:
    arguments = {"kept": 120 * MEGA, "passing": 200 * MEGA, "first": 500 * MEGA}
    return peak_memory(make_filler, arguments, threads=1, steps=2)


def test_a_known_allocation_is_seen(measured: PeakMemory) -> None:
    assert near(measured.above_settled, 200 * MEGA)
    assert near(measured.settled - measured.loaded, 120 * MEGA)
    assert near(measured.above_loaded, 320 * MEGA)  # and not the 500 MB of the first step
    assert measured.peak > measured.loaded > 50 * MEGA  # torch alone is larger than that


def test_every_measured_step_is_timed(measured: PeakMemory) -> None:
    assert len(measured.seconds) == 2
    assert all(seconds > 0 for seconds in measured.seconds)
    assert measured.to_dict()["seconds"] == list(measured.seconds)


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("killed", OutOfMemoryError, "use a smaller batch"),
        ("huge", OutOfMemoryError, "ran out of memory"),
        ("import", ImportError, "^no such library$"),
        ("other", RuntimeError, "KeyError: 'what'"),
    ],
)
def test_failures_are_told(kind: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        peak_memory(make_failure, {"kind": kind}, threads=1)


def test_a_step_that_hangs_is_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"after 0\.5 s"):
        peak_memory(make_failure, {"kind": "slow"}, threads=1, timeout=0.5)
    assert time.monotonic() - begun < PATIENCE / 2


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="not on 'meta'"):
        peak_memory(make_filler, device="meta")
    with pytest.raises(ValueError, match="at least one measured step"):
        peak_memory(make_filler, steps=0)
