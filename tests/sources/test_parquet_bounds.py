"""Parquet files that ask for far more memory than they have bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import python

from crate_mae.sources.address import open_source
from crate_mae.sources.images import Sample

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
