"""Masks as numbers: what is transparent is background, whatever lies below it."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from source_cases import Encode

from crate_mae.sources.images import UnreadableImage, decode_class_values, decode_labels

GREY = np.array([[0, 1, 1], [2, 200, 255]], np.uint8)
ALPHA = np.array([[0, 0, 255], [255, 128, 255]], np.uint8)
COLOURS = np.zeros((2, 3, 3), np.uint8)
COLOURS[0, 0], COLOURS[0, 1:], COLOURS[1, 1], COLOURS[1, 2] = 255, 90, 4, (224, 224, 192)
"""White (clear), two of 90 (the first clear), black, nearly black, the cream of void."""


def _with_alpha(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values)
    image.putalpha(Image.fromarray(ALPHA))
    return image


def test_clear_pixels_of_colours_are_background(encode: Encode) -> None:
    for image in (_with_alpha(COLOURS), Image.fromarray(COLOURS)):
        clear = image.mode == "RGBA"
        numbers = decode_labels(encode(image), "x")
        assert numbers.tolist() == [[int(not clear), int(not clear), 1], [0, 1, 255]]


def test_clear_pixels_of_grey_levels_are_zero_and_the_rest_stay(encode: Encode) -> None:
    assert decode_labels(encode(_with_alpha(GREY)), "x").tolist() == [[0, 0, 1], [2, 200, 255]]
    assert decode_labels(encode(Image.fromarray(GREY)), "x").tolist() == GREY.tolist()


@pytest.mark.parametrize("clear", [1, 2])
def test_a_clear_entry_of_a_palette_or_a_grey_level_is_zero(encode: Encode, clear: int) -> None:
    values = np.array([[0, 1, 2, 3]], np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 224, 224, 192])
    for image in (palette, Image.fromarray(values)):
        data = encode(image, transparency=clear)
        assert Image.open(BytesIO(data)).has_transparency_data
        expected = np.where(values == clear, 0, values)
        assert decode_labels(data, "x").tolist() == expected.tolist()
        assert decode_labels(encode(image), "x").tolist() == values.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_numbers_of_few_bits_are_those_that_were_stored(bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (5, 8)).astype(np.uint8)
    packed = np.unpackbits(values[..., None], axis=-1)[..., -bits:].reshape(5, -1)
    head = struct.pack(">IIBBBBB", 8, 5, bits, 0, 0, 0, 0)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in packed)
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(name + body))
        data += struct.pack(">I", len(body)) + name + body + checksum
    np.testing.assert_array_equal(decode_labels(data, "x"), values)
    np.testing.assert_array_equal(decode_class_values(data, "x"), values)


def test_jpeg_is_no_mask(encode: Encode) -> None:
    data = encode(Image.fromarray(GREY), "JPEG")
    for decode in (decode_labels, decode_class_values):
        with pytest.raises(UnreadableImage, match="JPEG changes the values of masks: save them as"):
            decode(data, "x")
