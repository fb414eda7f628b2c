"""How a source is read where that is left to choose, and what it met beside its images."""

from collections.abc import Iterable
from dataclasses import dataclass, field

NO_LABELS = "none"
"""The label key of a source whose labels are not wanted."""
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Choices that the names of a source do not settle; the defaults look for the usual names."""

    image_key: str | None = None
    """Column, array or member that holds the images."""
    label_key: str | None = None
    """Column, array or member that holds the labels; "none" for no labels."""
    follow_links: bool = False
    """Whether links to folders are entered."""

    @property
    def unlabelled(self) -> bool:
        """Whether labels are not wanted."""
        return self.label_key == NO_LABELS


AS_USUAL = Reading()
"""Nothing chosen: the usual names, links to folders not entered."""


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """Something that a source does not use, how often it was met, and the first names."""

    what: str
    count: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.names)
        more = f" and {self.count - len(self.names)} more" if self.count > len(self.names) else ""
        return f"{self.count} {self.what}" + (f": {shown}{more}" if shown else "")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a source met beside the images that it gives."""

    splits: tuple[str, ...] = ()
    """All splits that are there, the chosen one included."""
    passed_over: tuple[PassedOver, ...] = ()
    notes: tuple[str, ...] = ()
    """What was understood in one of several ways."""
    no_labels: str | None = None
    """Why there are no labels, where that is known."""
    could_be_labelled: bool = False
    """Whether something that is there might be meant as labels."""

    def lines(self) -> list[str]:
        """Everything that a user should hear of, a line each."""
        lines = [f"passed over: {entry}" for entry in self.passed_over] + list(self.notes)
        if self.could_be_labelled and self.no_labels:
            lines.append(f"no labels: {self.no_labels}")
        return lines


@dataclass
class Tally:
    """Counts what is passed over, by kind, and keeps the first names of each."""

    _counts: dict[str, int] = field(default_factory=dict)
    _names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, name: str) -> None:
        """Count one more."""
        self._counts[what] = self._counts.get(what, 0) + 1
        names = self._names.setdefault(what, [])
        if len(names) < _NAMED:
            names.append(name)

    def entries(self) -> tuple[PassedOver, ...]:
        """What was counted, in the order first met."""
        return tuple(
            PassedOver(what=what, count=count, names=tuple(sorted(self._names[what])))
            for what, count in self._counts.items()
        )


def passed_over(what: str, names: Iterable[str]) -> tuple[PassedOver, ...]:
    """One entry for these names, or none where there are none."""
    tally = Tally()
    for name in names:
        tally.add(what, name)
    return tally.entries()
