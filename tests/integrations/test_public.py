"""Settings and results leave without the places where files lie."""

from pathlib import Path

import pytest

from crate_mae.integrations.public import hub_dataset, public_address, public_text, public_values


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("digits", "digits"),
        ("parquet:/home/ann/secret", "parquet:PATH"),
        ("imagefolder:patients", "imagefolder:PATH"),
        ("npy:C:\\Users\\ann\\x.npy", "npy:PATH"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"),
        ("torchvision:CIFAR10:/home/ann", "torchvision:CIFAR10"),
        ("hf:cifar10", "hf:cifar10"),
        ("hf:uoft-cs/cifar10:plain_text", "hf:uoft-cs/cifar10:plain_text"),
        ("hf:/home/ann/set", "hf:PATH"),
        ("hf:~/set", "hf:PATH"),
        ("hf:./set", "hf:PATH"),
        ("hf:a/b/c", "hf:PATH"),
        ("wds:pipe:curl -H 'Authorization: Bearer x' https://host/{0..9}.tar", "wds:PATH"),
        ("dataset:Mine", "dataset:PATH"),
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


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("parquet:/home/ann/x y test", "parquet:PATH test"),
        ("digits test", "digits test"),
        ("runs/mine", "PATH"),
        ("~ann", "PATH"),
        ("C:\\x", "PATH"),
        ("cifar10-small", "cifar10-small"),
        ("random twin", "random twin"),
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


def test_data_sets_of_the_hub() -> None:
    assert hub_dataset("hf:uoft-cs/cifar10:plain_text") == "uoft-cs/cifar10"
    for other in ("hf:/home/ann", "digits", "parquet:x", None, 3):
        assert hub_dataset(other) is None
