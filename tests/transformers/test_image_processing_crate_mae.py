"""The image processor does what the package's own preprocessing does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rare_files import key_among_deep_colours, key_among_four_bits, undeclared_alpha

from crate_mae.batches.transforms import prepare
from crate_mae.models.config import Preprocess
from crate_mae.sources.arrays import array_pixels
from crate_mae.sources.images import decode_image, to_channels
from crate_mae.weights.one_folder import processor_keys

ours = pytest.importorskip("crate_mae.transformers")

PREPARED = {
    3: Preprocess(size=(16, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    1: Preprocess(size=(12, 12), channels=1, mean=(0.5,), std=(0.25,)),
}


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture of noise."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(values.squeeze(-1) if bands == 1 else values, mode)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("size", [(50, 70), (70, 33), (16, 12)])
def test_pictures(mode: str, size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    preprocess = PREPARED[channels]
    processor = ours.CrateMAEImageProcessor(**processor_keys(preprocess))
    image = picture(mode, size)
    expected = prepare([to_channels(decode_image(image, "x"), channels)], preprocess)
    found = processor(image, return_tensors="pt").pixel_values
    assert (found - expected).abs().max() <= 1e-6
    image.save(tmp_path / "x.png")
    from_file = processor(str(tmp_path / "x.png"), return_tensors="pt").pixel_values
    assert (from_file - expected).abs().max() <= 1e-6


RARE = (key_among_four_bits, key_among_deep_colours, undeclared_alpha)


@pytest.mark.parametrize("make", RARE, ids=lambda make: make.__name__)
def test_rare_files_are_read_as_everywhere_else(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    """What only the file tells is known of a path, not of an image that Pillow has opened."""
    processor = ours.CrateMAEImageProcessor(**processor_keys(PREPARED[3]))
    path = make(tmp_path / ("x.tga" if make is undeclared_alpha else "x.png"))
    expected = prepare([to_channels(decode_image(path, "x"), 3)], PREPARED[3])
    found = processor(str(path), return_tensors="pt").pixel_values
    assert torch.equal(found, expected)


@pytest.mark.parametrize("given", ["path", "image"])
def test_tiff_files_are_read_as_everywhere_else_or_refused(given: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    processor = ours.CrateMAEImageProcessor(**processor_keys(PREPARED[3]))
    values, path = np.random.default_rng(0).integers(0, 65536, (40, 50)), tmp_path / "x.tif"

    def read(kind: type, **options: str) -> torch.Tensor:
        tifffile.imwrite(path, values.astype(kind), **options)
        with Image.open(path) as opened:
            image = str(path) if given == "path" else opened
            found: torch.Tensor = processor(image, return_tensors="pt").pixel_values
        return found

    found = read(np.uint16, photometric="miniswhite")
    expected = prepare([to_channels(decode_image(path, "x"), 3)], PREPARED[3])
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"a TIFF of signed 32-bit integers, .* give the array"):
        read(np.int32)


def test_arrays_of_either_order_and_several_images() -> None:
    processor = ours.CrateMAEImageProcessor(**processor_keys(PREPARED[3]))
    array = np.random.default_rng(1).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    expected = prepare([torch.from_numpy(array).permute(2, 0, 1)], PREPARED[3])
    found = processor([array, array.transpose(2, 0, 1).copy()], return_tensors="pt").pixel_values
    assert found.shape == (2, 3, 16, 24)
    assert (found - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64, np.bool_])
def test_arrays_of_other_types_have_the_scale_of_the_package(dtype: type, as_tensor: bool) -> None:
    processor = ours.CrateMAEImageProcessor(**processor_keys(PREPARED[3]))
    whole = np.random.default_rng(2).integers(0, 65536, (20, 31, 3)).astype(np.uint16)
    array = whole if dtype is np.uint16 else (whole / 65535 * 2 - 0.5).astype(dtype)
    expected = prepare([array_pixels(np.moveaxis(array, -1, 0), "x")], PREPARED[3])
    for given in (array, array.transpose(2, 0, 1).copy()):
        image = torch.from_numpy(given) if as_tensor else given
        found = processor(image, return_tensors="pt").pixel_values
        assert (found - expected).abs().max() <= 1e-6


def test_arrays_of_foreign_byte_order_and_backward_steps() -> None:
    processor = ours.CrateMAEImageProcessor(**processor_keys(PREPARED[3]))
    whole = np.random.default_rng(3).integers(0, 65536, (20, 31, 3)).astype(np.uint16)
    expected = processor(whole, return_tensors="pt").pixel_values
    foreign = processor(whole.astype(">u2"), return_tensors="pt").pixel_values
    assert torch.equal(foreign, expected)
    mirrored = processor(whole[:, ::-1], return_tensors="pt").pixel_values
    assert torch.equal(mirrored, processor(whole[:, ::-1].copy(), return_tensors="pt").pixel_values)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.int8])
def test_integers_without_a_scale_are_refused(dtype: type) -> None:
    processor = ours.CrateMAEImageProcessor(**processor_keys(PREPARED[3]))
    with pytest.raises(ValueError, match=f"type {np.dtype(dtype)} have no known scale: give uint8"):
        processor(np.ones((20, 31, 3), dtype), return_tensors="pt")
