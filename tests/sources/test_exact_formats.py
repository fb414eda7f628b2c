"""Colours and transparency as PNG, GIF, TGA, FITS and TIFF define them, of files built by hand."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_cases import opened

from crate_mae.sources.describe import describe_source
from crate_mae.sources.images import (
    UnreadableImage,
    decode_image,
    decode_labels,
    probe_image,
)

RNG = np.random.default_rng(0)


def _png(rows: list[bytes], width: int, depth: int, kind: int, key: bytes) -> bytes:
    """A PNG of filtered rows, as its standard has it, with a transparent colour."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", head), (b"tRNS", key), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*both) for both in chunks)


def _packed(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of numbers of so many bits, the first in the highest bits, padded to whole bytes."""
    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values]
    padded = [row.ljust(-(-len(row) // 8) * 8, "0") for row in rows]
    return [int(row, 2).to_bytes(len(row) // 8, "big") for row in padded]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_clear_grey_is_laid_over_white_at_any_depth(bits: int) -> None:
    most = (1 << bits) - 1
    values = RNG.integers(0, 1 << bits, (5, 7))
    values[0], key = np.arange(7) % (most + 1), 1
    data = _png(_packed(values, bits), 7, bits, 0, struct.pack(">H", key))
    scale = 1 if bits == 16 else 255
    expected = np.where(values == key, scale, values * scale / most)
    np.testing.assert_allclose(decode_image(data, "x")[0].numpy(), expected, rtol=1e-6)
    assert (values == key).any()
    assert bits == 1 or not decode_labels(data, "x").numpy()[values == key].any()


def test_a_clear_colour_of_sixteen_bits_is_laid_over_white() -> None:
    values = RNG.integers(0, 65536, (5, 7, 3)).astype(">u2")
    data = _png([row.tobytes() for row in values], 7, 16, 2, values[2, 3].tobytes())
    expected = (values >> 8).astype(np.uint8)
    expected[2, 3] = 255
    np.testing.assert_array_equal(decode_image(data, "x").numpy(), np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize("animated", [False, True])
def test_what_the_first_frame_of_a_gif_leaves_is_clear(animated: bool) -> None:
    frame = Image.new("P", (4, 3), 1)
    frame.putpalette([9, 9, 9, 255, 0, 0])
    kept = BytesIO()
    more = {"save_all": True, "append_images": [Image.new("P", (4, 3), 0)]} if animated else {}
    frame.save(kept, "GIF", optimize=False, **more)
    data = bytearray(kept.getvalue())
    struct.pack_into("<HH", data, 6, 8, 6)  # a larger canvas
    place = data.index(b"," + struct.pack("<HHHH", 0, 0, 4, 3))
    struct.pack_into("<HH", data, place + 1, 2, 1)
    image = decode_image(bytes(data), "x").numpy()
    expected = np.full((3, 6, 8), 255)
    expected[1:, 1:4, 2:6] = 0
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("bits_of_alpha", [0, 8])
def test_the_fourth_byte_of_a_tga_is_alpha_where_it_says_so(bits_of_alpha: int) -> None:
    values = RNG.integers(0, 256, (3, 4, 4), np.uint8)  # blue, green, red, the rest
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 4, 3, 32, 0x20 | bits_of_alpha)
    expected = values[..., 2::-1].astype(float)
    if bits_of_alpha:
        alpha = values[..., 3:] / 255
        expected = expected * alpha + 255 * (1 - alpha)
    image = decode_image(head + values.tobytes(), "x.tga").numpy()
    np.testing.assert_allclose(image, np.moveaxis(expected, -1, 0), atol=1)


def test_colours_of_a_palette_that_were_written_with_eight_bits(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values, colours = RNG.integers(0, 256, (5, 7), np.uint8), RNG.integers(0, 256, (3, 256))
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, values, photometric="palette", colormap=colours.astype(np.uint16))
    for image in (decode_image(path, "x"), opened(f"tiff:{path}").load(0).image):
        np.testing.assert_array_equal(image.numpy(), colours[:, values])


def test_packed_values_of_twelve_bits_fill_the_range(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = RNG.integers(0, 4096, (4, 8))
    data = b"".join(_packed(values, 12))
    short = [(256, 8), (257, 4), (258, 12), (259, 1), (262, 1), (277, 1), (278, 4)]
    tags = [(tag, 3, value) for tag, value in short] + [(273, 4, 8), (279, 4, len(data))]
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags)
    )
    after = struct.pack("<H", len(tags)) + entries + bytes(4)
    path = tmp_path / "x.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + after)
    np.testing.assert_array_equal(tifffile.imread(path), values)
    np.testing.assert_allclose(decode_image(path, "x")[0].numpy(), values / 4095, rtol=1e-6)


# -- FITS ---------------------------------------------------------------------------------------


def _header(first: str, **cards: int) -> bytes:
    lines = [first, *(f"{key:<8}= {value:>20}" for key, value in cards.items()), "END"]
    return "".join(line.ljust(80) for line in lines).ljust(2880).encode()


def _unit(first: str, values: np.ndarray, **cards: int) -> bytes:
    axes = {f"NAXIS{n}": size for n, size in enumerate(reversed(values.shape), 1)}
    data = values.astype(">i2").tobytes()
    head = _header(first, BITPIX=16, NAXIS=values.ndim, **axes, **cards)
    return head + data + bytes(-len(data) % 2880)


EMPTY = _header("SIMPLE  =                    T", BITPIX=8, NAXIS=0)


def test_an_image_in_an_extension_has_the_scale_of_its_own_header() -> None:
    values = RNG.integers(0, 65536, (5, 7))
    data = EMPTY + _unit("XTENSION= 'IMAGE   '", values - 32768, BZERO=32768)
    image = decode_image(data, "x")[0].numpy()
    np.testing.assert_allclose(image, values[::-1] / 65535, rtol=1e-6)
    with pytest.raises(UnreadableImage, match="FITS of negative integers"):
        decode_image(EMPTY + _unit("XTENSION= 'IMAGE   '", values - 32768), "x")


def test_pixels_without_a_value_are_refused_and_further_planes_told(tmp_path: Path) -> None:
    values = RNG.integers(0, 1000, (5, 7))
    first = "SIMPLE  =                    T"
    decode_image(_unit(first, values, BLANK=2000), "x")
    values[1, 2] = 2000
    with pytest.raises(UnreadableImage, match=r"no value \(BLANK 2000\): fill them in"):
        decode_image(_unit(first, values, BLANK=2000), "x")
    (tmp_path / "cube.fits").write_bytes(_unit(first, RNG.integers(0, 1000, (3, 5, 7))))
    (entry,) = describe_source(opened(f"imagefolder:{tmp_path}")).passed_over
    assert "2 more planes (saved as .npy, all are read), not read: cube.fits" in str(entry)


def test_a_value_that_stands_for_no_data_is_told(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "height.tif"
    tag = (42113, 2, 6, "-9999", True)  # GDAL_NODATA
    tifffile.imwrite(path, np.array([[0.5, -9999]], np.float32), extratags=[tag])
    assert probe_image(path, "x").no_data == "-9999"
    notes = " ".join(describe_source(opened(f"imagefolder:{tmp_path}")).notes)
    assert "1 images name a value that stands for no data (-9999 (1))" in notes
