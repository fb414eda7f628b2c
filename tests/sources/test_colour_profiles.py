"""Colours that are not sRGB are told of, wherever a file says so."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from crate_mae.sources.images import probe_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
OTHER = SRGB.replace("sRGB built-in".encode("utf-16-be"), "Coated FOGRA9".encode("utf-16-be"))


def _saved(mode: str, kind: str, **options: Any) -> bytes:
    kept = BytesIO()
    Image.new(mode, (4, 3)).save(kept, kind, **options)
    return kept.getvalue()


def _with_chunk(name: bytes, body: bytes) -> bytes:
    data = _saved("RGB", "PNG")
    whole = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:33] + whole + data[33:]  # behind IHDR


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_profiles_of_any_kind_of_colours(mode: str) -> None:
    assert probe_image(_saved(mode, "JPEG", icc_profile=OTHER), "x").profile == "Coated FOGRA9"
    assert probe_image(_saved(mode, "JPEG", icc_profile=SRGB), "x").profile is None
    assert probe_image(_saved(mode, "JPEG", icc_profile=OTHER[:50]), "x").profile is None


@pytest.mark.parametrize(
    ("space", "index", "told"),
    [(1, "R98", None), (65535, "R98", None), (65535, "R03", True), (2, "", True)],
)
def test_cameras_that_are_set_to_adobe_rgb(space: int, index: str, told: bool | None) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = space
    exif.get_ifd(0x8769)[0xA005] = {1: index} if index else {}
    profile = probe_image(_saved("RGB", "JPEG", exif=exif), "x").profile
    assert profile == (told and "Adobe RGB (EXIF)")


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        (b"cICP", bytes([1, 13, 0, 1]), None),
        (b"cICP", bytes([12, 13, 0, 1]), "Display P3"),
        (b"cICP", bytes([9, 16, 0, 1]), "BT.2020 PQ"),
        (b"gAMA", struct.pack(">I", 45455), None),
        (b"gAMA", struct.pack(">I", 100000), "gamma 1"),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000), None),
        (
            b"cHRM",
            struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000),
            "primaries of its own",
        ),
    ],
)
def test_chunks_of_a_png(name: bytes, body: bytes, told: str | None) -> None:
    assert probe_image(_with_chunk(name, body), "x").profile == told


def test_an_avif_of_wide_colours() -> None:
    codecs = pytest.importorskip("imagecodecs")
    usual = codecs.avif_encode(np.zeros((16, 16, 3), np.uint8))
    assert probe_image(usual, "x").profile is None
    place = usual.index(b"colrnclx") + 8
    wide = usual[:place] + struct.pack(">HH", 12, 13) + usual[place + 4 :]
    assert probe_image(wide, "x").profile == "Display P3"
