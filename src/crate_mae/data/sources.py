"""One address names a source of images: `digits`, `imagefolder:PATH`, `parquet:PATH`, ..."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from crate_mae.data.arrays import open_arrays, open_digits
from crate_mae.data.base import ImageSource
from crate_mae.data.folders import open_folder
from crate_mae.data.images import ImageFacts, Sample
from crate_mae.data.streams import StreamSource
from crate_mae.data.torch_datasets import wrap_dataset
from crate_mae.data.torchvision_datasets import open_torchvision
from crate_mae.models.config import did_you_mean

__all__ = [
    "ImageSource",
    "Sample",
    "is_address",
    "open_source",
    "random_subset",
    "subset",
    "wrap_dataset",
]


def is_address(text: str) -> bool:
    """True when the text starts with a known scheme, as `digits` and `npy:PATH` do."""
    scheme, colon, _ = text.partition(":")
    return scheme in _OPENERS and bool(colon) == (scheme != "digits")


def open_source(
    address: str, *, split: str | None = None, limit: int | None = None, seed: int = 0
) -> ImageSource | StreamSource:
    """The source that an address names.

    Addresses: `digits`, `imagefolder:PATH`, `parquet:PATH`, `npy:PATH`, `torchvision:NAME[:ROOT]`,
    `hf:NAME[:CONFIG]`, `wds:SHARDS`. `limit` keeps a random subset fixed by `seed`.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    scheme, _, rest = address.partition(":")
    if scheme not in _OPENERS:
        raise ValueError(_unknown_address(address, scheme))
    if (scheme == "digits") == (":" in address) or (scheme != "digits" and not rest):
        form = "is written without a colon" if scheme == "digits" else f"is written {scheme}:WHAT"
        raise ValueError(f"the address {address!r} is incomplete or too long: {scheme} {form}")
    source = _OPENERS[scheme](rest, split)
    if limit is None:
        return source
    if isinstance(source, StreamSource):
        raise ValueError(f"{address} is read as a stream, without a limit: name fewer shards")
    return random_subset(source, limit, seed)


def random_subset(source: ImageSource, limit: int, seed: int = 0) -> ImageSource:
    """That many images of the source, drawn by the seed and kept in order; all if it has fewer."""
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if limit >= len(source):
        return source
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    return subset(source, sorted(order[:limit].tolist()))


def subset(source: ImageSource, indices: Sequence[int]) -> ImageSource:
    """The source cut down to these indices, in this order; names, labels and classes stay."""
    for index in indices:
        if not 0 <= index < len(source):
            raise ValueError(f"index {index} is outside {source.address} of {len(source)} images")
    return _Subset(source, np.asarray(indices, dtype=np.int64))


class _Subset(ImageSource):
    """Some images of another source, which is never itself a subset."""

    _source: ImageSource
    _indices: np.ndarray

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        if isinstance(source, _Subset):
            indices = source._indices[indices]
            source = source._source
        self.address, self.split = source.address, source.split
        self.class_names = source.class_names
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> Sample:
        return self._source.load(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def label(self, index: int) -> int | None:
        return self._source.label(int(self._indices[index]))

    def facts(self, index: int) -> ImageFacts:
        return self._source.facts(int(self._indices[index]))

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        return self._source._identity(int(self._indices[index]))

    def _content(self) -> Iterator[bytes]:
        return self._source._content()


# pyarrow takes a while to import, so what needs it is imported on use.


def _open_parquet(rest: str, split: str | None) -> ImageSource:
    from crate_mae.data.tables import open_parquet

    return open_parquet(rest, split)


def _open_hugging_face(rest: str, split: str | None) -> ImageSource:
    from crate_mae.data.hub import open_hugging_face

    return open_hugging_face(rest, split)


def _open_stream(rest: str, split: str | None) -> StreamSource:
    return StreamSource(rest, split=split)


_OPENERS: dict[str, Callable[[str, str | None], ImageSource | StreamSource]] = {
    "digits": open_digits,
    "imagefolder": open_folder,
    "parquet": _open_parquet,
    "npy": open_arrays,
    "torchvision": open_torchvision,
    "hf": _open_hugging_face,
    "wds": _open_stream,
}

_SCHEME_OF_SUFFIX = {".parquet": "parquet", ".npy": "npy", ".npz": "npy", ".tar": "wds"}


def _unknown_address(address: str, scheme: str) -> str:
    path = Path(address).expanduser()
    if path.is_dir():
        return f"{address!r} is a folder: write imagefolder:{address}"
    if path.suffix.lower() in _SCHEME_OF_SUFFIX:
        return f"{address!r} is a path: write {_SCHEME_OF_SUFFIX[path.suffix.lower()]}:{address}"
    forms = (
        "digits, imagefolder:PATH, parquet:PATH, npy:PATH, torchvision:NAME, hf:NAME, wds:SHARDS"
    )
    return f"unknown data address {address!r}{did_you_mean(scheme, _OPENERS)}; addresses: {forms}"
