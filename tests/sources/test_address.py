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
