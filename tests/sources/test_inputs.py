"""Files, folders and addresses as a command line names them, and masks drawn as pictures."""

import re
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from data_cases import MODEL, write_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from source_cases import Write

from crate_mae.evaluation.reconstruction import pixel_mask
from crate_mae.models.config import ModelConfig
from crate_mae.sources.address import is_address
from crate_mae.sources.found import Reading
from crate_mae.sources.images import UnreadableImage
from crate_mae.sources.inputs import open_images


def test_addresses_are_told_from_paths() -> None:
    for text in ("digits", "npy:x.npy", "hf:a/b:c", "wds:{0..3}.tar", "parquet:x"):
        assert is_address(text)
    for text in ("digits/1.png", "npy", "./digits", "x.png", "digit", "digits:x", "http://x", ""):
        assert not is_address(text)


def test_files_and_folders_have_no_keys(write: Write, tmp_path: Path) -> None:
    file, folder = write("folder/1.png"), str(tmp_path / "folder")
    for place in (str(file), folder):
        for reading in (Reading(label_key="kind"), Reading(image_key="photo", label_key="none")):
            with pytest.raises(ValueError, match=rf"^{re.escape(place)} has no columns"):
                open_images([place], reading=reading)
        assert len(open_images([place], reading=Reading(label_key="none"))) == 1
    with pytest.raises(FileNotFoundError):
        open_images(["nowhere"], reading=Reading(label_key="kind"))


def test_files_keep_the_order_given_and_folders_are_sorted(write: Write, tmp_path: Path) -> None:
    last, first = write("z.png", (3, 4)), write("a.png")
    for name in ("folder/b/2.PNG", "folder/a.jpeg", "folder/.hidden/3.png"):
        write(name)
    write("folder/notes.txt", b"no image")
    source = open_images([str(last), str(first), str(tmp_path / "folder")])
    names = [source.name(i) for i in range(len(source))]
    folder = tmp_path / "folder"
    assert names == [str(p) for p in (last, first, folder / "a.jpeg", folder / "b" / "2.PNG")]
    sample = source.load(0)
    assert (sample.name, sample.label, source.label(0)) == (str(last), None, None)
    assert sample.image.shape == (3, 3, 4)
    assert (source.facts(0).height, source.facts(0).width) == (3, 4)
    assert source.class_names is None


