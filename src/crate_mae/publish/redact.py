"""What may leave a machine: settings and results without the places where somebody's files lie."""

import re
from pathlib import Path
from typing import Any

from crate_mae.sources.address import is_address
from crate_mae.weights.shipped import HUB_NAME, SHIPPED

PATH = "PATH"
"""Stands where a path was."""

WEIGHTS_KEYS = ("weights", "init_from")
SOURCE_KEYS = ("source", "val_source", "test_source", "tested_on")
MASK_KEYS = ("masks", "val_masks", "test_masks")

HUB_OF_TORCHVISION = {
    "CIFAR10": "uoft-cs/cifar10",
    "CIFAR100": "uoft-cs/cifar100",
    "FashionMNIST": "zalando-datasets/fashion_mnist",
    "Food101": "ethz/food101",
    "ImageNet": "ILSVRC/imagenet-1k",
    "MNIST": "ylecun/mnist",
    "SVHN": "ufldl-stanford/svhn",
}
"""What the Hub calls data sets that torchvision knows by name."""

_SPLITS = r"(?: (train|trainval|test|val|valid|validation|all|held out))?"
_HUB_DATASET = re.compile(rf"({HUB_NAME})(?::[\w.-]+)?", re.ASCII)


def public_address(address: str, *, near: Path | None = None) -> str:
    """A data address of which a name stays and a path becomes PATH.

    `digits`, `torchvision:NAME` and `hf:OWNER/NAME` are names that anybody can open. Folders, files
    and shards, also those on other machines, keep their scheme alone; what has no known scheme
    keeps nothing.

    `hf:` also opens local folders, and a run does not write down which it was. So `hf:NAME`, which
    any folder may be called, never stays, and `hf:OWNER/NAME` only where no such path exists below
    the working folder or below `near`, the run's folder, or any folder above it. A folder of two
    names that has been removed since, or lies apart from both, cannot be told from a name.
    """
    scheme, _, rest = address.partition(":")
    if address == "digits":
        return address
    name = rest.partition(":")[0]
    if scheme == "torchvision" and re.fullmatch(r"\w+", name, re.ASCII):
        return f"{scheme}:{name}"
    if scheme == "hf" and _HUB_DATASET.fullmatch(rest) and not _exists(name, near):
        return address
    return f"{scheme}:{PATH}" if is_address(address) or scheme == "dataset" else PATH


def _exists(name: str, near: Path | None) -> bool:
    above = () if near is None else (near.resolve(), *near.resolve().parents)
    return any((folder / name).exists() for folder in (Path(), *above))


def public_text(text: str, *, near: Path | None = None) -> str:
    """A text as it is, unless it is a data address (see `public_address`) or holds a path: PATH.

    An address may be followed by the name of its split, which stays. A text with a slash or
    backslash in it, or a tilde at its beginning, counts as a path; shipped models are names.
    """
    if is_address(address_and_split(text)[0]):
        return public_source(text, near=near)
    if text in SHIPPED:
        return text
    return PATH if re.search(r"[/\\]|^~", text) else text


def public_source(text: str, *, near: Path | None = None) -> str:
    """A text known to be a data address, with its split or without, as `public_address` has it."""
    address, split = address_and_split(text)
    return " ".join(filter(None, (address and public_address(address, near=near), split)))


def address_and_split(text: str) -> tuple[str, str | None]:
    """A data address and the name of the split behind it, if one stands there."""
    match = re.fullmatch(rf"(.*?){_SPLITS}", text, re.DOTALL)
    assert match is not None
    return match[1], match[2]


def public_weights(name: str) -> str:
    """The name of weights that come with the package; PATH for any other.

    A repository's name is a relative path too (`runs/mine`), and a run does not write down which
    of them it was, so neither stays.
    """
    return name if name in SHIPPED else PATH


def public_values(values: Any, *, near: Path | None = None, key: Any = None) -> Any:
    """The same nested values with every text in them made public; keys stay.

    Below WEIGHTS_KEYS by `public_weights`, below SOURCE_KEYS by `public_source` and below MASK_KEYS
    a column alone, since a plain word is somebody's folder there; everywhere else by `public_text`.
    `key` is where `values` stand, `near` as in `public_address`.
    """
    if isinstance(values, dict):
        return {name: public_values(value, near=near, key=name) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [public_values(value, near=near, key=key) for value in values]
    if not isinstance(values, str):
        return values
    if key in MASK_KEYS:
        column = values.startswith("column:") and public_text(values) == values
        return values if column else PATH
    if key in WEIGHTS_KEYS:
        return public_weights(values)
    return (public_source if key in SOURCE_KEYS else public_text)(values, near=near)


def hub_dataset(address: Any) -> str | None:
    """The Hub's name of the data set that an address names, or None.

    `hf:OWNER/NAME` names one, and `torchvision:NAME` where the Hub has the same images.
    """
    scheme, _, rest = address.partition(":") if isinstance(address, str) else ("", "", "")
    if scheme == "torchvision":
        return HUB_OF_TORCHVISION.get(rest.partition(":")[0])
    if scheme != "hf":
        return None
    public = public_address(address)
    return None if public == f"hf:{PATH}" else public.removeprefix("hf:").partition(":")[0]
