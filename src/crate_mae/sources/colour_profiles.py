"""Which colours the values of an image stand for, where that is not sRGB: told, never applied."""

import re
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

_HEAD = 1 << 16
_EXIF, _INTEROPERABILITY, _COLOUR_SPACE, _INDEX = 0x8769, 0xA005, 0xA001, 1
_PRIMARIES = {5: "BT.601", 6: "BT.601", 9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_TRANSFERS = {8: "linear", 16: "PQ", 18: "HLG"}
_AS_SRGB = (1, 2, 5, 6)
"""Code points of primaries that are those of sRGB, or nearly, or left open."""
_SRGB_GAMMA, _SRGB_GREEN = 1 / 2.2, (0.3, 0.6)


def foreign_profile(image: Image.Image, data: bytes | Path | Image.Image) -> str | None:
    """What the colours of an image are, in a few words, unless sRGB; None where nothing is said.

    From its ICC profile, EXIF (cameras set to Adobe RGB embed no profile), or the chunks and boxes
    of PNG and AVIF.
    """
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes):
        if image.mode == "LAB":  # colours of their own, which Pillow converts
            return None
        return _described(profile, image.mode)
    try:
        if image.format in ("JPEG", "MPO"):
            return _of_exif(image)
        if isinstance(data, bytes | Path) and image.format in ("PNG", "AVIF"):
            return _of_code_points(data) or _of_numbers(image.info)
    except Exception:  # damaged metadata say nothing
        return None
    return None


def _described(profile: bytes, mode: str) -> str | None:
    try:
        text = ImageCms.getProfileDescription(BytesIO(profile)).strip()
    except Exception:  # a damaged profile says nothing
        return None
    grey = mode in ("1", "L", "LA", "F", "I") or mode.startswith("I;16")
    alike = r"srgb|^c2$" + (r"|sgr[ae]y|2\.2" if grey else "")
    return None if re.search(alike, text, re.IGNORECASE) or not text else text[:60]


def _of_exif(image: Image.Image) -> str | None:
    exif = image.getexif()
    if not exif:
        return None
    inner: Any = exif.get_ifd(_EXIF)
    index = str(exif.get_ifd(_INTEROPERABILITY).get(_INDEX, ""))
    adobe = inner.get(_COLOUR_SPACE) == 2 or index.startswith("R03")
    return "Adobe RGB (EXIF)" if adobe else None


def _of_code_points(data: bytes | Path) -> str | None:
    """What cICP of a PNG or nclx of an AVIF says."""
    head = data[:_HEAD] if isinstance(data, bytes) else _read(data)
    if head.startswith(b"\x89PNG"):
        found = re.search(rb"\0\0\0\x04cICP(..)", head[: head.find(b"IDAT")], re.DOTALL)
        codes = None if found is None else tuple(found[1])
    else:
        place = head.find(b"colrnclx")
        codes = None if place < 0 else struct.unpack_from(">HH", head, place + 8)
    if codes is None:
        return None
    primaries, transfer = codes
    words = [] if primaries in _AS_SRGB else [_PRIMARIES.get(primaries, f"primaries {primaries}")]
    words += [_TRANSFERS[transfer]] if transfer in _TRANSFERS else []
    return " ".join(words) or None


def _of_numbers(info: dict[Any, Any]) -> str | None:
    """What gAMA and cHRM of a PNG say."""
    if "srgb" in info:
        return None
    gamma, points = info.get("gamma"), info.get("chromaticity")
    if gamma and abs(gamma - _SRGB_GAMMA) > 0.05:
        return f"gamma {1 / gamma:.3g}"
    if points and max(abs(a - b) for a, b in zip(points[4:6], _SRGB_GREEN, strict=True)) > 0.01:
        return "primaries of its own"
    return None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
