"""The image datasets that torchvision knows by name."""

import inspect
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from crate_mae.common.hints import did_you_mean
from crate_mae.sources.base import ImageSource
from crate_mae.sources.splits import match_split
from crate_mae.sources.torch_datasets import WrappedDataset


def open_torchvision(rest: str, split: str | None, *, download: bool = True) -> ImageSource:
    """The source of "NAME" or "NAME:ROOT"; images that are not there yet are downloaded.

    With `download` False that is a FileNotFoundError.
    """
    from torchvision import datasets as library

    name, _, root = rest.partition(":")
    kinds = _torchvision_kinds(library)
    if name not in kinds:
        raise ValueError(
            f"torchvision has no image dataset {name!r}{did_you_mean(name, kinds)};"
            " see the list at https://pytorch.org/vision/stable/datasets.html"
        )
    address, kind = f"torchvision:{rest}", kinds[name]
    root = root or "data/torchvision"
    dataset, chosen = _build_torchvision(kind, root, split, address, download)
    source = WrappedDataset(dataset, None)
    source.address, source.split = address, chosen
    return source


def _torchvision_kinds(library: Any) -> dict[str, type]:
    found = {name: getattr(library, name) for name in library.__all__}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type)
        and issubclass(kind, torch.utils.data.Dataset)
        and name not in {"VisionDataset", "DatasetFolder"}
    }


def _build_torchvision(
    kind: type, root: str, split: str | None, address: str, download: bool
) -> tuple[Any, str | None]:
    """The dataset, downloaded only if it is not there yet, and the name of its split."""
    parameters = _parameters(kind)
    arguments = {"root": root} if "root" in parameters else {}
    choices = _split_arguments(parameters, split, address)
    for place, choice in enumerate(choices):
        try:
            given = {**arguments, **choice}
            dataset = _build_or_download(kind, given, parameters, address, download)
        except ValueError as error:  # torchvision's word for a split it does not have
            if place + 1 < len(choices):
                continue
            raise ValueError(f"{address} cannot be opened: {error}") from error
        except TypeError as error:
            raise ValueError(
                f"{address} needs more than a name and a root ({error}):"
                " build it yourself and pass it to wrap_dataset"
            ) from error
        return dataset, _split_name(parameters, choice)
    raise AssertionError("there is always one choice")


def _parameters(kind: type) -> dict[str, Any]:
    """Names and defaults of the constructor's parameters, with those a subclass hands on."""
    found = inspect.signature(kind).parameters.values()
    parameters = {p.name: p.default for p in found if p.kind is not p.VAR_KEYWORD}
    base = kind.__mro__[1]
    hands_on = any(p.kind is p.VAR_KEYWORD for p in found)
    if hands_on and "download" in inspect.signature(base).parameters:
        parameters = {**_parameters(base), **parameters}
    return parameters


def _split_arguments(
    parameters: Mapping[str, Any], split: str | None, address: str
) -> list[dict[str, Any]]:
    """The arguments that choose the split, in the spellings to try."""
    if split is None:
        return [{}]
    if "split" in parameters:
        alike = [name for name in ("val", "valid", "validation") if name != split]
        return [{"split": name} for name in (split, *alike * split.startswith("val"))]
    present = ("test", "train") if "train" in parameters else ()
    return [{"train": match_split(split, present, address) == "train"}]


def _split_name(parameters: Mapping[str, Any], choice: Mapping[str, Any]) -> str | None:
    chosen = {**parameters, **choice}
    if isinstance(chosen.get("split"), str):
        return str(chosen["split"])
    return {True: "train", False: "test"}.get(chosen["train"]) if "train" in chosen else None


def _build_or_download(
    kind: Callable[..., Any],
    arguments: dict[str, Any],
    parameters: Iterable[str],
    address: str,
    download: bool,
) -> Any:
    try:
        return kind(**arguments)
    except (RuntimeError, OSError) as absent:
        where = arguments.get("root")
        if not download:
            raise FileNotFoundError(f"{address} is not in {where}") from absent
        if "download" not in parameters:
            raise FileNotFoundError(
                f"{address} is not in {where}, and torchvision cannot download it: {absent}"
            ) from absent
    try:
        return kind(**arguments, download=True)
    except (RuntimeError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise FileNotFoundError(
            f"{address} is not in {where}, and the download failed: {error}"
        ) from error