def test_a_file_named_twice_comes_once(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.png")
    write("b.png")
    monkeypatch.chdir(tmp_path)
    source = open_images(["b.png", "a.png", "./b.png", "."])
    assert [source.name(i) for i in range(len(source))] == ["b.png", "a.png"]
    before = source.fingerprint()
    write("b.png", (9, 9))
    assert source.fingerprint() != before


def test_limits(write: Write, tmp_path: Path) -> None:
    for number in range(4):
        write(f"{number}.png")
    assert len(open_images([str(tmp_path)], limit=3)) == 3
    assert len(open_images([str(tmp_path)], limit=9)) == 4
    assert len(open_images(["digits"], limit=3)) == 3
    assert len(open_images(["digits"], split="all")) == 1797
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        open_images([str(tmp_path)], limit=0)


def test_what_cannot_be_opened_is_explained(write: Write, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image = str(write("a.png"))
    with pytest.raises(FileNotFoundError, match="no image, folder or known address at nowhere"):
        open_images([image, "nowhere"])
    with pytest.raises(ValueError, match="empty holds no image files"):
        open_images([image, str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="digits is a data address: name it alone"):
        open_images([image, "digits"])
    with pytest.raises(ValueError, match="split 'test' needs a data address"):
        open_images([image], split="test")
    with pytest.raises(ValueError, match="no images were named"):
        open_images([])
    broken = open_images([str(write("b.png", b"torn"))])
    with pytest.raises(UnreadableImage, match=r"b\.png: not an image"):
        broken.load(0)


def test_a_stream_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    address = write_shards(tmp_path / "shards", [2])
    with pytest.raises(ValueError, match="is a stream"):
        open_images([address])


# Masks drawn as pictures


def _picture(removed: np.ndarray, factor: int, mode: str = "L") -> Image.Image:
    """The mask with each patch `factor` pixels wide, white where it is removed."""
    pixels = np.kron(removed, np.ones((factor, factor))).astype(np.uint8) * 255
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def removed() -> np.ndarray:
    """A mask on the 4x4 grid of the model."""
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = mask[0] = mask[3, 3] = True
    return mask


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "RGBA"])
@pytest.mark.parametrize("factor", [2, 16])
def test_bright_pixels_are_removed(
    mode: str, factor: int, removed: np.ndarray, tmp_path: Path
) -> None:
    _picture(removed, factor, mode).save(tmp_path / "mask.png")
    mask = pixel_mask(tmp_path / "mask.png", MODEL)
    assert mask.shape == (1, 16)
    assert mask.dtype == torch.bool
    assert mask[0].tolist() == removed.flatten().tolist()


@pytest.mark.parametrize(("level", "bright"), [(127, False), (128, True)])
def test_half_of_white_is_bright(level: int, bright: bool, tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, :4], pixels[:2, :2] = level, 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert int(pixel_mask(tmp_path / "mask.png", MODEL).sum()) == (8 if bright else 1)


@pytest.mark.parametrize(("level", "bright"), [(32767, False), (32768, True)])
def test_sixteen_bits_have_their_own_white(level: int, bright: bool, tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint16)
    pixels[:, :4], pixels[:2, :2] = level, 65535
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert int(pixel_mask(str(tmp_path / "mask.png"), MODEL).sum()) == (8 if bright else 1)


def test_a_mask_is_fitted_as_images_are(tmp_path: Path) -> None:
    model = ModelConfig(image_size=(8, 16), patch_size=(4, 2), dim=16, depth=1, num_heads=2,
                        decoder_depth=1, decoder_num_heads=2)  # fmt: skip
    pixels = np.zeros((40, 40), np.uint8)
    pixels[10:20] = 255  # the upper half of the part that remains, rows 10 to 30
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert pixel_mask(tmp_path / "mask.png", model)[0].tolist() == [True] * 8 + [False] * 8


def test_unusable_masks_are_explained(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no mask file .*none\.png"):
        pixel_mask(tmp_path / "none.png", MODEL)
    with pytest.raises(FileNotFoundError, match="there is no mask file"):
        pixel_mask(tmp_path, MODEL)
    with pytest.raises(ValueError, match=r"the mask .*text\.png: not an image"):
        pixel_mask(write("text.png", b"text"), MODEL)
    for level, count in ((0, 0), (255, 16)):
        Image.new("L", (8, 8), level).save(tmp_path / "flat.png")
        with pytest.raises(ValueError, match=rf"the mask .*flat\.png: .* removes {count} of 16"):
            pixel_mask(tmp_path / "flat.png", MODEL)


def test_a_varied_choice_takes_classes_in_turn() -> None:
    source = open_images(["digits"], limit=10, varied=True)
    assert {source.label(index) for index in range(10)} == set(range(10))
    twice = open_images(["digits"], limit=23, varied=True)
    counts = [sum(twice.label(i) == digit for i in range(23)) for digit in range(10)]
    assert sorted(counts) == [2] * 7 + [3] * 3
    again = open_images(["digits"], limit=23, varied=True)
    assert [again.name(i) for i in range(23)] == [twice.name(i) for i in range(23)]


@given(count=st.integers(1, 40), limit=st.integers(1, 45))
@settings(max_examples=30, deadline=None)
def test_a_varied_choice_is_spread_over_the_files(count: int, limit: int) -> None:
    with TemporaryDirectory() as folder:
        for index in range(count):
            (Path(folder) / f"{index:03d}.png").touch()
        chosen = open_images([folder], limit=limit, varied=True)
        numbers = [int(Path(chosen.name(i)).stem) for i in range(len(chosen))]
    assert len(numbers) == min(limit, count)
    assert numbers[0] == 0
    gaps = {b - a for a, b in pairwise(numbers)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1, "evenly"
    assert count - numbers[-1] <= max(gaps, default=count) + 1, "to the end"
