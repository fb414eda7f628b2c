"""Settings and results leave without the places where files lie."""

from pathlib import Path

import pytest
import torchvision

from crate_mae.publish.redact import (
    HUB_OF_TORCHVISION,
    hub_dataset,
    public_address,
    public_source,
    public_text,
    public_values,
    public_weights,
)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("digits", "digits"),
        ("parquet:/home/ann/secret", "parquet:PATH"),
        ("imagefolder:patients", "imagefolder:PATH"),
        ("npy:C:\\Users\\ann\\x.npy", "npy:PATH"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"),
        ("torchvision:CIFAR10:/home/ann", "torchvision:CIFAR10"),
        ("torchvision:../ann", "torchvision:PATH"),
        ("hf:cifar10", "hf:PATH"),  # a folder may be called so
        ("hf:pictures:ann", "hf:PATH"),
        ("hf:änn/cifar10", "hf:PATH"),
        ("hf:uoft-cs/cifar10:plain_text", "hf:uoft-cs/cifar10:plain_text"),
        ("hf:/home/ann/set", "hf:PATH"),
        ("hf:~/set", "hf:PATH"),
        ("hf:./set", "hf:PATH"),
        ("hf:a/b/c", "hf:PATH"),
        ("wds:pipe:curl -H 'Authorization: Bearer x' https://host/{0..9}.tar", "wds:PATH"),
        ("dataset:Mine", "dataset:PATH"),
        ("mysecretfolder", "PATH"),
        ("train.parquet", "PATH"),
        ("C:data", "PATH"),
        ("digits:ann", "PATH"),
    ],
)
def test_names_stay_and_paths_go(address: str, public: str) -> None:
    assert public_address(address) == public
    assert public_address(public) == public


def test_a_folder_beside_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert public_address("hf:ann/pictures") == "hf:ann/pictures"
    (tmp_path / "ann" / "pictures").mkdir(parents=True)
    assert public_address("hf:ann/pictures") == "hf:PATH"
    assert public_address("hf:ann/pictures:all") == "hf:PATH"
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    monkeypatch.chdir("/")
    assert public_address("hf:ann/pictures") == "hf:ann/pictures"
    assert public_address("hf:ann/pictures", near=run) == "hf:PATH", "trained above its run"
    values = {"data": {"source": "hf:ann/pictures", "val_source": "hf:bob/pictures"}}
    assert public_values(values, near=run) == {
        "data": {"source": "hf:PATH", "val_source": "hf:bob/pictures"}
    }


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("parquet:/home/ann/x y test", "parquet:PATH test"),
        ("digits test", "digits test"),
        ("runs/mine", "PATH"),
        ("~ann", "PATH"),
        ("C:\\x", "PATH"),
        ("cifar10-small", "cifar10-small"),
        ("random baseline", "random baseline"),
        ("a held-out fifth, seed 0", "a held-out fifth, seed 0"),
        ("", ""),
    ],
)
def test_texts(text: str, public: str) -> None:
    assert public_text(text) == public


def test_values_of_any_nesting() -> None:
    values = {"weights": "/a/b", "n": 3, "none": None, "list": ["x", "npy:/a", {"deep": "../c"}]}
    assert public_values(values) == {
        "weights": "PATH",
        "n": 3,
        "none": None,
        "list": ["x", "npy:PATH", {"deep": "PATH"}],
    }


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("parquet:/home/ann/x y test", "parquet:PATH test"),
        ("hf:uoft-cs/cifar10 held out", "hf:uoft-cs/cifar10 held out"),
        ("torchvision:Flowers102 val", "torchvision:Flowers102 val"),
        ("mysecretfolder test", "PATH test"),
        ("", ""),
        ("PATH test", "PATH test"),
    ],
)
def test_sources(text: str, public: str) -> None:
    assert public_source(text) == public
    assert public_source(public) == public


@pytest.mark.parametrize(
    "name", ["mysecretfolder", "weights.pth", "C:data", "runs/mine", "facebook/vit", ""]
)
def test_weights_of_other_places_are_not_named(name: str) -> None:
    assert public_weights(name) == "PATH"
    assert public_weights("cifar10-small") == "cifar10-small"


def test_known_keys_hold_places_even_without_a_slash() -> None:
    values = {
        "weights": "mysecretfolder", "init_from": ["best"], "pool": "mean", "name": "mine",
        "data": {"source": "secret", "val_source": None, "test_source": "train.parquet"},
        "rows": [{"tested_on": "digits test", "subject": "random baseline"}],
    }  # fmt: skip
    assert public_values(values) == {
        "weights": "PATH", "init_from": ["PATH"], "pool": "mean", "name": "mine",
        "data": {"source": "PATH", "val_source": None, "test_source": "PATH"},
        "rows": [{"tested_on": "digits test", "subject": "random baseline"}],
    }  # fmt: skip


def test_data_sets_of_the_hub() -> None:
    assert hub_dataset("hf:uoft-cs/cifar10:plain_text") == "uoft-cs/cifar10"
    assert hub_dataset("torchvision:CIFAR10:/home/ann/pictures") == "uoft-cs/cifar10"
    for other in ("hf:/home/ann", "digits", "parquet:x", "torchvision:FakeData", None, 3):
        assert hub_dataset(other) is None


def test_data_sets_of_torchvision_are_spelled_as_torchvision_does() -> None:
    assert set(HUB_OF_TORCHVISION) <= set(torchvision.datasets.__all__)
