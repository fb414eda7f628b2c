"""Decoding against values known beforehand, and against files that are wrong in every way."""

import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from source_cases import Encode, MakeImage

from crate_mae.sources.images import (
    MAX_PIXELS_VARIABLE,
    UnreadableImage,
    decode_image,
    image_suffixes,
    probe_image,
    readable_formats,
    to_channels,
)


def _png_header(width: int, height: int) -> bytes:
    """A PNG whose header announces that size, with next to nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 10))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def _array(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_lossless_files_come_back_exactly(
    make_image: MakeImage, encode: Encode, mode: str, channels: int
) -> None:
    image = make_image(5, 9, mode)
    decoded = decode_image(encode(image), "x")
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (channels, 5, 9)
    assert decoded.is_contiguous()
    np.testing.assert_array_equal(decoded.numpy(), _array(image))


def test_bytes_path_and_pil_image_agree(
    make_image: MakeImage, encode: Encode, tmp_path: Path
) -> None:
    image = make_image(6, 4)
    path = tmp_path / "x.png"
    path.write_bytes(encode(image))
    from_bytes = decode_image(path.read_bytes(), "x")
    assert torch.equal(from_bytes, decode_image(path, "x"))
    assert torch.equal(from_bytes, decode_image(image, "x"))
    assert image.getpixel((0, 0)) is not None  # the caller's image stays open


def test_bilevel_becomes_black_and_white() -> None:
    image = Image.fromarray(np.array([[True, False], [False, True]]))
    assert decode_image(image, "x").tolist() == [[[255, 0], [0, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_one(encode: Encode, kind: str) -> None:
    values = np.array([[0, 1, 256], [32768, 65534, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(values), kind), "x")
    assert decoded.dtype == torch.float32
    np.testing.assert_allclose(decoded[0].numpy(), values / 65535.0, rtol=1e-6)


def test_integer_images_that_exceed_sixteen_bits_are_refused() -> None:
    fits = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert decode_image(fits, "x").tolist() == [[[0.0, 1.0]]]
    with pytest.raises(UnreadableImage, match="do not fit 16 bits"):
        decode_image(Image.fromarray(np.array([[0, 65536]], dtype=np.int32)), "x")


def test_float_images_stay_as_they_are_unless_not_finite(encode: Encode) -> None:
    values = np.array([[-0.5, 0.25], [1.0, 7.5]], dtype=np.float32)
    decoded = decode_image(encode(Image.fromarray(values), "TIFF"), "x")
    np.testing.assert_array_equal(decoded[0].numpy(), values)
    values[0, 0] = np.nan
    with pytest.raises(UnreadableImage, match="not finite"):
        decode_image(encode(Image.fromarray(values), "TIFF"), "x")


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1)])
def test_transparency_is_laid_over_white(
    make_image: MakeImage, encode: Encode, mode: str, channels: int
) -> None:
    image = make_image(7, 8, mode)
    values = np.asarray(image).astype(np.float64)
    alpha = values[..., -1:] / 255
    expected = (values[..., :-1] * alpha + 255 * (1 - alpha)).transpose(2, 0, 1)
    decoded = decode_image(encode(image), "x")
    assert decoded.shape == (channels, 7, 8)
    assert np.abs(decoded.numpy() - expected).max() <= 1


def test_palette_becomes_colour(encode: Encode) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    decoded = decode_image(encode(image), "x")
    assert decoded[:, 0, 0].tolist() == [10, 20, 30]
    assert decoded[:, 1, 0].tolist() == [70, 80, 90]
    see_through = decode_image(encode(image, transparency=1), "x")
    assert see_through[:, 0, 1].tolist() == [255, 255, 255]
    assert see_through[:, 1, 0].tolist() == [70, 80, 90]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_key_is_laid_over_white(encode: Encode, mode: str, key: Any) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 0 if mode == "L" else (9, 9, 9))
    decoded = decode_image(encode(image, transparency=key), "x")
    assert decoded[:, 0, 0].tolist() == [255] * len(decoded)
    assert decoded[:, 0, 1].tolist() == ([0] if mode == "L" else [9, 9, 9])


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La"])
def test_every_other_colour_space_is_converted(make_image: MakeImage, mode: str) -> None:
    decoded = decode_image(make_image(4, 6, mode), "x")
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (1 if mode == "La" else 3, 4, 6)


def test_cmyk_jpeg_has_the_right_colour(encode: Encode) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode_image(encode(ink, "JPEG", quality=100), "x")
    assert decoded.shape == (3, 16, 16)
    red, green, blue = decoded.float().mean(dim=(1, 2)).tolist()
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(encode: Encode, kind: str, orientation: int) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored.T[:, ::-1],
        7: stored.T[::-1, ::-1],
        8: stored.T[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(stored), kind, exif=exif)
    np.testing.assert_array_equal(decode_image(data, "x")[0].numpy(), upright)
    facts = probe_image(data, "x")
    assert (facts.height, facts.width) == upright.shape


def test_damaged_exif_does_not_cost_the_image(encode: Encode) -> None:
    data = encode((8, 6), "JPEG", exif=b"Exif\0\0 this is no directory")
    assert decode_image(data, "x").shape == (3, 8, 6)


def test_an_animation_gives_its_first_frame(encode: Encode) -> None:
    frames = [Image.new("L", (4, 3), value) for value in (10, 200)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert set(decode_image(data, "x").flatten().tolist()) == {10}


def test_truncated_files_are_unreadable(encode: Encode) -> None:
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP"):
        data = encode((64, 64), kind)
        with pytest.raises(UnreadableImage) as caught:
            decode_image(data[: len(data) // 2], f"broken.{kind}")
        assert caught.value.name == f"broken.{kind}"
        assert "\n" not in caught.value.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is only text, whatever it is called", "not an image"),
        (_png_header(100_000, 100_000), "too many pixels"),
        (_png_header(9_000, 9_000), "above the limit of 64000000"),
        (_png_header(12_000, 12_000), "above the limit"),  # where Pillow itself only warns
        (_png_header(0, 5), "damaged|not an image|no pixels"),
        (_png_header(20, 20), "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    ],
)
def test_what_is_not_a_sound_image_is_named_with_its_reason(
    data: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    for form in (data, path):
        with pytest.raises(UnreadableImage, match=reason):
            decode_image(form, "x.jpg")


def test_missing_files_and_folders_are_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UnreadableImage, match="no such file"):
            decode_image(path, "x")


def test_the_size_is_checked_from_the_header_alone() -> None:
    with pytest.raises(UnreadableImage, match="above the limit"):
        probe_image(_png_header(9_000, 9_000), "x")
    facts = probe_image(_png_header(300, 200), "x")
    assert (facts.mode, facts.height, facts.width) == ("RGB", 200, 300)


def test_the_limit_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, encode: Encode
) -> None:
    data = encode((10, 10))
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "99")
    with pytest.raises(UnreadableImage, match="10 x 10 pixels are above the limit of 99"):
        decode_image(data, "x")
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "100")
    assert decode_image(data, "x").shape == (3, 10, 10)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "100000000")
    assert probe_image(_png_header(9_500, 9_500), "x").height == 9_500
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "many")
    with pytest.raises(ValueError, match="positive whole number"):
        decode_image(data, "x")


def test_formats_that_run_programs_are_not_read() -> None:
    assert "EPS" not in readable_formats()
    assert {".jpg", ".jpeg", ".png", ".tif", ".webp"} <= image_suffixes()
    assert not {".eps", ".ps", ".h5", ".mpg"} & image_suffixes()


def test_unreadable_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.png", "two\nlines")))
    assert (error.name, error.reason, str(error)) == ("a.png", "two lines", "a.png: two lines")


_KINDS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO", "PCX", "JPEG2000")


def _encoded(kind: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


_ENCODED = {kind: _encoded(kind) for kind in _KINDS}


def _assert_one_line(reason: str) -> None:
    assert reason
    assert "\n" not in reason


@settings(max_examples=150)
@given(
    kind=st.sampled_from(_KINDS),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    kept=st.floats(0.05, 1),
)
def test_damaged_bytes_give_an_image_or_a_reason_and_nothing_else(
    kind: str, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(_ENCODED[kind])
    for place, value in changes:
        # Half of the changes hit the header, where they do most harm.
        span = 64 if value % 2 else len(data)
        data[int(place * min(span, len(data)))] = value
    try:
        image = decode_image(bytes(data[: max(1, int(kept * len(data)))]), "x")
    except UnreadableImage as error:
        _assert_one_line(error.reason)
    else:
        assert image.ndim == 3
        assert image.dtype in (torch.uint8, torch.float32)
        assert image.isfinite().all()


@settings(max_examples=30)
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3]))
def test_any_shape_survives_a_round_trip(height: int, width: int, channels: int) -> None:
    shape = (height, width, channels)
    values = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    buffer = BytesIO()
    Image.fromarray(values[..., 0] if channels == 1 else values).save(buffer, "PNG")
    decoded = decode_image(buffer.getvalue(), "x")
    np.testing.assert_array_equal(decoded.numpy(), values.transpose(2, 0, 1))


def test_colour_to_grey_is_what_pillow_computes(make_image: MakeImage) -> None:
    image = make_image(50, 60)
    colour = decode_image(image, "x")
    grey = to_channels(colour, 1)
    assert grey.dtype == torch.uint8
    np.testing.assert_array_equal(grey[0].numpy(), np.asarray(image.convert("L")))
    floats = to_channels(colour.float() / 255, 1)
    expected = np.asarray(image, dtype=np.float64) @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(floats[0].numpy(), expected, atol=1e-6)


def test_grey_to_colour_repeats_and_equal_counts_stay() -> None:
    grey = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    colour = to_channels(grey, 3)
    assert colour.shape == (3, 2, 3)
    assert all(torch.equal(band, grey[0]) for band in colour)
    assert to_channels(grey, 1) is grey
    bands = torch.zeros(5, 2, 2)
    assert to_channels(bands, 5) is bands


@pytest.mark.parametrize(("present", "wanted"), [(5, 3), (1, 5), (2, 1), (3, 4)])
def test_other_changes_of_channels_are_refused(present: int, wanted: int) -> None:
    with pytest.raises(ValueError, match=rf"{present} channels .* into {wanted}.*channels="):
        to_channels(torch.zeros(present, 2, 2), wanted)


def test_to_channels_wants_three_axes() -> None:
    with pytest.raises(ValueError, match="three axes"):
        to_channels(torch.zeros(4, 4), 1)
