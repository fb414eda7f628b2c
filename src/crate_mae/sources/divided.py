"""All splits of a source, with how many images each has."""

from collections.abc import Mapping

from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource, Source
from crate_mae.sources.found import AS_USUAL, Reading

COUNTED = ("digits", "imagefolder", "parquet", "npy", "csv", "tiff")
"""Schemes whose splits are counted at once; others would be downloaded, or read to their end."""


def splits_of(source: Source, reading: Reading = AS_USUAL) -> dict[str, int]:
    """The images of each split beside and of a source, by its name; empty where it is not divided.

    Also empty for sources that would have to be fetched. Raises what opening them raises.
    """
    if source.address.partition(":")[0] not in COUNTED:
        return {}
    found = {}
    for name in source.found.splits:
        part = open_source(source.address, split=name, reading=reading, tell=False)
        if isinstance(part, ImageSource):
            found[name] = len(part)
    return found


def splits_text(splits: Mapping[str, int], described: str | None) -> str:
    """A line that tells of all splits and which was described; empty without any."""
    if not splits:
        return ""
    counts = ", ".join(f"{name} {count:,}" for name, count in splits.items())
    here = f"; the numbers above are of {described}, --split names another" if described else ""
    return f"splits: {counts}{here}"
