"""All splits of a data address, with how many images each has."""

from collections.abc import Mapping

from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource
from crate_mae.sources.splits import NoSuchSplitError

COUNTED = ("digits", "imagefolder", "parquet", "npy")
"""Schemes whose splits are counted at once; others would be downloaded, or read to their end."""
NONE_SUCH = "no split is called so"


def splits_of(address: str) -> dict[str, int]:
    """The images of each split of an address, by its name; empty where it is not divided.

    Also empty for sources that would have to be fetched. Raises what opening them raises.
    """
    if address.partition(":")[0] not in COUNTED:
        return {}
    try:
        open_source(address, split=NONE_SUCH)
    except NoSuchSplitError as error:
        names = error.present
    except ValueError:  # arrays and the like, which have no splits to name
        return {}
    found = {}
    for name in names:
        source = open_source(address, split=name)
        if isinstance(source, ImageSource):
            found[name] = len(source)
    return found


def splits_text(splits: Mapping[str, int], described: str | None) -> str:
    """A line that tells of all splits and which was described; empty without any."""
    if not splits:
        return ""
    counts = ", ".join(f"{name} {count:,}" for name, count in splits.items())
    here = f"; the numbers above are of {described}, --split names another" if described else ""
    return f"splits: {counts}{here}"
