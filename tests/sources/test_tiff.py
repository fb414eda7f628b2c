"""TIFF, FITS and WebP as their formats define them, against tifffile and NumPy."""

import builtins
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from source_cases import labels_of, opened

from crate_mae.common.file_kinds import file_kind
from crate_mae.sources.address import open_source
from crate_mae.sources.images import UnreadableImage, decode_image, probe_image

tifffile = pytest.importorskip("tifffile")

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (6, 7, 4), np.uint16)


def _write(path: Path, array: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("rows", [None, 2])
def test_separate_planes_are_those_of_the_same_pixels_together(
    tmp_path: Path, order: str, rows: int | None
) -> None:
    together, apart = DEEP[..., :3], np.moveaxis(DEEP[..., :3], -1, 0)
    options: dict[str, Any] = {"photometric": "rgb", "byteorder": order, "rowsperstrip": rows}
    one = _write(tmp_path / "1.tif", together, **options)
    two = _write(tmp_path / "2.tif", apart, planarconfig="separate", **options)
    np.testing.assert_array_equal(tifffile.imread(two), apart)  # what is in it
    image = decode_image(two, "x").numpy()
    np.testing.assert_array_equal(image, apart >> 8)
    np.testing.assert_array_equal(image, decode_image(one, "x").numpy())
    assert probe_image(two, "x").height == 6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(tmp_path: Path, dtype: type) -> None:
    values: np.ndarray = DEEP[..., 0].astype(dtype)
    path = _write(tmp_path / "x.tif", values, photometric="miniswhite")
    top = np.iinfo(dtype).max
    image = decode_image(path, "x").numpy()[0]
    expected = top - values
    np.testing.assert_allclose(image, expected if dtype is np.uint8 else expected / 65535, 1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_signed_integers_are_refused_with_the_remedy(tmp_path: Path, dtype: type) -> None:
    path = _write(tmp_path / "x.tif", np.full((6, 7), -3, dtype))
    with pytest.raises(UnreadableImage, match="signed integers have no known scale: save them as"):
        decode_image(path, "x")


def test_bands_and_floats_through_tifffile(tmp_path: Path) -> None:
    bands = _write(tmp_path / "4.tif", DEEP, photometric="minisblack", planarconfig="contig")
    image = decode_image(bands, "x").numpy()
    np.testing.assert_allclose(image, np.moveaxis(DEEP, -1, 0) / 65535, rtol=1e-6)
    assert probe_image(bands, "x").mode == "4 x uint16"
    floats = RNG.normal(size=(6, 7, 3)).astype(np.float32)
    image = decode_image(_write(tmp_path / "f.tif", floats, photometric="rgb"), "x").numpy()
    np.testing.assert_array_equal(image, np.moveaxis(floats, -1, 0))


def test_without_tifffile_the_refusal_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bands = _write(tmp_path / "4.tif", DEEP, photometric="minisblack", planarconfig="contig")
    apart = np.moveaxis(DEEP[..., :3], -1, 0)
    planes = _write(tmp_path / "3.tif", apart, photometric="rgb", planarconfig="separate")
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "tifffile":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    words = {bands: "TIFF of 4 bands of 16-bit integers", planes: "3 separate planes of 16 bits"}
    for path, text in words.items():
        for read in (decode_image, probe_image):
            with pytest.raises(UnreadableImage, match=rf"{text}.*pip install .crate-mae\[tiff\]"):
                read(path, "x")
    with pytest.raises(ImportError, match="crate-mae"):
        open_source(f"tiff:{bands}")


def test_a_channel_that_is_not_read_is_told(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "x.tif", DEEP.astype(np.uint8), photometric="rgb", extrasamples=["unspecified"]
    )
    assert probe_image(path, "x").unread == "the last of 4 channels (tiff:PATH reads all)"
    source = opened(f"tiff:{path}")
    np.testing.assert_array_equal(
        source.load(0).image.numpy(), np.moveaxis(DEEP.astype(np.uint8), -1, 0)
    )


def test_pages_and_bands_as_a_source(tmp_path: Path) -> None:
    stack = RNG.integers(0, 65536, (5, 6, 7), np.uint16)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _write(tmp_path / "a" / "stack.tif", stack, photometric="minisblack")
    _write(tmp_path / "b" / "bands.tif", DEEP, photometric="minisblack", planarconfig="contig")
    (tmp_path / "b" / "text.tif").write_text("no TIFF")
    source = opened(f"tiff:{tmp_path}")
    assert source.class_names == ("a", "b")
    assert labels_of(source) == [0] * 5 + [1, 1]
    for page in range(5):
        sample = source.load(page)
        assert sample.name == f"a/stack.tif/{page:04d}"
        np.testing.assert_allclose(sample.image.numpy()[0], stack[page] / 65535, rtol=1e-6)
    assert source.load(5).image.shape == (4, 6, 7)
    assert source.facts(5).mode == "4 x uint16"
    with pytest.raises(UnreadableImage, match=r"b/text\.tif"):
        source.load(6)
    times = RNG.integers(0, 256, (2, 3, 6, 7), np.uint8)
    path = _write(tmp_path / "x.tif", times, imagej=True, metadata={"axes": "TCYX"})
    source = opened(f"tiff:{path}")
    assert len(source) == 2
    np.testing.assert_array_equal(source.load(1).image.numpy(), times[1])


def _fits(array: np.ndarray, cards: Mapping[str, float] | None = None) -> bytes:
    """A FITS file as the standard defines it: cards of 80 letters, big-endian, last row first."""
    bits = {"uint8": 8, "int16": 16, "int32": 32, "float32": -32}[array.dtype.name]
    numbers = {"BITPIX": bits, "NAXIS": 2, "NAXIS1": array.shape[1], "NAXIS2": array.shape[0]}
    lines = [f"{'SIMPLE':<8}= {'T':>20}"]
    lines += [f"{key:<8}= {value!s:>20}" for key, value in {**numbers, **(cards or {})}.items()]
    header = "".join(line.ljust(80) for line in [*lines, "END"])
    data = array[::-1].astype(array.dtype.newbyteorder(">")).tobytes()
    return header.ljust(2880).encode() + data + bytes(-len(data) % 2880)


def test_fits_values_are_scaled_as_its_header_says() -> None:
    values = RNG.integers(0, 65536, (3, 4), np.int64)
    unsigned = _fits((values - 32768).astype(np.int16), {"BZERO": 32768})
    np.testing.assert_allclose(decode_image(unsigned, "x")[0], values / 65535, rtol=1e-6)
    stored = RNG.integers(-100, 100, (3, 4)).astype(np.int16)
    physical = _fits(stored, {"BSCALE": 0.25, "BZERO": -7.5})
    np.testing.assert_allclose(decode_image(physical, "x")[0], stored * 0.25 - 7.5, rtol=1e-6)
    with pytest.raises(UnreadableImage, match="negative integers"):
        decode_image(_fits(np.full((3, 4), -1, np.int16)), "x")


def test_frames_that_do_not_cover_a_clear_canvas(tmp_path: Path) -> None:
    frame = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    frame.paste((255, 0, 0, 255), (0, 0, 4, 6))
    other = Image.new("RGBA", (8, 6), (0, 0, 255, 255))
    path = tmp_path / "x.webp"
    frame.save(path, save_all=True, append_images=[other], lossless=True)
    data = bytearray(path.read_bytes())
    assert data[8:16] == b"WEBPVP8X"
    assert data[20] & 0x02  # animated
    data[20] &= ~0x10  # without alpha, as writers say whose frames have none themselves
    image = decode_image(bytes(data), "x").numpy()
    assert (image[:, :, 4:] == 255).all()  # clear over white
    assert (image[0, :, :4] == 255).all()
    assert (image[1:, :, :4] == 0).all()


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n<HTML>\n", "a web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC.*convert"),
        (b"\xff\x0a\xfa", "JPEG XL"),
        (b"<?xml version='1.0'?><Error>", "XML, perhaps a server's error"),
        (b"%PDF-1.4", "PDF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"some words", "a text file"),
    ],
)
def test_what_a_file_is_that_is_no_image(head: bytes, words: str) -> None:
    assert file_kind(head) is not None
    with pytest.raises(UnreadableImage, match=f"not an image in a known format, but .*{words}"):
        decode_image(head + b" " * 10, "x")
    assert file_kind(b"\x01\x02\x03\x04nothing known") is None


@pytest.mark.parametrize("white", [False, True])
def test_pages_written_one_by_one_are_images(tmp_path: Path, white: bool) -> None:
    pages = RNG.integers(0, 256, (5, 6, 7), np.uint8)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for page in pages:
            file.write(page, photometric="miniswhite" if white else "minisblack")
    source = opened(f"tiff:{tmp_path / 'x.tif'}")
    read = np.stack([source.load(index).image.numpy()[0] for index in range(len(source))])
    np.testing.assert_array_equal(read, 255 - pages if white else pages)
    assert source.found.passed_over == ()
    assert source.name(4) == "x.tif/0004"


def test_pages_of_another_size_or_type_are_counted(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (4, 9, 8), np.uint8)
    first = [Image.fromarray(values[0]), Image.fromarray(values[1, :, :5]),
             Image.fromarray(values[2]), Image.fromarray(values[3, :4])]  # fmt: skip
    first[0].save(tmp_path / "a.tif", save_all=True, append_images=first[1:])
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(values[:2], photometric="minisblack")
        file.write(values[:3].astype(np.float32), photometric="minisblack")
    source = opened(f"tiff:{tmp_path}")
    read = [source.load(index).image.numpy()[0] for index in range(len(source))]
    assert source.name(1) == "a.tif/0001"
    np.testing.assert_array_equal(np.stack(read), values[[0, 2, 0, 1]])
    (entry,) = source.found.passed_over
    assert str(entry) == "5 pages of another size or type than the first (a.tif 2, b.tif 3)"


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
@pytest.mark.parametrize("white", [False, True])
def test_few_bits_go_from_black_to_white(tmp_path: Path, bits: int, white: bool) -> None:
    """As Pillow has them, which reads the first page."""
    values = RNG.integers(0, 1 << bits, (3, 6, 8), np.uint8)
    path = tmp_path / "x.tif"
    photometric = "miniswhite" if white else "minisblack"
    tifffile.imwrite(path, values, bitspersample=bits, photometric=photometric)
    source = opened(f"tiff:{path}")
    read = np.stack([source.load(index).image.numpy()[0] for index in range(3)])
    expected = np.rint(values * (255 / ((1 << bits) - 1))).astype(np.uint8)
    np.testing.assert_array_equal(read, 255 - expected if white else expected)
    if bits in (1, 2, 4):
        np.testing.assert_array_equal(read[0], decode_image(path, "x")[0].numpy())


def test_numbers_of_a_palette_become_its_colours(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (2, 3, 6, 7), np.uint8)
    path, colours = tmp_path / "x.tif", RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    tifffile.imwrite(path, values, photometric="palette", colormap=colours)
    source = opened(f"tiff:{path}")
    assert len(source) == 6
    assert source.facts(0).mode == "3 x uint8"
    read = np.stack([source.load(index).image.numpy() for index in range(6)])
    pages = values.reshape(6, 6, 7)
    np.testing.assert_array_equal(read, (colours >> 8)[:, pages].transpose(1, 0, 2, 3))
    np.testing.assert_array_equal(read[0], decode_image(path, "x").numpy())


def test_a_file_without_a_page_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(b"II*\0\0\0\0\0")
    source = opened(f"tiff:{tmp_path}")
    with pytest.raises(UnreadableImage, match=r"x\.tif: .*no page"):
        source.load(0)


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint32])
def test_packed_values_of_the_other_byte_order(
    tmp_path: Path, dtype: type, compression: str
) -> None:
    values: np.ndarray = (DEEP[..., 0] / 7).astype(dtype)
    path = _write(tmp_path / "x.tif", values, byteorder=">", compression=compression)
    if dtype is np.uint32:
        with pytest.raises(UnreadableImage, match="uint32 have no known scale"):
            decode_image(path, "x")
        return
    np.testing.assert_array_equal(decode_image(path, "x").numpy()[0], values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("packed", [None, "lzw"])
@pytest.mark.parametrize(
    ("kind", "photometric"),
    [("unassalpha", "minisblack"), ("assocalpha", "minisblack"), ("unassalpha", "miniswhite")],
)
def test_separate_grey_and_alpha_are_laid_over_white(
    tmp_path: Path, dtype: type, packed: str | None, kind: str, photometric: str
) -> None:
    top = np.iinfo(dtype).max
    alpha: np.ndarray = DEEP[..., 1].astype(dtype)
    grey: np.ndarray = DEEP[..., 0].astype(dtype)
    share = alpha / top
    if kind == "assocalpha":
        grey = np.minimum(grey, alpha)
        expected = grey / top + 1 - share
    else:
        shown = 1 - grey / top if photometric == "miniswhite" else grey / top
        expected = shown * share + 1 - share
    path = _write(
        tmp_path / "x.tif", np.stack([grey, alpha]), photometric=photometric, compression=packed,
        planarconfig="separate", extrasamples=[kind],
    )  # fmt: skip
    image = decode_image(path, "x")
    found = image.numpy().astype(float) / (255 if dtype is np.uint8 else 1)
    assert found.shape == (1, 6, 7)
    np.testing.assert_allclose(found[0], expected, atol=1 / 255 if dtype is np.uint8 else 1e-6)


def test_colours_multiplied_by_alpha_in_separate_planes(tmp_path: Path) -> None:
    alpha = (DEEP[..., 3] >> 8).astype(np.uint8)
    colours = np.minimum(np.moveaxis(DEEP[..., :3] >> 8, -1, 0).astype(np.uint8), alpha)
    expected = colours.astype(int) + 255 - alpha
    for factor, dtype in ((1, np.uint8), (257, np.uint16)):
        values = (np.stack([*colours, alpha]).astype(np.uint32) * factor).astype(dtype)
        path = _write(
            tmp_path / f"{factor}.tif", values, photometric="rgb", planarconfig="separate",
            extrasamples=["assocalpha"],
        )  # fmt: skip
        found = decode_image(path, "x").numpy().astype(int)
        assert np.abs(found - expected).max() <= 1


def test_bits_and_pages_that_are_not_read_are_told(tmp_path: Path) -> None:
    rgb = _write(tmp_path / "rgb.tif", DEEP[..., :3], photometric="rgb")
    assert probe_image(rgb, "x").unread == "the lower 8 of 16 bits (tiff:PATH reads all)"
    halves = _write(tmp_path / "h.tif", np.zeros((3, 6, 7), np.float16), photometric="minisblack")
    assert probe_image(halves, "x").unread == "2 more pages (tiff:PATH reads all)"
    five = _write(tmp_path / "5.tif", np.zeros((6, 7, 5), np.uint8), photometric="rgb")
    assert probe_image(five, "x").unread == "the last 2 of 5 channels (tiff:PATH reads all)"
    header = b"P6 7 6 65535\n" + DEEP[..., :3].astype(">u2").tobytes()
    assert probe_image(header, "x").unread == "the lower 8 of 16 bits (saved as .npy, all are read)"
    assert probe_image(b"P6 7 6 255\n" + bytes(126), "x").unread is None
    deep = _png(DEEP[..., :3])
    np.testing.assert_array_equal(decode_image(deep, "x"), np.moveaxis(DEEP[..., :3] >> 8, -1, 0))
    assert probe_image(deep, "x").unread == "the lower 8 of 16 bits (saved as .npy, all are read)"
    assert probe_image(_png(DEEP[..., 0]), "x").unread is None  # grey keeps all its bits


def _png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits, grey or RGB, written by hand: Pillow writes no such colours."""
    height, width = values.shape[:2]
    kind = 0 if values.ndim == 2 else 2
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["one", "pages", "bands"])
def test_images_are_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    """Turned as Pillow's ImageOps turns an image of that orientation."""
    plain = np.arange(42, dtype=np.uint8).reshape(6, 7)
    tag = [(274, "H", 1, orientation, True)]
    lying = Image.fromarray(plain)
    lying.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(lying))
    values: Any = {"one": plain, "pages": np.stack([plain, plain + 1]), "bands": plain[..., None]}[
        kind
    ]
    options: dict[str, Any] = {"photometric": "minisblack", "extratags": tag}
    if kind == "bands":  # through tifffile in folders of images, too
        values = np.repeat(values, 5, -1).astype(np.uint16)
        options["planarconfig"] = "contig"
    path = _write(tmp_path / "x.tif", values, **options)
    source = opened(f"tiff:{path}")
    scale = 65535 if kind == "bands" else 1
    for index in range(len(source)):
        found = source.load(index).image.numpy() * scale
        np.testing.assert_allclose(found, np.stack([expected] * len(found)) + index, rtol=1e-5)
    facts = source.facts(0)
    assert (facts.height, facts.width) == expected.shape
    if kind == "bands":
        np.testing.assert_allclose(decode_image(path, "x")[2] * scale, expected, rtol=1e-5)
        header = probe_image(path, "x")
        assert (header.height, header.width) == expected.shape


