"""What may leave a machine: settings and results without the places where somebody's files lie."""

import re
from pathlib import Path
from typing import Any

from crate_mae.data.sources import is_address
from crate_mae.models.shipped import SHIPPED

PATH = "PATH"
"""Stands where a path was."""

_SPLITS = r"(?: (train|test|validation|all))?"
_HUB_DATASET = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?(?::[\w.-]+)?")


def public_address(address: str) -> str:
    """A data address of which a name stays and a path becomes PATH.

    `digits`, `torchvision:NAME` and `hf:NAME` are names that anybody can open. Folders, files and
    shards, also those on other machines, keep their scheme alone.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "digits":
        return address
    if scheme == "torchvision":
        return f"{scheme}:{rest.partition(':')[0]}"
    if scheme == "hf" and _HUB_DATASET.fullmatch(rest) and not Path(rest).exists():
        return address
    return f"{scheme}:{PATH}"


def public_text(text: str) -> str:
    """A text as it is, unless it is a data address (see `public_address`) or holds a path: PATH.

    An address may be followed by the name of its split, which stays. A text with a slash or
    backslash in it, or a tilde at its beginning, counts as a path; shipped models are names.
    """
    found = re.fullmatch(rf"(.*?){_SPLITS}", text, re.DOTALL)
    assert found is not None
    address, split = found[1], found[2]
    if is_address(address):
        return " ".join(filter(None, (public_address(address), split)))
    if text in SHIPPED:
        return text
    return PATH if re.search(r"[/\\]|^~", text) else text


def public_values(values: Any) -> Any:
    """The same nested values with `public_text` of every text in them; keys stay."""
    if isinstance(values, dict):
        return {key: public_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [public_values(value) for value in values]
    return public_text(values) if isinstance(values, str) else values


def hub_dataset(address: Any) -> str | None:
    """The Hub's name of the data set that an address such as `hf:NAME` names, or None."""
    if not isinstance(address, str) or not address.startswith("hf:"):
        return None
    public = public_address(address)
    return None if public == f"hf:{PATH}" else public.removeprefix("hf:").partition(":")[0]
