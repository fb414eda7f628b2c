"""Parquet files that ask for far more memory than they have bytes."""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import python
from source_cases import opened

from crate_mae.sources import parquet as tables
from crate_mae.sources.address import open_source
from crate_mae.sources.images import Sample
from crate_mae.sources.parquet_pages import dictionary_bytes

READ = """
import resource, sys
from crate_mae.sources.address import open_source
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_source("parquet:" + sys.argv[1])
    print("read")
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_value_that_stands_in_every_row_does_not_fill_the_memory(tmp_path: Path) -> None:
    """One value of 32 MiB in 1,000 rows, stored once: 31 GiB where it is written out."""
    path = tmp_path / "bomb.parquet"
    value = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(1000, dtype=np.int32)), pa.array([bytes(32 << 20)], pa.binary())
    )
    pq.write_table(
        pa.table({"image": value}), path,
        compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False,
    )  # fmt: skip
    assert path.stat().st_size < 1 << 20
    *told, grown = python(READ.replace("sys.argv[1]", repr(str(path)))).stdout.splitlines()
    assert "grow from" in told[0]
    assert int(grown) < 1500, "MiB"


def test_sound_files_are_read_whatever_their_encoding(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    variants: list[dict[str, Any]] = [
        {}, {"use_dictionary": False}, {"row_group_size": 2}, {"write_page_checksum": True},
    ]  # fmt: skip
    for number, options in enumerate(variants):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(
            pa.table({"image": pictures * 5, "label": [0, 1, 0, 1] * 5}), path, **options
        )
        source = open_source(f"parquet:{path}")
        assert len(source) == 20
        assert all(isinstance(entry, Sample) for entry in source.samples())


def test_rows_are_many_where_the_dictionary_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers name the dictionary among a chunk's encodings even where they soon gave it up."""
    images = [bytes([n % 256, n // 256]) * 1000 for n in range(400)]
    pq.write_table(
        pa.table({"image": images}), tmp_path / "x.parquet",
        dictionary_pagesize_limit=4000, write_batch_size=2, compression="none",
    )  # fmt: skip
    monkeypatch.setattr(tables, "BATCH_BYTES", 200_000)
    steps: list[int] = []
    monkeypatch.setattr(tables, "check_growth", lambda _packed, unpacked, _: steps.append(unpacked))
    source = opened(f"parquet:{tmp_path}")
    assert source.encoded(399) == images[399]  # type: ignore[attr-defined]
    assert 5 < len(steps) < 50
    assert max(b - a for a, b in pairwise([0, *steps])) < 250_000


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_size_of_a_dictionary_is_that_of_its_page(tmp_path: Path, compression: str) -> None:
    value = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2] * 50, pa.int32()), pa.array([bytes(1000), bytes(500), b"x"], pa.binary())
    )
    plain = pa.array([bytes([n]) * 10 for n in range(150)])
    table, path = pa.table({"image": value, "plain": plain}), tmp_path / "x.parquet"
    pq.write_table(table, path, compression=compression, use_dictionary=["image"])
    with pq.ParquetFile(path) as file, path.open("rb") as raw:
        group = file.metadata.row_group(0)
        lengths = 3 * 4 + 1501  # a plain byte array has its length before it
        assert dictionary_bytes(group.column(0), raw) == lengths
        assert dictionary_bytes(group.column(1), raw) == sys.maxsize
    with path.open("r+b") as raw:
        raw.seek(group.column(0).dictionary_page_offset)
        raw.write(b"\x15\x00")  # a data page
        assert dictionary_bytes(group.column(0), raw) == sys.maxsize
        raw.seek(group.column(0).dictionary_page_offset)
        raw.write(b"\xff\xff")
        assert dictionary_bytes(group.column(0), raw) == sys.maxsize


def test_a_page_that_was_changed_is_told_by_its_checksum(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pictures}), path, write_page_checksum=True,
                   compression="none")  # fmt: skip
    content = bytearray(path.read_bytes())
    place = content.find(pictures[0])
    content[place + 40] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        open_source(f"parquet:{path}")
