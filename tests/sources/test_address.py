"""What an address must be, what a wrong one is told, and which images test."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from source_cases import Write

from crate_mae.sources.address import open_pair, open_source, open_validation


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("imagefoldr:x", "did you mean 'imagefolder'.*digits, imagefolder:PATH"),
        ("nonsense", "unknown data address 'nonsense'"),
        ("imagefolder:", "imagefolder:WHAT"),
        ("imagefolder", "imagefolder:WHAT"),
        ("digits:x", "without a colon"),
        ("train.parquet", "write parquet:train.parquet"),
        ("shard.tar", "write wds:shard.tar"),
    ],
)
def test_a_wrong_address_says_what_to_write(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(address)


def test_a_bare_folder_says_imagefolder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"write imagefolder:{tmp_path}"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("scheme", ["imagefolder", "parquet", "npy"])
def test_a_missing_path_is_named(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none")):
        open_source(f"{scheme}:{tmp_path / 'none'}")


@pytest.mark.parametrize("address", ["https://x.org/a.tar", "s3://bucket/a.parquet", "gs://x/y"])
def test_addresses_on_the_network_are_not_called_paths(address: str) -> None:
    with pytest.raises(ValueError, match=f"'{address}' is not read from there: fetch the files"):
        open_source(address)


def test_an_empty_address_is_no_folder() -> None:
    with pytest.raises(ValueError, match="unknown data address ''; addresses: digits"):
        open_source("")


@pytest.mark.parametrize(
    ("folders", "split", "told"),
    [
        (("train", "val", "test"), "test", ""),
        (("train", "valid"), "valid", ""),
        (("Training",), "Training", "its split Training is tested on"),
        (("",), None, ""),
    ],
)
def test_another_address_is_tested_on_by_the_split_meant_for_it(
    folders: tuple[str, ...],
    split: str | None,
    told: str,
    write: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    learnt, tested = f"imagefolder:{tmp_path / 'mine'}", f"imagefolder:{tmp_path / 'theirs'}"
    for name in "ab":
        write(f"mine/{name}/0.png")
        for folder in folders:
            write(f"theirs/{folder}/{name}/of-{folder}.png")
    train, test = open_pair(learnt, test_address=tested)
    assert (len(train), train.address) == (2, learnt), "nothing is held out"
    assert (len(test), test.address, test.split) == (2, tested, split)
    wanted = f"of-{folders[-1]}.png"
    assert {test.name(index).rpartition("/")[2] for index in range(2)} == {wanted}
    assert caplog.messages == (
        [f"{tested} has no test or validation split: {told}"] if told else []
    )
    if split is not None:
        _, asked = open_pair(learnt, test_address=tested, test_split=folders[0])
        assert asked.split == folders[0], "the split that is named counts"


def test_a_table_an_array_and_digits_are_tested_on_alike(write: Write, tmp_path: Path) -> None:
    for number in range(3):
        write(f"{number}.png")
    table = tmp_path / "t.csv"
    table.write_text("file,label,split\n0.png,0,train\n1.png,1,train\n2.png,1,dev\n")
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8), np.uint8))
    np.save(tmp_path / "x_labels.npy", np.array([0, 1, 1, 0]))
    for address, split, count in (
        (f"csv:{table}", "dev", 1),
        (f"npy:{tmp_path / 'x.npy'}", None, 4),
        ("digits", "test", len(open_source("digits", split="test"))),
    ):
        _, test = open_pair("digits", test_address=address)
        assert (test.split, len(test)) == (split, count)


@pytest.mark.parametrize(
    ("folders", "asked", "split", "told"),
    [
        (("train", "val", "test"), None, "val", ""),
        (("train", "val", "test"), "test", "test", ""),
        (("train", "test"), None, "train", "its split train validates"),
        (("",), None, None, ""),
    ],
)
def test_another_address_validates_by_the_split_meant_for_it(
    folders: tuple[str, ...],
    asked: str | None,
    split: str | None,
    told: str,
    write: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = f"imagefolder:{tmp_path / 'theirs'}"
    for folder in folders:
        for name in "ab":
            write(f"theirs/{folder}/{name}/of-{folder}.png")
    found = open_validation("digits", other, asked)
    assert (len(found), found.address, found.split) == (2, other, split)
    assert {found.name(index).rpartition("/")[2] for index in range(2)} == {f"of-{split or ''}.png"}
    assert caplog.messages == ([f"{other} has no validation split: {told}"] if told else [])
    one = open_validation("digits", other, asked, limit=1, labelled=True)
    assert len(one) == 1
    assert one.name(0) in {found.name(0), found.name(1)}


def test_images_that_validate_are_counted_and_labelled_where_asked(
    write: Write, tmp_path: Path
) -> None:
    write("plain/0.png")
    plain = f"imagefolder:{tmp_path / 'plain'}"
    assert len(open_validation("digits", plain, None)) == 1
    with pytest.raises(ValueError, match="has no labels"):
        open_validation("digits", plain, None, labelled=True)
    assert open_validation("digits", None, "test").split == "test"
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        shard.add(tmp_path / "plain" / "0.png", "0.png")
    with pytest.raises(ValueError, match="is a stream: name a folder or table"):
        open_validation("digits", f"wds:{tmp_path / '0.tar'}", None)


def test_the_own_address_named_again_gives_the_same_images() -> None:
    plain, named = open_pair("digits"), open_pair("digits", test_address="digits")
    for one, other in zip(plain, named, strict=True):
        assert one.fingerprint() == other.fingerprint()
