"""Parts of data by which a fingerprint knows content whose size alone would not tell of a change.

All of it where that is little, else parts spread over the whole: a change of every image is seen,
one of a single image among many may not be.
"""

from collections.abc import Iterator
from pathlib import Path

SAMPLED_IMAGES = 64
"""About how many images are looked into where each is read by itself."""
WHOLE_BYTES = 64 * 2**20
"""One file of many images up to this size is read whole."""
PARTS, PART_BYTES = 256, 16 * 2**10
"""How many parts of a larger file are read, and how long they are."""
WHOLE_IMAGE_BYTES = PARTS * PART_BYTES
"""A file of a single image up to this size is read whole."""
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: multiples of it lie evenly, and in step with no image size."""


def spread(count: int) -> range:
    """The numbers of all images or, of many, of 64 to 127 that are spread over them."""
    return range(0, count, max(1, count // SAMPLED_IMAGES))


def file_parts(path: Path, whole: int = WHOLE_IMAGE_BYTES) -> Iterator[bytes]:
    """All bytes of a file of up to `whole` bytes, else its size and bytes from 256 fixed places.

    Raises OSError for a file that cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= whole:
            while block := file.read(2**20):
                yield block
            return
        yield str(size).encode()
        for part in range(PARTS):
            file.seek((part * _GOLDEN % 2**64 * max(0, size - PART_BYTES)) >> 64)
            yield file.read(PART_BYTES)
