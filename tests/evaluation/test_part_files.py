"""Parts of features: they give back what was written, whole or not at all, and nothing else."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated

from crate_mae.evaluation.part_files import (
    FACTS,
    PartFacts,
    PartRows,
    read_part,
    read_part_facts,
    write_part,
)

FACTS_OF = PartFacts(settings="s" * 64, number=2, start=10, stop=15)
NAMES = ["a.png", "é $.png", "b\n.png", "c.png"]
BROKEN = [("x.png", "the file is empty")]


def rows_like(shape: tuple[int, ...] = (3,), count: int = 4) -> PartRows:
    values = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return PartRows(
        indices=[10, 11, 13, 14][:count], names=NAMES[:count], labels=[0, -1, 2, 1][:count],
        values=values,
    )  # fmt: skip


def cut(rows: PartRows, size: int) -> list[PartRows]:
    """The rows in batches."""
    return [
        PartRows(
            indices=rows.indices[i : i + size], names=rows.names[i : i + size],
            labels=rows.labels[i : i + size], values=rows.values[i : i + size],
        )
        for i in range(0, len(rows.names), size)
    ]  # fmt: skip


def written(path: Path, *, shape: tuple[int, ...] = (3,), size: int = 4) -> PartFacts:
    rows = rows_like(shape)
    return write_part(path, cut(rows, size), FACTS_OF, BROKEN, row_shape=shape, labelled=True)


def whole(path: Path, shape: tuple[int, ...] = (3,)) -> PartRows:
    found = list(read_part(path, row_shape=shape, labelled=True))
    return PartRows(
        indices=[i for rows in found for i in rows.indices],
        names=[name for rows in found for name in rows.names],
        labels=[label for rows in found for label in rows.labels],
        values=torch.cat([rows.values for rows in found]),
    )


@given(
    counts=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    shape=st.sampled_from([(1,), (5,), (2, 3)]),
    seed=st.integers(0, 99),
    names=st.lists(st.text(max_size=9), min_size=1, max_size=3),
)
@settings(max_examples=30, deadline=None)
def test_rows_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    shape: tuple[int, ...],
    seed: int,
    names: list[str],
) -> None:
    path = tmp_path_factory.mktemp("part") / "p.parquet"
    total = sum(counts)
    draw = torch.Generator().manual_seed(seed)
    rows = PartRows(
        indices=list(range(total)), names=[names[i % len(names)] for i in range(total)],
        labels=[i % 3 - 1 for i in range(total)], values=torch.randn(total, *shape, generator=draw),
    )  # fmt: skip
    facts = PartFacts(settings="", number=0, start=0, stop=total)
    ends = np.cumsum([0, *counts])
    batches = [
        PartRows(indices=rows.indices[a:b], names=rows.names[a:b], labels=rows.labels[a:b],
                 values=rows.values[a:b])
        for a, b in pairwise(ends)
    ]  # fmt: skip
    made = write_part(path, batches, facts, [], row_shape=shape, labelled=True)
    found = whole(path, shape)
    assert found.indices == rows.indices
    assert found.labels == rows.labels
    assert found.names == [n.encode("utf-8", "backslashreplace").decode() for n in rows.names]
    assert torch.equal(found.values, rows.values)
    assert read_part_facts(path) == made == replace(facts, rows=total, sha256=made.sha256)


def test_a_part_says_what_it_holds_and_lacks(tmp_path: Path) -> None:
    made = written(tmp_path / "p.parquet")
    assert (made.rows, made.unreadable) == (4, tuple(BROKEN))
    assert read_part_facts(tmp_path / "p.parquet") == made
    # However it came in batches, it is the same content.
    assert written(tmp_path / "q.parquet", size=1).sha256 == made.sha256


def test_parts_are_read_by_other_programs(tmp_path: Path) -> None:
    written(tmp_path / "part-00000.parquet")
    (tmp_path / "_manifest.json").write_text("{}")
    table = pq.read_table(tmp_path).to_pydict()
    assert table["name"] == NAMES
    assert table["index"] == [10, 11, 13, 14]
    assert table["label"] == [0, -1, 2, 1]
    np.testing.assert_array_equal(np.array(table["values"], np.float32), rows_like().values.numpy())


def test_without_classes_there_is_no_column_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_part(path, [rows_like()], FACTS_OF, BROKEN, row_shape=(3,), labelled=False)
    assert pq.read_schema(path).names == ["index", "name", "values"]
    (rows,) = read_part(path, row_shape=(3,), labelled=False)
    assert rows.labels == [-1] * 4


def test_a_part_of_broken_images_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    broken = [(f"{i}.png", "made to break") for i in range(5)]
    made = write_part(path, [], FACTS_OF, broken, row_shape=(2, 3), labelled=True)
    assert (made.rows, len(made.unreadable)) == (0, 5)
    assert list(read_part(path, row_shape=(2, 3), labelled=True)) == []
    assert pq.read_table(path).num_rows == 0


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def batches() -> list[PartRows]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_part(
            tmp_path / "p.parquet", (rows for rows in batches()), FACTS_OF, [], row_shape=(3,),
            labelled=True,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_damage_is_told(tmp_path: Path) -> None:
    """Whatever changes in a file: it is refused, or read as it was."""
    path = tmp_path / "p.parquet"
    facts, rows, sound = written(path), whole(path), path.read_bytes()
    refused = 0
    for number in range(150):
        path.write_bytes(mutated(sound, f"part {number}"))
        try:
            found = whole(path)
            assert read_part_facts(path) == facts
        except ValueError:
            refused += 1
            continue
        assert found.names == rows.names
        assert found.indices == rows.indices
        assert found.labels == rows.labels
        assert torch.equal(found.values, rows.values)
    assert refused > 75


def schema(element: bool = False) -> pa.Schema:
    values = pa.list_(pa.field("element", pa.float32(), nullable=element), 3)
    fields = {"index": pa.int64(), "name": pa.string(), "label": pa.int64(), "values": values}
    return pa.schema([pa.field(name, kind, nullable=element) for name, kind in fields.items()])


def foreign(path: Path, count: int, *, nulls: bool = False, **options: Any) -> None:
    """A file of so many rows that says the facts of a part, written with other options."""
    columns: dict[str, list[object]] = {
        "index": list(range(count)), "name": ["n" * 9] * count, "label": [0] * count,
        "values": [None if nulls else [1.0, 2.0, 3.0]] * count,
    }  # fmt: skip
    about = asdict(PartFacts(settings="", number=0, start=0, stop=count, rows=count))
    table = pa.table(columns, schema=schema(nulls))
    table = table.replace_schema_metadata({FACTS: json.dumps(about)})
    pq.write_table(table, path, **{"compression": "none", "use_dictionary": False, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dictionary": True}, "packed"),
        ({"compression": "zstd"}, "packed"),
        ({"nulls": True}, "its columns are not those"),
        ({}, "checksum"),
    ],
)
def test_what_could_grow_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """A hundred thousand equal rows in a few kilobytes are told before they are unpacked."""
    path = tmp_path / "p.parquet"
    foreign(path, 100_000 if options else 4, **options)
    with pytest.raises(ValueError, match=message):
        list(read_part(path, row_shape=(3,), labelled=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/1"}, "format 'other/1' is not"),
        ({"rows": 3}, "3 rows and 1 unreadable images are not the 5"),
        ({"start": -1}, "no whole numbers"),
        ({"number": True}, "no whole numbers"),
        ({"unreadable": [[1, 2]]}, "no text"),
        ({"unreadable": [["a"]]}, "unpack"),
        ({"more": 1}, "more"),
        ({"settings": 3}, "no text"),
    ],
)
def test_facts_that_cannot_be(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "p.parquet"
    about = asdict(written(path)) | change
    table = pq.read_table(path).replace_schema_metadata({FACTS: json.dumps(about)})
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=message):
        read_part_facts(path)


def test_other_columns_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    written(path)
    for shape, labelled in (((4,), True), ((3,), False)):
        with pytest.raises(ValueError, match="its columns are not those of its settings"):
            list(read_part(path, row_shape=shape, labelled=labelled))
    with pytest.raises(FileNotFoundError):
        read_part_facts(tmp_path / "none.parquet")
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="no whole part of features"):
        read_part_facts(path)
