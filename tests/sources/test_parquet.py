"""Tables of encoded images."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from source_cases import labels_of, opened, picture_table

from crate_mae.sources import parquet as tables
from crate_mae.sources.address import open_source
from crate_mae.sources.images import UnreadableImage, decode_image


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_columns_are_found_by_type(
    tmp_path: Path, pictures: list[bytes], struct: bool
) -> None:
    table = picture_table(
        pictures, struct=struct, Category=[1, 0, None, 1], text=list("abcd"), id=[5, 6, 7, 8]
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    source = opened(f"parquet:{tmp_path / 'x.parquet'}")
    assert source.class_names == ("0", "1")
    assert labels_of(source) == [1, 0, None, 1]
    sample = source.load(3)
    assert (sample.name, sample.label) == ("x.parquet/000003", 1)
    assert torch.equal(sample.image, decode_image(pictures[3], "x"))
    assert source.facts(3).width == 5


def test_class_names_come_from_the_schema(tmp_path: Path, pictures: list[bytes]) -> None:
    features = {
        "picture": {"_type": "Image"},
        "fine": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    }
    table = picture_table(pictures, number=[9, 9, 9, 9], fine=pa.array([0, 1, 1, 0], pa.uint8()))
    noted = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": noted}), tmp_path / "x.parquet")
    source = opened(f"parquet:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert labels_of(source) == [0, 1, 1, 0]
    table = picture_table(pictures, number=[9, 9, 9, 9], fine=[0, 1, 1, 2])
    pq.write_table(table.replace_schema_metadata({"huggingface": noted}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="label 2 but only 2 class names"):
        open_source(f"parquet:{tmp_path}")


@pytest.mark.parametrize("noted", ["{", "[]", "null", '{"info": {"features": [1]}}', "[" * 10_000])
def test_odd_schema_notes_are_ignored(tmp_path: Path, pictures: list[bytes], noted: str) -> None:
    table = picture_table(pictures, label=[0, 1, 1, 0]).replace_schema_metadata(
        {"huggingface": noted}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    assert opened(f"parquet:{tmp_path}").class_names == ("0", "1")


def test_parquet_labels_by_name_or_not_at_all(tmp_path: Path, pictures: list[bytes]) -> None:
    pq.write_table(picture_table(pictures, a=[0] * 4, label=[1] * 4), tmp_path / "named.parquet")
    assert opened(f"parquet:{tmp_path / 'named.parquet'}").label(0) == 1
    pq.write_table(picture_table(pictures, a=[0] * 4, b=[1] * 4), tmp_path / "unclear.parquet")
    unclear = opened(f"parquet:{tmp_path / 'unclear.parquet'}")
    assert unclear.class_names is None
    assert "no column is called a label (a, b)" in str(unclear.found.no_labels)
    pq.write_table(picture_table(pictures, image_id=[7] * 4), tmp_path / "none.parquet")
    assert opened(f"parquet:{tmp_path / 'none.parquet'}").class_names is None


def test_parquet_without_images_lists_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"no column of encoded images.*text \(string\), label"):
        open_source(f"parquet:{tmp_path}")
    table = pa.table({"left": [b"a"], "right": [b"b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="several image columns"):
        open_source(f"parquet:{tmp_path}")
    for column, words in (
        (["a.png"], "image holds paths at most: write the bytes"),
        ([{"src": "a.png"}], "image holds paths at most: write the bytes"),
        ([[b"a"]], "image holds lists: write one encoded image a row"),
    ):
        pq.write_table(pa.table({"image": column}), tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=words):
            open_source(f"parquet:{tmp_path}")
    (tmp_path / "x.parquet").write_text("not parquet at all")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        open_source(f"parquet:{tmp_path}")
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds no \.parquet files"):
        open_source(f"parquet:{tmp_path}")


def test_rows_with_only_a_path_are_unreadable(tmp_path: Path, pictures: list[bytes]) -> None:
    pq.write_table(picture_table([pictures[0], None]), tmp_path / "x.parquet")
    source = opened(f"parquet:{tmp_path}")
    assert source.load(0).image.shape == (3, 4, 5)
    for read in (source.load, source.facts):
        with pytest.raises(UnreadableImage, match="at most a path"):
            read(1)


def test_parquet_splits_come_from_the_names(tmp_path: Path, pictures: list[bytes]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    files = {
        "train-00000-of-00002": pictures[:2],
        "train-00001-of-00002": pictures[2:],
        "validation-00000-of-00001": pictures[:1],
    }
    for name, images in files.items():
        pq.write_table(picture_table(images), folder / f"{name}.parquet")
    address = f"parquet:{tmp_path}"
    train = opened(address)
    assert (train.split, len(train)) == ("train", 4)
    assert train.name(2) == "data/train-00001-of-00002.parquet/000000"
    assert torch.equal(train.load(2).image, decode_image(pictures[2], "x"))
    assert len(opened(address, split="val")) == 1
    with pytest.raises(ValueError, match="its splits are train, validation"):
        open_source(address, split="test")
    assert opened(f"parquet:{folder / 'train-00000-of-00002.parquet'}").split == "train"


def test_parquet_folders_may_name_the_split_or_nothing_does(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    for name in ("test/0000", "test/0001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(picture_table(pictures), tmp_path / f"{name}.parquet")
    assert (opened(f"parquet:{tmp_path}").split, len(opened(f"parquet:{tmp_path}"))) == ("test", 8)
    pq.write_table(picture_table(pictures), tmp_path / "other.parquet")
    rest = opened(f"parquet:{tmp_path}")  # never test images unasked
    assert (rest.split, len(rest), rest.name(0)) == (None, 4, "other.parquet/000000")
    (tmp_path / "other.parquet").rename(tmp_path / "val.parquet")
    with pytest.raises(
        ValueError, match="has the splits test, val and none called train: name one"
    ):
        opened(f"parquet:{tmp_path}")
    assert len(opened(f"parquet:{tmp_path}", split="validation")) == 4


def test_parquet_shards_must_agree(tmp_path: Path, pictures: list[bytes]) -> None:
    pq.write_table(picture_table(pictures), tmp_path / "0.parquet")
    pq.write_table(picture_table(pictures, struct=False), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet has another type in column 'picture'"):
        open_source(f"parquet:{tmp_path}")
    pq.write_table(pa.table({"other": [b"x"]}), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet has no column 'picture'"):
        open_source(f"parquet:{tmp_path}")


def test_parquet_too_large_for_memory_points_to_hf(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(picture_table(pictures), tmp_path / "x.parquet")
    monkeypatch.setattr(tables, "MAX_PARQUET_BYTES", 100)
    with pytest.raises(ValueError, match=f"open it with hf:{tmp_path}"):
        open_source(f"parquet:{tmp_path}")


def test_parquet_fingerprints_follow_sizes_and_labels(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    def fingerprint(table: pa.Table) -> str:
        pq.write_table(table, tmp_path / "x.parquet")
        return opened(f"parquet:{tmp_path}").fingerprint()

    tables = [
        picture_table(pictures, label=[0, 1, 1, 0]),
        picture_table(pictures, label=[0, 1, 0, 0]),
        picture_table(pictures[:3], label=[0, 1, 1]),
        picture_table([b"longer" * 50, *pictures[1:]], label=[0, 1, 1, 0]),
    ]
    assert len({fingerprint(table) for table in tables}) == 4
    assert fingerprint(tables[0]) == fingerprint(tables[0])


@pytest.mark.parametrize(
    "kind", ["dictionary", "view", "fixed size", "record of another name", "large record"]
)
def test_bytes_of_any_kind(tmp_path: Path, pictures: list[bytes], kind: str) -> None:
    cells: pa.Array = pa.array(pictures)
    if kind == "dictionary":
        cells = cells.dictionary_encode()
    elif kind == "view":
        cells = pa.array(pictures, pa.binary_view())
    elif kind == "fixed size":
        longest = max(map(len, pictures))
        padded = [data.ljust(longest, b"\0") for data in pictures]  # decoders stop before
        cells = pa.array(padded, pa.binary(longest))
    elif kind == "record of another name":
        cells = pa.array([{"data": data} for data in pictures])
    else:
        inner = pa.struct([("bytes", pa.large_binary()), ("thumbnail", pa.binary())])
        cells = pa.array([{"bytes": data, "thumbnail": b""} for data in pictures], inner)
    pq.write_table(pa.table({"image": cells, "label": [3, 2, 1, 0]}), tmp_path / "x.parquet")
    source = opened(f"parquet:{tmp_path}")
    for index, data in enumerate(pictures):
        expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(source.load(index).image.permute(1, 2, 0), expected)
    assert labels_of(source) == [3, 2, 1, 0]


def test_a_dictionary_counts_with_every_row(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = pa.array([pictures[0]] * 400).dictionary_encode()
    pq.write_table(pa.table({"image": cells}), tmp_path / "x.parquet")
    monkeypatch.setattr(tables, "MAX_PARQUET_BYTES", 200 * len(pictures[0]))
    with pytest.raises(ValueError, match="too much to hold in memory"):
        open_source(f"parquet:{tmp_path}")


def test_a_first_file_without_rows_has_no_types(tmp_path: Path, pictures: list[bytes]) -> None:
    empty = pa.table({"image": pa.nulls(0), "label": pa.nulls(0)})
    pq.write_table(empty, tmp_path / "0.parquet")
    pq.write_table(pa.table({"image": pictures, "label": [0, 1, 0, 1]}), tmp_path / "1.parquet")
    assert labels_of(opened(f"parquet:{tmp_path}")) == [0, 1, 0, 1]


def test_rows_without_an_image_are_called_so(tmp_path: Path, pictures: list[bytes]) -> None:
    pq.write_table(pa.table({"image": [*pictures[:1], None]}), tmp_path / "x.parquet")
    with pytest.raises(UnreadableImage, match="there is no image in this row"):
        opened(f"parquet:{tmp_path}").load(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:0], "is empty"),
        (lambda data: data[:-9], "does not end as parquet does: cut off"),
        (lambda data: b"ARROW1\0\0" + data, "is an Arrow file: write it as parquet"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, pictures: list[bytes], change: Callable[[bytes], bytes], words: str
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pictures}), path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"x.parquet {words}"):
        open_source(f"parquet:{path}")


def test_hashes_of_the_hub_are_no_different_names(tmp_path: Path, pictures: list[bytes]) -> None:
    for name in ("train-00000-of-00002-a1b2c3d4e5f60718", "train-00001-of-00002-ffee00112233aabb"):
        pq.write_table(pa.table({"image": pictures}), tmp_path / f"{name}.parquet")
    source = opened(f"parquet:{tmp_path}")
    assert (len(source), source.found.notes) == (8, ())
