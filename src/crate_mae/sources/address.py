"""One address names a source of images: `digits`, `imagefolder:PATH`, `parquet:PATH`, ..."""

import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crate_mae.common.hints import did_you_mean
from crate_mae.sources.arrays import open_arrays, open_digits
from crate_mae.sources.base import ImageSource, random_subset, without_labels
from crate_mae.sources.csv_tables import open_csv
from crate_mae.sources.folders import open_folder, refuse_keys
from crate_mae.sources.found import AS_USUAL, Reading
from crate_mae.sources.renumbered import Renumbered, Unlabelled
from crate_mae.sources.splits import NoSuchSplitError, split_off
from crate_mae.sources.tiff_stacks import open_tiff
from crate_mae.sources.torchvision_datasets import open_torchvision
from crate_mae.sources.webdataset import StreamSource

logger = logging.getLogger(__name__)

TESTED = ("test", "validation")
"""Splits that test where none is named, the first that is there."""
VALIDATED = ("validation",)
"""The same for images that validate."""
TEST_SHARE = 0.2
"""Share of the labelled images that test where no split does."""
CHOICE_SEED = 0
"""Fixes which images are tested on, and which ones a limit leaves."""


def is_address(text: str) -> bool:
    """True when the text starts with a known scheme, as `digits` and `npy:PATH` do."""
    scheme, colon, _ = text.partition(":")
    return scheme in _OPENERS and bool(colon) == (scheme != "digits")


def open_source(
    address: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    reading: Reading = AS_USUAL,
    tell: bool = True,
) -> ImageSource | StreamSource:
    """The source that an address names.

    Addresses: `digits`, `imagefolder:PATH`, `parquet:PATH`, `npy:PATH`, `csv:FILE`, `tiff:PATH`,
    `torchvision:NAME[:ROOT]`, `hf:NAME[:CONFIG]`, `wds:SHARDS`. `limit` keeps a random subset fixed
    by `seed`; `reading` chooses columns and links. What is passed over stands in `found` and, with
    `tell`, in the log.
    Raises ValueError for an unknown address, a limited stream, data that cannot be read and columns
    chosen of what has none,
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
        source = _opened(scheme, rest, split, reading)
    if isinstance(source, StreamSource):
        source.tell = tell  # what shards hold is known when they have been counted
    elif tell:
        for line in source.found.lines():
            logger.warning("%s: %s", address, line)
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
    reading: Reading = AS_USUAL,
    labelled: bool = True,
) -> tuple[ImageSource, ImageSource]:
    """(training, test) sources of images, which have labels unless `labelled` is False.

    Without a test split the test images are the test split of their address, else its validation
    split. A test address without either is read as without a split, and the log names a split that
    is read so; of the training images' own address a random fifth is held out. That fifth and what
    limits leave are the same for every model and every seed, so that results can be compared. Test
    images that are training images as well are told of in the log. Classes are matched by name, and
    test images may lack some. Raises ValueError for unlabelled images, streams, and test images of
    classes that the training images do not have.
    """
    opened = labelled_source if labelled else counted_source
    train = opened(address, train_split, reading)
    tested = address if test_address is None else test_address
    if test_split is not None:
        test = opened(tested, test_split, reading)
    elif (of_split := _of_first_split(opened, tested, reading, TESTED)) is not None:
        test = of_split
    elif test_address is not None:
        test = opened(tested, None, reading)
        if test.split is not None:
            logger.warning(
                "%s has no test or validation split: its split %s is tested on", tested, test.split
            )
    else:
        train, test = split_off(train, TEST_SHARE, CHOICE_SEED)
    if labelled:
        test = with_classes_of(train, test, "test")
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


def open_validation(
    source: str,
    val_source: str | None,
    val_split: str | None,
    *,
    limit: int | None = None,
    reading: Reading = AS_USUAL,
    labelled: bool = False,
) -> ImageSource:
    """The images that validate what is trained on those at `source`.

    Without a split they are the validation split of the address named for them; where it has none,
    what is read without a split, and the log names a split that is read so. `limit` keeps a random
    subset, the same one whatever the seed. Raises ValueError for streams and, with `labelled`, for
    images without labels.
    """
    opened = labelled_source if labelled else counted_source
    address = source if val_source is None else val_source
    val = None
    if val_split is None and address != source:
        val = _of_first_split(opened, address, reading, VALIDATED)
    if val is None:
        val = opened(address, val_split, reading)
        if val_split is None and address != source and val.split is not None:
            logger.warning("%s has no validation split: its split %s validates", address, val.split)
    return val if limit is None else random_subset(val, limit, CHOICE_SEED)


def _of_first_split(
    opened: Callable[[str, str | None, Reading], ImageSource],
    address: str,
    reading: Reading,
    splits: Sequence[str],
) -> ImageSource | None:
    """The images of the first of the splits that an address has; None where it has none of them."""
    for split in splits:
        try:
            return opened(address, split, reading)
        except NoSuchSplitError:
            continue
    return None


def labelled_source(address: str, split: str | None, reading: Reading = AS_USUAL) -> ImageSource:
    """The labelled images at an address; ValueError for a stream and for images without labels."""
    source = counted_source(address, split, reading)
    if source.class_names is None:
        raise ValueError(without_labels(source))
    return source


def counted_source(address: str, split: str | None, reading: Reading = AS_USUAL) -> ImageSource:
    """The images at an address, with labels or without; ValueError for a stream."""
    source = open_source(address, split=split, reading=reading)
    if not isinstance(source, ImageSource):
        raise ValueError(f"{address} is a stream: name a folder or table, which can be counted")
    return source


def with_classes_of(train: ImageSource, other: ImageSource, part: str) -> ImageSource:
    """The other source with the class numbers of the training images, matched by name.

    Classes that it lacks are told of in the log; `part` says what it is for. Raises ValueError
    without labels and for images of classes that the training images do not have.
    """
    known, names = train.class_names, other.class_names
    if known is None or names is None:
        raise ValueError(without_labels(train if known is None else other))
    if names == known:
        return other
    # One letter with an accent, or a letter and an accent: file systems differ.
    forms = {unicodedata.normalize("NFC", name): name for name in known}
    names = tuple(
        name if name in known else forms.get(unicodedata.normalize("NFC", name), name)
        for name in names
    )
    place = {name: number for number, name in enumerate(known)}
    used = {label for index in range(len(other)) if (label := other.label(index)) is not None}
    strange = [name for number, name in enumerate(names) if name not in place and number in used]
    here, there = (
        " ".join(filter(None, (source.address, source.split))) for source in (other, train)
    )
    if strange:
        raise ValueError(
            f"the {part} images of {here} have classes that the training images of {there} do not"
            f" have: {few(strange)}; leave these images out, or name the classes alike"
            f" ({there} has {few(known)})"
        )
    missing = sorted(set(known) - {names[number] for number in used}, key=place.__getitem__)
    if missing:
        logger.warning("no %s images of %s: %s", part, few(missing), here)
    return Renumbered(other, known, [place.get(name, -1) for name in names])


def few(names: Sequence[str], limit: int = 10) -> str:
    """The first names in a row, with how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# pyarrow takes a while to import, so what needs it is imported on use.


