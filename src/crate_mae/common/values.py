"""Values from files that others may have written: what can be reckoned with."""

import math
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value from a file is a number of usual size, finite or not, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 1 << 63


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number, and finite."""
    return is_number(value) and math.isfinite(value)


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number of usual size, and no truth value."""
    return is_number(value) and isinstance(value, int)


def text_of(value: Any) -> str | None:
    """A value that is text; None for an empty one and for anything else that stands there."""
    return value if isinstance(value, str) and value else None


def named_values_at(values: Any, key: str) -> dict[str, Any]:
    """The named values below a key of named values; none for anything else that stands there."""
    below = values.get(key) if isinstance(values, dict) else None
    return below if isinstance(below, dict) else {}
