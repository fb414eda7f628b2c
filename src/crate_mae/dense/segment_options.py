"""Which options belong to which way of finding foreground; nothing heavy is imported."""

from collections.abc import Mapping
from typing import Literal, get_args

SegmentMethod = Literal["pca", "mixture", "attention"]
DEFAULT_MASS = 0.6
"""The share of attention that is kept where no other is chosen."""

_PCA: tuple[SegmentMethod, ...] = ("pca",)
_TOKENS: tuple[SegmentMethod, ...] = ("pca", "mixture")
_ATTENTION: tuple[SegmentMethod, ...] = ("attention",)
_OPTIONS: dict[str, tuple[str, tuple[SegmentMethod, ...]]] = {
    "--per-image": ("each", _PCA),
    "--flip": ("flip", _PCA),
    "--threshold": ("threshold", _PCA),
    "--after": ("", _TOKENS),
    "--tensor": ("kind", _TOKENS),
    "--heads": ("head", _ATTENTION),
    "--mass": ("mass", _ATTENTION),
}
"""Of each option of `crate-mae segment`: the field of `SegmentSettings`, the methods it is for."""


def check_segment_options(method: str, given: Mapping[str, bool]) -> None:
    """Raise ValueError for a method that is none, and for options that it would ignore.

    `given` tells of options, as the command line spells them, whether they were chosen.
    """
    if method not in get_args(SegmentMethod):
        known = ", ".join(get_args(SegmentMethod))
        raise ValueError(f"the method of finding foreground is one of {known}, not {method!r}")
    strange = [name for name, chosen in given.items() if chosen and method not in _OPTIONS[name][1]]
    if strange:
        *most, last = map(_named, strange)
        them = f"{', '.join(most)} and {last} are" if most else f"{last} is"
        raise ValueError(
            f"{them} not for the method {method}: leave {'them' if most else 'it'} out"
        )


def check_ignored_value(*, given: bool, masks: bool) -> None:
    """Raise ValueError where a value that does not count is `given`, and no masks that hold it."""
    if given and not masks:
        raise ValueError("ignore (--ignore) is about masks: name them by masks (--masks)")


def _named(option: str) -> str:
    field, _ = _OPTIONS[option]
    return f"{field} ({option})" if field else option
