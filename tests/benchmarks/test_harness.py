"""Rounds and ratios against subjects that take a known time on a clock of our own."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speed.harness import alternate, exponent, speedup, spread, summary


class Clock:
    """A clock that runs only when a subject works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def worker(self, name: str, *seconds: float) -> Callable[[], None]:
        """A call that takes these seconds in turn, the last of them for ever after."""
        left = list(seconds)

        def work() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work


def test_subjects_take_turns_and_warm_up_is_not_counted() -> None:
    clock = Clock()
    calls = {"a": clock.worker("a", 9, 1, 2, 3), "b": clock.worker("b", 99, 2, 4, 9)}
    told: list[tuple[int, int]] = []
    times = alternate(
        calls, rounds=3, clock=clock, progress=lambda done, total: told.append((done, total))
    )
    assert times == {"a": [1, 2, 3], "b": [2, 4, 9]}
    assert clock.calls == ["a", "b", "b", "a", "a", "b", "b", "a"]  # every other round reversed
    assert told == [(done, 8) for done in range(1, 9)]


def test_short_calls_are_repeated_and_told_for_one_call() -> None:
    clock = Clock()
    times = alternate(
        {"short": clock.worker("short", 0.25), "long": clock.worker("long", 2.0)},
        rounds=2,
        shortest=1.0,
        clock=clock,
    )
    assert times == {"short": [0.25, 0.25], "long": [2.0, 2.0]}
    assert clock.calls.count("short") == 1 + (1 + 2 + 4) + 4  # told by warm calls, once
    assert clock.calls.count("long") == 1 + 2  # none more than it is asked for


def test_a_slow_first_call_does_not_make_samples_short() -> None:
    clock = Clock()
    lasted: list[float] = []
    begun: list[float] = []

    def wait() -> None:  # before and after every sample
        if len(begun) % 2:
            lasted.append(clock.now - begun[-1])
        begun.append(clock.now)

    calls = {"compiled": clock.worker("compiled", 60.0, 0.03, 0.02)}
    times = alternate(calls, rounds=3, shortest=0.05, wait=wait, clock=clock)
    assert times["compiled"] == pytest.approx([0.02] * 3)
    assert lasted[0] == 60.0
    assert lasted[-3:] == pytest.approx([0.08] * 3)


def test_a_sample_that_turns_out_short_is_taken_again() -> None:
    clock = Clock()  # a hiccup: the first warm call alone seems long enough
    calls = {"a": clock.worker("a", 1.0, 1.0, 0.3)}
    times = alternate(calls, rounds=3, shortest=1.0, clock=clock)
    assert times["a"] == pytest.approx([1.0, 0.3, 0.3])
    assert clock.calls.count("a") == 1 + 1 + (1 + 2 + 4) + 4
    assert len(alternate({"a": list}, rounds=1, clock=lambda: 0.0)["a"]) == 1  # and it ends


def test_a_subject_that_fails_is_left_out_and_the_others_go_on() -> None:
    clock = Clock()
    told: list[tuple[str, str]] = []
    left = iter([None, None])

    def fails() -> None:
        if next(left, "none") == "none":
            raise MemoryError("no more")

    def drop(name: str, error: Exception) -> bool:
        told.append((name, str(error)))
        return True

    calls = {"a": clock.worker("a", 1.0), "bad": fails, "b": clock.worker("b", 2.0)}
    counted: list[tuple[int, int]] = []
    times = alternate(
        calls,
        rounds=3,
        shortest=0.0,
        clock=clock,
        drop=drop,
        progress=lambda done, total: counted.append((done, total)),
    )
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert told == [("bad", "no more")]
    assert counted[-1] == (12, 12)
    with pytest.raises(MemoryError):
        alternate({"bad": fails}, rounds=1)


def test_the_work_of_a_device_is_waited_for() -> None:
    clock, queue = Clock(), [0.0]

    def submit() -> None:
        queue[0] += 3.0  # done later, while somebody waits

    def wait() -> None:
        clock.now += queue[0]
        queue[0] = 0.0

    assert alternate({"a": submit}, rounds=2, wait=wait, clock=clock) == {"a": [3.0, 3.0]}


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that becomes ten times slower does not change a ratio."""
    times = {"crate": [1.0, 10.0, 100.0], "other": [2.0, 20.0, 300.0]}
    ratio = speedup(times, "other", "crate")
    assert (ratio.median, ratio.least, ratio.most) == (2.0, 2.0, 3.0)
    found = summary(times, images=50)
    assert found["other"]["speedup"]["median"] == 2.0
    assert found["crate"]["images_per_second"] == 5.0
    assert found["other"]["rounds"] == [2.0, 20.0, 300.0]
    assert "speedup" not in summary({"other": [1.0]}, images=1)["other"]


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=9))
def test_spreads_are_those_of_numpy(values: list[float]) -> None:
    found = spread(values)
    assert found.median == pytest.approx(np.median(values))
    assert found.lower == pytest.approx(np.percentile(values, 25))
    assert found.upper == pytest.approx(np.percentile(values, 75))
    assert (found.least, found.most) == (min(values), max(values))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponents_are_found(power: float) -> None:
    sizes = [197, 500, 1601, 4097]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)
    assert exponent(sizes[:1], [1.0]) is None
    assert exponent(sizes, [0, 1, 2, 3]) is None


def test_what_was_not_timed_is_named() -> None:
    with pytest.raises(ValueError, match=r"timm-vit was not timed here; timed: crate"):
        speedup({"crate": [1.0]}, "timm-vit", "crate")
    with pytest.raises(ValueError, match="at least 1"):
        alternate({}, rounds=1)
    with pytest.raises(ValueError, match="at least 1"):
        alternate({"a": list}, rounds=0)