def _opened(
    scheme: str, rest: str, split: str | None, reading: Reading
) -> ImageSource | StreamSource:
    if scheme in _BY_NAME:
        refuse_keys(reading, f"{scheme}:{rest}" if rest else scheme)
        source = _BY_NAME[scheme](rest, split)
        return Unlabelled(source) if reading.unlabelled else source
    return _BY_READING[scheme](rest, split, reading)


def _open_parquet(rest: str, split: str | None, reading: Reading) -> ImageSource:
    from crate_mae.sources.parquet import open_parquet

    return open_parquet(rest, split, reading)


def _open_hugging_face(rest: str, split: str | None, reading: Reading) -> ImageSource:
    from crate_mae.sources.huggingface import open_hugging_face

    return open_hugging_face(rest, split, reading)


def _open_stream(rest: str, split: str | None, reading: Reading) -> StreamSource:
    return StreamSource(rest, split=split, reading=reading)


_BY_NAME: dict[str, Callable[[str, str | None], ImageSource]] = {
    "digits": open_digits,
    "torchvision": open_torchvision,
}
_BY_READING: dict[str, Callable[[str, str | None, Reading], ImageSource | StreamSource]] = {
    "imagefolder": open_folder,
    "parquet": _open_parquet,
    "npy": open_arrays,
    "csv": open_csv,
    "tiff": open_tiff,
    "hf": _open_hugging_face,
    "wds": _open_stream,
}
_OPENERS = {**_BY_NAME, **_BY_READING}

_SCHEME_OF_SUFFIX = {
    ".parquet": "parquet",
    ".npy": "npy",
    ".npz": "npy",
    ".csv": "csv",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".tar": "wds",
    ".tgz": "wds",
}


def _unknown_address(address: str, scheme: str) -> str:
    path = Path(address).expanduser()
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", address):
        return f"{address!r} is not read from there: fetch the files and name where they lie"
    if address and path.is_dir():
        return f"{address!r} is a folder: write imagefolder:{address}"
    if path.suffix.lower() in _SCHEME_OF_SUFFIX:
        return f"{address!r} is a path: write {_SCHEME_OF_SUFFIX[path.suffix.lower()]}:{address}"
    forms = (
        "digits, imagefolder:PATH, parquet:PATH, npy:PATH, csv:FILE, tiff:PATH, torchvision:NAME,"
        " hf:NAME, wds:SHARDS"
    )
    return f"unknown data address {address!r}{did_you_mean(scheme, _OPENERS)}; addresses: {forms}"
