"""The nearest known word for one that is not known."""

import difflib
from typing import Any


def did_you_mean(word: str, known: Any) -> str:
    """A hint with the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
