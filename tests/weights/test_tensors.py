"""A flipped bit is told, wherever it falls: a file is refused, or holds what was written."""

import json
import random
import zipfile
from pathlib import Path

import pytest
import torch
from model_cases import digits_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from crate_mae import load_model, save_model
from crate_mae.evaluation.backbones import describe_weights, load_backbone
from crate_mae.weights.conversion import write_published
from crate_mae.weights.published import published_state, to_reference
from crate_mae.weights.tensors import (
    CHECKSUM,
    check_safetensors,
    check_zip,
    read_safetensors,
    write_safetensors,
)

TENSORS = {
    "b": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
    "a": torch.linspace(-1, 1, 7, dtype=torch.float64),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "whole": torch.tensor([1, 2, 3]),
    "none": torch.zeros(0, 4),
}


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[key].dtype == value.dtype and torch.equal(found[key], value)
        for key, value in wanted.items()
    )


def flipped(content: bytes, seed: int) -> bytes:
    """The bytes with one bit flipped."""
    place = random.Random(seed).randrange(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def test_the_file_is_what_safetensors_itself_reads(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_safetensors(TENSORS, path, metadata={"z": "2", "format": "pt"})
    assert equal(load_file(path), TENSORS)
    assert equal(read_safetensors(path), TENSORS)
    with safe_open(path, "pt") as file:
        about = dict(file.metadata())
    assert {key: about[key] for key in ("format", "z")} == {"format": "pt", "z": "2"}
    assert len(about[CHECKSUM]) == 64
    again = tmp_path / "again.safetensors"
    write_safetensors(dict(reversed(TENSORS.items())), again, metadata={"format": "pt", "z": "2"})
    assert again.read_bytes() == path.read_bytes(), "equal tensors give equal files"


def test_every_flipped_bit_of_our_tensor_files_is_told(tmp_path: Path) -> None:
    """All bits of a small file: refused, or what was written."""
    path = tmp_path / "t.safetensors"
    small = {"w": torch.tensor([1.5, -2.0]), "v": torch.tensor([[3.0]])}
    write_safetensors(small, path)
    content = path.read_bytes()
    refused = 0
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        try:
            found = read_safetensors(path)
        except ValueError as error:
            refused += "t.safetensors" in str(error)
            continue
        assert equal(found, small)
    assert refused > 7 * len(content)


def test_files_from_elsewhere_are_taken_without_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file(TENSORS, path)
    assert not check_safetensors(path)
    assert equal(read_safetensors(path), TENSORS)


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_of_a_zip_of_pytorch_is_told(tmp_path: Path, seed: int) -> None:
    """PyTorch itself reads most of these files as other numbers."""
    path = tmp_path / "c.pth"
    state = {"w": torch.randn(50, 20, generator=torch.Generator().manual_seed(0))}
    torch.save(state, path)
    assert check_zip(path)
    path.write_bytes(flipped(path.read_bytes(), seed))
    try:
        found = published_state(path)
    except ValueError:
        return
    assert equal(found, state)


def test_a_zip_that_grows_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(ValueError, match="claim more bytes"):
        check_zip(path)


def test_old_files_of_pytorch_have_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    assert not check_zip(path)


def test_a_published_file_of_ours_carries_a_checksum(tmp_path: Path) -> None:
    model = digits_model()
    save_model(model, tmp_path / "w")
    write_published(tmp_path / "w", tmp_path / "ref.safetensors")
    assert check_safetensors(tmp_path / "ref.safetensors")
    assert equal(load_file(tmp_path / "ref.safetensors"), to_reference(model))


def test_a_decoder_carries_one_too(tmp_path: Path) -> None:
    from crate_mae.models.depict import SegmentationDecoder
    from crate_mae.weights.published_depict import save_decoder

    decoder = SegmentationDecoder(dim=8, num_layers=1, num_heads=2, num_classes=3, form="self")
    assert check_safetensors(save_decoder(decoder, tmp_path / "decoder") / "model.safetensors")


def test_an_encoder_of_masked_training_is_no_published_file(tmp_path: Path) -> None:
    from crate_mae.models.crate_encoder import CrateEncoder

    save_model(CrateEncoder(digits_model().config), tmp_path / "encoder")
    for name in ("x.pth", "x.safetensors"):
        with pytest.raises(
            ValueError, match=r"cannot express .*positions 'sincos' \(not 'learned'\)"
        ):
            write_published(tmp_path / "encoder", tmp_path / name)
        assert not (tmp_path / name).exists()


def test_weights_that_were_changed_on_the_way_are_refused(tmp_path: Path) -> None:
    folder = save_model(digits_model(), tmp_path / "w")
    tensors = folder / "model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-3] ^= 1
    tensors.write_bytes(bytes(content))
    for load in (load_model, load_backbone, describe_weights):
        with pytest.raises(ValueError, match="is damaged"):
            load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_every_loader(
    tmp_path: Path, value: float
) -> None:
    model = digits_model()
    with torch.no_grad():
        model.mask_token.view(-1)[0] = value
    folder = save_model(model, tmp_path / "w")
    for load in (load_model, load_backbone):
        with pytest.raises(ValueError, match="not finite, in mask_token"):
            load(folder)
    assert not describe_weights(folder)["finite"], "telling so is what info is for"


def test_headers_that_are_no_headers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    for header in (b"", b"[]", b"{", b'{"__metadata__": 3}', b"[" * 9000, json.dumps(3).encode()):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ValueError, match=r"t\.safetensors"):
            read_safetensors(path)
