"""One address names a source of images: `digits`, `imagefolder:PATH`, `parquet:PATH`, ..."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crate_mae.common.hints import did_you_mean
from crate_mae.sources.arrays import open_arrays, open_digits
from crate_mae.sources.base import ImageSource, random_subset
from crate_mae.sources.folders import open_folder
from crate_mae.sources.splits import NoSuchSplitError, split_off
from crate_mae.sources.torchvision_datasets import open_torchvision
from crate_mae.sources.webdataset import StreamSource

logger = logging.getLogger(__name__)

TEST_SHARE = 0.2
"""Share of the labelled images that test where no split does."""
CHOICE_SEED = 0
"""Fixes which images are tested on, and which ones a limit leaves."""


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
    Raises ValueError for an unknown address, a limited stream and data that cannot be read,
    NoSuchSplitError for a split that is not there, FileNotFoundError for data that are not.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    scheme, _, rest = address.partition(":")
    if scheme not in _OPENERS:
        raise ValueError(_unknown_address(address, scheme))
    if (scheme == "digits") == (":" in address) or (scheme != "digits" and not rest):
        form = "is written without a colon" if scheme == "digits" else f"is written {scheme}:WHAT"
        raise ValueError(f"the address {address!r} is incomplete or too long: {scheme} {form}")
    with _opening(address):
        source = _OPENERS[scheme](rest, split)
    if limit is None:
        return source
    if isinstance(source, StreamSource):
        raise ValueError(f"{address} is read as a stream, without a limit: name fewer shards")
    return random_subset(source, limit, seed)


@contextmanager
def _opening(address: str) -> Iterator[None]:
    """A context in which what a library stumbles over in a damaged file becomes a ValueError."""
    try:
        yield
    except (ValueError, OSError, ImportError, RuntimeError):
        raise  # these say what is wrong
    except Exception as error:
        reason = str(error) or "no reason given"
        raise ValueError(f"{address} cannot be read ({type(error).__name__}: {reason})") from error


def open_pair(
    address: str,
    *,
    train_split: str | None = None,
    test_address: str | None = None,
    test_split: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
) -> tuple[ImageSource, ImageSource]:
    """(training, test) sources of labelled images.

    Without a test address the test split of the same address is used, else its validation split;
    of an address without either a random fifth is held out. That fifth and what limits leave are
    the same for every model and every seed, so that results can be compared. Test images that are
    training images as well are told of in the log. Raises ValueError for unlabelled images,
    streams, and two sources with different classes.
    """
    train = labelled_source(address, train_split)
    if test_address is not None or test_split is not None:
        test = labelled_source(test_address or address, test_split)
    else:
        for split in ("test", "validation"):
            try:
                test = labelled_source(address, split)
                break
            except NoSuchSplitError:
                continue
        else:
            train, test = split_off(train, TEST_SHARE, CHOICE_SEED)
    if train.class_names != test.class_names:
        raise ValueError(
            f"the classes of {train.address} and {test.address} differ:"
            f" {train.class_names} and {test.class_names}"
        )
    if limit is not None:
        train = random_subset(train, limit, CHOICE_SEED)
    if test_limit is not None:
        test = random_subset(test, test_limit, CHOICE_SEED)
    splits = {train.split, test.split}  # other splits may number their images alike
    if train.address == test.address and (len(splits) == 1 or "all" in splits):
        trained = {train.name(index) for index in range(len(train))}
        shared = sum(test.name(index) in trained for index in range(len(test)))
        if shared:
            logger.warning(
                "%d of %d test images are training images: name another split to test on",
                shared, len(test),
            )  # fmt: skip
    return train, test


def labelled_source(address: str, split: str | None) -> ImageSource:
    """The labelled images at an address; ValueError for a stream and for images without labels."""
    source = open_source(address, split=split)
    if not isinstance(source, ImageSource):
        raise ValueError(f"{address} is a stream; a probe needs images that can be counted")
    if source.class_names is None:
        raise ValueError(f"{address} has no labels: put images into one folder per class")
    return source


# pyarrow takes a while to import, so what needs it is imported on use.


def _open_parquet(rest: str, split: str | None) -> ImageSource:
    from crate_mae.sources.parquet import open_parquet

    return open_parquet(rest, split)


def _open_hugging_face(rest: str, split: str | None) -> ImageSource:
    from crate_mae.sources.huggingface import open_hugging_face

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
