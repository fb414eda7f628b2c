"""Classes of pixels: which value of a mask is which class, and which values do not count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crate_mae.models.limits import MAX_DIM

COLUMN = "column:"
"""What stands before the name of a column where masks are named."""
VOID = 255
"""The class number of pixels that do not count; in masks, the value that usually says so."""
MOST_PIXEL_CLASSES = VOID
"""The most classes that pixels may have: their numbers are bytes, and `VOID` is none of them."""
MOST_VALUE = 65_534
"""The highest mask value that may be a class; the highest of 16 bits is read as `VOID`."""
MOST_CLASSES = 32
"""Values between 0 and `VOID` up to which masks number classes; more of them are soft edges."""


@dataclass(frozen=True, kw_only=True)
class MaskClasses:
    """The classes of pixels in the order of their numbers, and how masks write them."""

    values: tuple[int, ...]
    """The value in masks of each class, from 0 to `MOST_VALUE`."""
    names: tuple[str, ...]
    """A name for each class."""
    ignored: tuple[int, ...] = ()
    """Values in masks of pixels that do not count."""

    def __post_init__(self) -> None:
        count = len(self.values)
        if not 1 <= count <= MOST_PIXEL_CLASSES:
            raise ValueError(f"pixels have 1 to {MOST_PIXEL_CLASSES} classes, not {count}")
        for value in (*self.values, *self.ignored):
            if type(value) is not int or not 0 <= value <= MOST_VALUE:
                raise ValueError(
                    f"a mask value is a whole number from 0 to {MOST_VALUE}, not {value!r}"
                )
        if len(set(self.values)) < count:
            raise ValueError(f"two classes have one mask value: {list(self.values)}")
        if both := sorted(set(self.values) & set(self.ignored)):
            raise ValueError(f"the mask values {both} are classes and ignored at once: choose")
        if len(self.names) != count:
            raise ValueError(f"{len(self.names)} class names for {count} classes")
        if any(type(name) is not str or not name for name in self.names):
            raise ValueError(f"class names are words, not {list(self.names)}")
        if len(set(self.names)) < count:
            raise ValueError(f"two classes have one name: {', '.join(self.names)}")

    @classmethod
    def numbered(cls, count: int) -> "MaskClasses":
        """So many classes with the mask values 0, 1, ..., called so; `VOID` does not count."""
        values = range(count)
        return cls(values=tuple(values), names=tuple(map(str, values)), ignored=(VOID,))

    def facts(self) -> dict[str, Any]:
        """Plain values, as `from_facts` reads them."""
        return {
            "values": list(self.values),
            "class_names": list(self.names),
            "ignored": list(self.ignored),
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "MaskClasses":
        """The classes of plain values; ValueError for others than `facts` gives."""
        parts: dict[str, tuple[Any, ...]] = {}
        for key in ("values", "class_names", "ignored"):
            part = facts.get(key)
            if not isinstance(part, list) or len(part) > MAX_DIM:
                raise ValueError(f"{key} of the classes must be a list")
            parts[key] = tuple(part)
        return cls(values=parts["values"], names=parts["class_names"], ignored=parts["ignored"])

    def same_pixels(self, other: "MaskClasses") -> bool:
        """Whether both give every class the same number, whatever they ignore."""
        return self.values == other.values and self.names == other.names


@dataclass(frozen=True, kw_only=True)
class ClassChoice:
    """Which values of masks are classes and which do not count, as far as it was said."""

    classes: int | Sequence[int] | None = None
    """How many, then they are 0, 1, ...; or their values; None: those that occur."""
    names: Sequence[str] | None = None
    """Their names; None: their values."""
    ignored: Sequence[int] | None = None
    """Values that do not count; None: 255, unless it is a class or foreground."""

    def __post_init__(self) -> None:
        given = self._given()
        if given is not None:
            names = tuple(map(str, given)) if self.names is None else tuple(self.names)
            MaskClasses(values=given, names=names, ignored=tuple(self.ignored or ()))
        elif self.ignored is not None:
            for value in self.ignored:
                if type(value) is not int or not 0 <= value <= MOST_VALUE:
                    raise ValueError(
                        f"a mask value is a whole number from 0 to {MOST_VALUE}, not {value!r}"
                    )

    def _given(self) -> tuple[int, ...] | None:
        """The values of the classes that were said; ValueError for too few or too many."""
        if self.classes is None:
            return None
        count = self.classes if isinstance(self.classes, int) else len(self.classes)
        if isinstance(self.classes, bool) or not 2 <= count <= MOST_PIXEL_CLASSES:
            raise ValueError(
                f"pixels are told apart by 2 to {MOST_PIXEL_CLASSES} classes, not"
                f" {self.classes if isinstance(self.classes, int) else count}"
            )
        return tuple(range(count) if isinstance(self.classes, int) else self.classes)

    def of(self, found: Sequence[int], *, beside_void: bool) -> MaskClasses:
        """The classes of masks in which the values `found` occur, ascending.

        `beside_void` says that they hold 255 as one that numbers classes would. Raises ValueError
        for fewer than two classes, for values that are neither classes nor ignored, for more values
        than anybody numbers classes with unasked, and for names that do not fit.
        """
        ignored, values = self.ignored, self._given()
        if values is not None:
            if ignored is None:
                ignored = [] if VOID in values else [VOID]
            if strange := [v for v in found if v not in values and v not in ignored]:
                raise ValueError(
                    f"the training masks hold the values {listed(strange)}, which are neither among"
                    f" the {len(values)} classes ({listed(values)}) nor ignored"
                    f" ({listed(ignored) or 'none'}): change segment.classes or segment.ignore"
                )
        else:
            if ignored is None:
                ignored = [VOID] if beside_void else []
            values = tuple(value for value in found if value not in ignored)
            if len(values) > MOST_CLASSES:
                raise ValueError(
                    f"the masks hold {len(values)} values, which look like soft edges or"
                    " photographs; where they are classes, say how many (segment.classes)"
                )
        counted = [value for value in values if value in found]
        if len(counted) < 2:
            raise ValueError(
                f"the training masks hold {len(counted)} class that counts"
                f" ({listed(counted) or 'none'}; values found: {listed(found)}, ignored:"
                f" {listed(ignored) or 'none'}): two are needed"
            )
        names = tuple(map(str, values)) if self.names is None else tuple(self.names)
        if len(names) != len(values):
            raise ValueError(
                f"{len(names)} class names for the {len(values)} classes with the mask values"
                f" {listed(values)}"
            )
        return MaskClasses(values=values, names=names, ignored=tuple(ignored))


def listed(values: Sequence[int], limit: int = 12) -> str:
    """The first numbers in a row, with how many more there are."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(map(str, values[:limit])) + more


def shortened_names(names: Sequence[str], limit: int = 3) -> str:
    """The first names in a row, and dots where there are more."""
    return ", ".join(names[:limit]) + (", ..." if names[limit:] else "")
