"""Images that cannot be read: passed over, named once, and counted against an allowed share."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from math import ceil

from crate_mae.sources.images import Sample, UnreadableImage

logger = logging.getLogger(__name__)


class TooManyBrokenImagesError(RuntimeError):
    """Raised when a larger share of images is unreadable than the configuration allows."""


class BrokenImages(Mapping[str, str]):
    """The unreadable images of a run: the reason of each by its name.

    `allowed` is the share of all images, `total` of them, that may be among them.
    """

    def __init__(self, *, allowed: float, total: int = 0) -> None:
        self.allowed, self.total = allowed, total
        self._reasons: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        return self._reasons[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reasons)

    def __len__(self) -> int:
        return len(self._reasons)

    def note(self, broken: Iterable[tuple[str, str]]) -> None:
        """Name images, as (name, reason), in the log, each once."""
        for name, reason in broken:
            if name not in self._reasons:
                self._reasons[name] = reason
                logger.warning("unreadable image passed over: %s (%s)", name, reason)

    def restore(self, reasons: Mapping[str, str]) -> None:
        """Take what was noted before a run stopped in place of what has been since."""
        self._reasons = dict(reasons)

    def stop_if_too_many(self) -> None:
        """Raise TooManyBrokenImagesError above the allowed share, with the list."""
        if len(self) <= self.allowed * self.total:
            return
        lines = "\n".join(f"  {name}: {reason}" for name, reason in self.items())
        share = ceil(100 * len(self) / max(1, self.total)) / 100
        raise TooManyBrokenImagesError(
            f"{len(self)} of {self.total} images cannot be read, more than the allowed share of"
            f" {self.allowed:g}: mend or remove them, or set data.max_broken to {share:g}\n{lines}"
        )


def readable(
    entries: Iterable[Sample | UnreadableImage], broken: list[tuple[str, str]]
) -> Iterator[Sample]:
    """The samples among entries; (name, reason) of the others go into `broken` as they come."""
    for entry in entries:
        if isinstance(entry, Sample):
            yield entry
        else:
            broken.append((entry.name, entry.reason))


def listed(broken: list[tuple[str, str]], limit: int = 5) -> str:
    """The first few (name, reason) in one line of text, with how many more there are."""
    named = "; ".join(f"{name} ({reason})" for name, reason in broken[:limit])
    return named + (f" and {len(broken) - limit} more" if len(broken) > limit else "")