@pytest.mark.parametrize("space", ["separated", "cielab", "icclab"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_that_are_not_rgb_in_separate_planes(
    tmp_path: Path, space: str, dtype: type
) -> None:
    """As the same pixels side by side, which Pillow reads; Lab of ICC is moved by half."""
    samples = 4 if space == "separated" else 3
    values = RNG.integers(0, 256, (6, 7, samples)).astype(np.uint8)
    plain = values.copy()
    if space == "icclab":
        plain[..., 1:] ^= 128
    together = "separated" if space == "separated" else "cielab"
    usual = _write(tmp_path / "usual.tif", plain, photometric=together)
    expected = decode_image(usual, "x").numpy()
    assert probe_image(usual, "x").mode == ("CMYK" if samples == 4 else "LAB")
    stored = values if dtype is np.uint8 else values.astype(np.uint16) * 256
    planes = np.moveaxis(stored, -1, 0)
    for compression in (None, "zlib"):
        path = _write(
            tmp_path / "x.tif",
            planes,
            photometric=space,
            planarconfig="separate",
            compression=compression,
        )
        np.testing.assert_array_equal(decode_image(path, "x").numpy(), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_of_a_deep_palette_and_of_one_with_alpha(tmp_path: Path, bits: int) -> None:
    dtype, count = (np.uint8, 256) if bits == 8 else (np.uint16, 65536)
    values = RNG.integers(0, count, (6, 7)).astype(dtype)
    colours = RNG.integers(0, 65536, (3, count)).astype(np.uint16)
    path = _write(tmp_path / "x.tif", values, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(decode_image(path, "x").numpy(), colours[:, values] >> 8)


def test_tiles_of_webp_are_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    path = _write(
        tmp_path / "x.tif",
        values,
        photometric="rgb",
        compression="webp",
        compressionargs={"lossless": True},
    )
    np.testing.assert_array_equal(decode_image(path, "x").numpy(), np.moveaxis(values, -1, 0))
    assert not capfd.readouterr().err


def test_complex_numbers_are_called_so(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.tif", np.ones((4, 5), np.complex64))
    with pytest.raises(UnreadableImage, match=r"64-bit complex numbers: .*no known scale"):
        decode_image(path, "x")
