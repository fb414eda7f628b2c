"""How far long work has come: what hears of it, a bar on a terminal, lines anywhere else."""

import sys
from collections.abc import Callable
from time import monotonic

from crate_mae.common.escaping import unescaped
from crate_mae.common.text import duration

Progress = Callable[[int, int], None]
"""Hears how many parts of how many are done."""

StartProgress = Callable[[str], Progress | None]
"""What hears of the work of that name, or None where nobody looks; such as `progress_bar`."""

FIRST_LINE, NEXT_LINES = 10.0, 30.0
"""Seconds until a file or pipe gets its first line, and between two lines from then on."""


def progress_bar(what: str) -> Progress:
    """A bar with the time left for the work of that name on a terminal; lines elsewhere.

    Files and pipes get a line now and then, and none of work that takes seconds: a bar redrawn
    there would bury the lines that matter, and hours without a word look like a hang.
    """
    if not sys.stderr.isatty():
        return progress_lines(what)
    from tqdm import tqdm

    terminal = unescaped(sys.stderr)
    bar = tqdm(desc=what, file=terminal, dynamic_ncols=True)

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar.disable:  # the work before has ended and closed its bar: another pass
            bar = tqdm(desc=what, file=terminal, dynamic_ncols=True)
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def progress_lines(what: str, clock: Callable[[], float] = monotonic) -> Progress:
    """What prints a line on the error stream now and then: how much is done, how long it may take.

    `clock` gives seconds. The end itself gets no line: what follows tells of it.
    """
    started = clock()
    due = started + FIRST_LINE
    before = 0

    def show(done: int, total: int) -> None:
        nonlocal started, due, before
        now = clock()
        if done < before:  # another pass over the same work
            started, due = now, now + FIRST_LINE
        before = done
        if now < due or not 0 < done < total:
            return
        left = duration((now - started) / done * (total - done))
        print(
            f"{what}: {done:,} of {total:,} ({done / total:.0%}), about {left} left",
            file=sys.stderr,
            flush=True,
        )
        due = now + NEXT_LINES

    return show
