"""What a command line calls images: files, folders, or one address."""

import logging
from collections.abc import Sequence
from pathlib import Path

from crate_mae.sources.address import is_address, open_source
from crate_mae.sources.base import EncodedSource, ImageSource
from crate_mae.sources.folders import list_files, size_of
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
) -> ImageSource:
    """A source of one address, or of image files and folders (searched recursively).

    Of an address, `limit` keeps a random choice; of files and folders, the first ones. Raises
    FileNotFoundError for a path that does not exist and ValueError when nothing is found or the
    address is a stream.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if len(inputs) == 1 and is_address(inputs[0]):
        source = open_source(inputs[0], split=split, limit=limit, reading=reading)
        if not isinstance(source, ImageSource):
            raise ValueError(f"{inputs[0]} is a stream; name files, a folder or another address")
        return source
    if split is not None:
        raise ValueError(f"split {split!r} needs a data address, not files or folders")
    paths: list[Path] = []
    for given in inputs:
        path = Path(given)
        if not path.exists():
            if is_address(given):
                raise ValueError(f"{given} is a data address: name it alone, without other images")
            raise FileNotFoundError(f"no image, folder or known address at {given}")
        paths += _images_in(path, reading) if path.is_dir() else [path]
    if not paths:
        raise ValueError("no images were named")
    return FileList(list(dict.fromkeys(paths))[:limit])


def _images_in(folder: Path, reading: Reading) -> list[Path]:
    names, passed = list_files(
        folder, image_suffixes(), str(folder), follow_links=reading.follow_links
    )
    for entry in passed:
        logger.warning("%s: passed over: %s", folder, entry)
    return [folder / name for name in names]
