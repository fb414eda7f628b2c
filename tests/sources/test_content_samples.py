"""What a fingerprint reads of content: all that is small, parts of the rest that lie evenly."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from crate_mae.sources.content_samples import PART_BYTES, PARTS, file_parts, spread


def test_images_are_spread_evenly() -> None:
    for count in (0, 1, 63, 64, 127):
        assert list(spread(count)) == list(range(count))
    for count in (128, 129, 1000, 10**7):
        chosen = spread(count)
        assert 64 <= len(chosen) < 128
        assert chosen[0] == 0
        assert count - chosen[-1] <= chosen.step


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for size in (0, 1, 2**20, 2**20 + 1, PARTS * PART_BYTES):
        content = bytes(number % 251 for number in range(size))
        path.write_bytes(content)
        assert b"".join(file_parts(path)) == content


@pytest.mark.parametrize("row", [4096, 10_000, 3 * 224 * 224, 2**18])
def test_the_parts_of_a_large_file(row: int, tmp_path: Path) -> None:
    """They leave no gap of many parts, are the same each time, and look into any place of images.

    `row` is how many bytes one of the images takes, all of which are alike.
    """
    size = 48 * 2**20
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(size)
    number, *zeros = file_parts(path)
    assert number == str(size).encode()
    assert [len(part) for part in zeros] == [PART_BYTES] * PARTS
    assert [number, *zeros] == list(file_parts(path))

    # Each block of 8 bytes tells where it lies.
    path.write_bytes(np.arange(0, size, 8, dtype=">u8").tobytes())
    starts = []
    for part in list(file_parts(path))[1:]:
        at = next(at for at in range(8) if _place(part, at + 8) == _place(part, at) + 8)
        starts.append(_place(part, at) - at)
    ordered = sorted(starts)
    assert ordered[0] >= 0
    assert size - ordered[-1] < 3 * size / PARTS
    gaps = [after - before for before, after in pairwise(ordered)]
    assert max(gaps) < 3 * size / PARTS
    tenths = {start % row * 10 // row for start in starts}
    assert tenths == set(range(10)), "not at the edge of every image"


def _place(part: bytes, at: int) -> int:
    return int.from_bytes(part[at : at + 8], "big")


def test_a_change_of_size_alone_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    before = list(file_parts(path, whole=10))
    path.write_bytes(bytes(101))
    assert list(file_parts(path, whole=10)) != before
