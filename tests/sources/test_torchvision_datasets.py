"""Datasets of torchvision by name."""

import urllib.error
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from source_cases import PIXELS, Items, opened

from crate_mae.sources.address import open_source


def test_fake_data_needs_no_network() -> None:
    source = opened("torchvision:FakeData", limit=4)
    assert len(source) == 4
    assert source.class_names == tuple("0123456789")
    assert source.load(0).image.shape == (3, 224, 224)
    assert source.name(0).startswith("fakedata/")
    with pytest.raises(ValueError, match="not divided into splits"):
        open_source("torchvision:FakeData", split="train")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR1", "did you mean 'CIFAR10'"),
        ("wrap_dataset_for_transforms_v2", "no image dataset"),
        ("VisionDataset", "no image dataset"),
        ("../os", "no image dataset"),
        ("CocoDetection", "pass it to wrap_dataset"),
    ],
)
def test_torchvision_names_are_checked(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(f"torchvision:{name}:{tmp_path}")


def test_a_failed_download_gives_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as library

    def offline(_self: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(library.CIFAR10, "download", offline)
    with pytest.raises(FileNotFoundError, match=r"download failed.*no route to host"):
        open_source(f"torchvision:CIFAR10:{tmp_path}")
    with pytest.raises(ValueError, match="its splits are test, train"):
        open_source(f"torchvision:CIFAR10:{tmp_path}", split="val")
    with pytest.raises(FileNotFoundError, match="torchvision cannot download it"):
        open_source(f"torchvision:ImageNet:{tmp_path}", split="val")


def test_torchvision_splits_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as library

    built: list[dict[str, Any]] = []

    class Fake(Items):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split not in ("train", "valid"):
                raise ValueError(f"Unknown value '{split}' for argument split.")
            built.append({"root": root, "split": split, "download": download})
            if not download:
                raise RuntimeError("Dataset not found")
            super().__init__([(Image.fromarray(PIXELS), 0)], classes=["only"])

    monkeypatch.setattr(library, "DTD", Fake)
    source = opened(f"torchvision:DTD:{tmp_path}", split="val")
    assert (source.split, source.address) == ("valid", f"torchvision:DTD:{tmp_path}")
    assert [call["download"] for call in built] == [False, True]
    assert built[0]["root"] == str(tmp_path)
    with pytest.raises(ValueError, match="Unknown value 'extra'"):
        open_source(f"torchvision:DTD:{tmp_path}", split="extra")
