"""Formats that Pillow reads otherwise than they are defined: FITS, animated WebP, some TIFF."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

_ANIMATED, _ALPHA = 0x02, 0x10
_FLAGS = 20
_PHOTOMETRIC = 262
_CARD, _MOST_CARDS = 80, 3600


def with_clear_canvas(data: bytes | Path) -> bytes | None:
    """An animated WebP with the alpha channel declared that its canvas has; None for other files.

    Frames need not cover the canvas, and what they leave is clear. A file whose header says nothing
    of alpha is decoded as if that were black.
    """
    head = data[:32] if isinstance(data, bytes) else _head(data, 32)
    if head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X" or len(head) <= _FLAGS:
        return None
    flags = head[_FLAGS]
    if not flags & _ANIMATED or flags & _ALPHA:
        return None
    changed = bytearray(data if isinstance(data, bytes) else data.read_bytes())
    changed[_FLAGS] |= _ALPHA
    return bytes(changed)


def corrected(
    array: np.ndarray, image: Image.Image, data: bytes | Path | Image.Image
) -> np.ndarray:
    """The decoded values as the format defines them.

    FITS: stored integers are signed, and times BSCALE plus BZERO they are the values; with BZERO
    32768 that is unsigned 16 bits. TIFF: where photometric interpretation is 0, 0 is white, which
    Pillow heeds up to 8 bits.
    """
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        return 65535 - array if tags.get(_PHOTOMETRIC) == 0 else array
    if image.format == "FITS" and not isinstance(data, Image.Image):
        return _physical(array, fits_header(data))
    return array


def fits_header(data: bytes | Path) -> dict[str, float]:
    """The numbers among the cards of a FITS file's first header."""
    text = data[: _CARD * _MOST_CARDS] if isinstance(data, bytes) else _head(data, 80 * 3600)
    values: dict[str, float] = {}
    for start in range(0, len(text) - _CARD + 1, _CARD):
        card = text[start : start + _CARD].decode("latin-1")
        if card.startswith("END "):
            break
        found = re.match(r"([A-Z0-9_-]{1,8}) *= *([-+]?[0-9.]+(?:[EeDd][-+]?\d+)?)", card)
        if found:
            values[found[1]] = float(found[2].upper().replace("D", "E"))
    return values


def _physical(array: np.ndarray, header: dict[str, float]) -> np.ndarray:
    scale, zero = header.get("BSCALE", 1.0), header.get("BZERO", 0.0)
    bits = int(header.get("BITPIX", 0))
    if bits == 16:
        array = array.astype(np.uint16).view(np.int16)
    if (bits, scale, zero) == (16, 1.0, 32768.0):
        return np.asarray(array.astype(np.int32) + 32768)
    if (scale, zero) == (1.0, 0.0):
        if bits in (16, 32) and array.size and int(array.min()) < 0:
            raise ValueError(
                "FITS of negative integers, which have no known scale: save it as floats or .npy"
            )
        return array
    return np.asarray(array * scale + zero, dtype=np.float32)


def _head(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)
