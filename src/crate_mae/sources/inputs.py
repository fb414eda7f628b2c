"""What a command line calls images: files, folders, or one address."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from crate_mae.common.files import user_path
from crate_mae.sources.address import is_address, open_source
from crate_mae.sources.base import EncodedSource, ImageSource, random_subset, subset
from crate_mae.sources.folders import list_files, refuse_keys, size_of
from crate_mae.sources.found import AS_USUAL, Reading
from crate_mae.sources.images import image_suffixes

logger = logging.getLogger(__name__)


class FileList(EncodedSource):
    """The image files that were named, each once, in that order, unlabelled."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__("files", None, None, None)
        self.paths = list(dict.fromkeys(paths))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path as it was given, or below the folder that was given."""
        return str(self.paths[index])

    def encoded(self, index: int) -> Path:
        """The file of that number."""
        return self.paths[index]

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        return self.name(index), None, size_of(self.paths[index])


def open_images(
    inputs: Sequence[str],
    *,
    split: str | None = None,
    limit: int | None = None,
    reading: Reading = AS_USUAL,
    varied: bool = False,
) -> ImageSource:
    """A source of one address, or of image files and folders (searched recursively).

    Of an address, `limit` keeps a random choice; of files and folders, the first ones. A `varied`
    choice is of as many classes as can be, or spread evenly over the files. Raises
    FileNotFoundError for a path that does not exist and ValueError when nothing is found, the
    address is a stream or columns are chosen of what has none.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if len(inputs) == 1 and is_address(inputs[0]):
        source = open_source(
            inputs[0], split=split, limit=None if varied else limit, reading=reading
        )
        if not isinstance(source, ImageSource):
            raise ValueError(f"{inputs[0]} is a stream; name files, a folder or another address")
        return varied_choice(source, limit) if varied and limit is not None else source
    if split is not None:
        raise ValueError(f"split {split!r} needs a data address, not files or folders")
    paths: list[Path] = []
    for given in inputs:
        path = user_path(given)
        if not path.exists():
            if is_address(given):
                raise ValueError(f"{given} is a data address: name it alone, without other images")
            raise FileNotFoundError(f"no image, folder or known address at {given}")
        refuse_keys(reading, given)
        paths += _images_in(path, reading) if path.is_dir() else [path]
    if not paths:
        raise ValueError("no images were named")
    files = list(dict.fromkeys(paths))
    if varied and limit is not None and limit < len(files):
        # The first ones of a folder are of one class, one day or one video.
        files = [files[index * len(files) // limit] for index in range(limit)]
    return FileList(files[:limit])


def varied_choice(source: ImageSource, count: int, seed: int = 0) -> ImageSource:
    """So many images of a source, from its classes in turn, drawn by the seed; all if it has fewer.

    Of a source without labels, a random choice.
    """
    if count >= len(source):
        return source
    if source.class_names is None:
        return random_subset(source, count, seed)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)).tolist()
    by_class: dict[int | None, list[int]] = {}
    for index in order:
        by_class.setdefault(source.label(index), []).append(index)
    turns = [
        by_class[label] for label in sorted(by_class, key=lambda label: (label is None, label))
    ]
    chosen = [indices[turn] for turn in range(count) for indices in turns if turn < len(indices)]
    return subset(source, chosen[:count])


def _images_in(folder: Path, reading: Reading) -> list[Path]:
    names, passed = list_files(
        folder, image_suffixes(), str(folder), follow_links=reading.follow_links
    )
    for entry in passed:
        logger.warning("%s: passed over: %s", folder, entry)
    return [folder / name for name in names]
