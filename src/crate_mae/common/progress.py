"""How far long work has come: what hears of it, and a bar on a terminal."""

import sys
from collections.abc import Callable

from crate_mae.common.escaping import unescaped

Progress = Callable[[int, int], None]
"""Hears how many parts of how many are done."""

StartProgress = Callable[[str], Progress | None]
"""What hears of the work of that name, or None where nobody looks; such as `progress_bar`."""


def progress_bar(what: str) -> Progress | None:
    """A bar with the time left for the work of that name on a terminal; None elsewhere.

    Files and pipes get nothing: a bar redrawn there would bury the lines that matter.
    """
    if not sys.stderr.isatty():
        return None
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
