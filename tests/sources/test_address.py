"""What an address must be, and what a wrong one is told."""

from pathlib import Path

import pytest

from crate_mae.sources.address import open_source


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
