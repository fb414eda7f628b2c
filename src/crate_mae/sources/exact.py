"""Formats that Pillow reads otherwise than they are defined: FITS, GIF, WebP, PNG, TGA, TIFF."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

_ANIMATED, _ALPHA = 0x02, 0x10
_FLAGS = 20
_BITS, _PHOTOMETRIC, _COLOURS = 258, 262, 320
_CARD, _BLOCK, _MOST_CARDS = 80, 2880, 3600
_PNG_DEPTH, _PNG_KIND, _TGA_DESCRIPTOR = 24, 25, 17


def with_clear_canvas(data: bytes | Path) -> bytes | None:
    """An animated WebP with the alpha channel declared that its canvas has; None for other files.

    Frames need not cover the canvas, and what they leave is clear. A file whose header says nothing
    of alpha is decoded as if that were black.
    """
    head = _head(data, 32)
    if head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X" or len(head) <= _FLAGS:
        return None
    flags = head[_FLAGS]
    if not flags & _ANIMATED or flags & _ALPHA:
        return None
    changed = bytearray(data if isinstance(data, bytes) else data.read_bytes())
    changed[_FLAGS] |= _ALPHA
    return bytes(changed)


def settled(
    image: Image.Image, data: bytes | Path | Image.Image, *, over: str = "white"
) -> Image.Image:
    """The loaded image with colours and transparency as its format defines them.

    What cannot be kept as transparent, in 16 bits of grey, is drawn in the colour `over`.
    """
    if isinstance(data, Image.Image):
        return image
    if image.format == "PNG" and "transparency" in image.info:
        return _with_colour_key(image, data, over)
    if image.format == "GIF":
        return _on_clear_canvas(image)
    if image.format == "TGA" and image.mode == "RGBA":
        # The descriptor counts the bits of alpha; the fourth byte may be anything without them.
        return image if _head(data, 18)[_TGA_DESCRIPTOR] & 15 else image.convert("RGB")
    if image.format == "TIFF" and image.mode in ("P", "PA"):
        tags: Any = getattr(image, "tag_v2", {})
        colours = np.array(tags.get(_COLOURS, ()), np.uint16)
        if colours.size and colours.max() < 256:  # as libtiff takes them: written with 8 bits
            image.putpalette(colours.reshape(3, -1).T.astype(np.uint8).tobytes())
    return image


def stored_step(image: Image.Image, data: bytes | Path | Image.Image) -> int:
    """What one step of the stored grey levels is in the decoded ones: 17 of 4 bits, 85 of 2."""
    if isinstance(data, Image.Image) or image.mode != "L":
        return 1
    bits = 8
    if image.format == "PNG":
        head = _head(data, 26)
        bits = head[_PNG_DEPTH] if head[_PNG_KIND] == 0 else 8
    elif image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        bits = tags.get(_BITS, (8,))[0]
    return 255 // ((1 << bits) - 1) if bits in (2, 4) else 1


def _with_colour_key(image: Image.Image, data: bytes | Path, over: str) -> Image.Image:
    """A PNG whose transparent colour is on the scale of its decoded values."""
    head, key = _head(data, 26), image.info["transparency"]
    depth, kind = head[_PNG_DEPTH], head[_PNG_KIND]
    if kind == 0 and depth in (2, 4):
        image.info["transparency"] = key * 255 // ((1 << depth) - 1)
    elif kind == 2 and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif kind == 0 and depth == 16:
        values = np.array(image)
        values[values == key] = 65535 if over == "white" else 0
        return Image.fromarray(values)
    return image


def _on_clear_canvas(image: Image.Image) -> Image.Image:
    """A GIF whose first frame need not cover the canvas: what it leaves is clear."""
    box = getattr(image, "dispose_extent", None)
    if box is None or tuple(box) == (0, 0, *image.size):
        return image
    covered = Image.new("L", image.size, 0)
    ImageDraw.Draw(covered).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    clear = Image.new("RGBA", image.size, (0, 0, 0, 0))
    clear.paste(image.convert("RGBA"), mask=covered)
    return clear


def corrected(
    array: np.ndarray, image: Image.Image, data: bytes | Path | Image.Image
) -> np.ndarray:
    """The decoded values as the format defines them.

    FITS: stored integers are signed, and times BSCALE plus BZERO they are the values; with BZERO
    32768 that is unsigned 16 bits. TIFF: where photometric interpretation is 0, 0 is white, which
    Pillow heeds up to 8 bits; packed 12 bits go up to 4095.
    """
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        tags: Any = getattr(image, "tag_v2", {})
        if tags.get(_BITS, (16,))[0] == 12:
            return np.asarray(array.astype(np.float32) / np.float32(4095))
        return 65535 - array if tags.get(_PHOTOMETRIC) == 0 else array
    if image.format == "FITS" and not isinstance(data, Image.Image):
        return _physical(array, fits_header(data))
    return array


def fits_header(data: bytes | Path) -> dict[str, float]:
    """The numbers among the cards of the first header of a FITS file that has an image.

    The first of all often has none: the image is an extension then. Of a packed one, what tells of
    the image stands in cards that begin with Z.
    """
    text = _head(data, _CARD * _MOST_CARDS)
    values: dict[str, float] = {}
    for start in range(0, len(text) - _CARD + 1, _CARD):
        card = text[start : start + _CARD].decode("latin-1")
        if card.startswith(("XTENSION", "SIMPLE ")):
            values = {}
        if card.startswith("END ") and values.get("NAXIS"):
            break
        found = re.match(r"([A-Z0-9_-]{1,8}) *= *([-+]?[0-9.]+(?:[EeDd][-+]?\d+)?)", card)
        if found:
            values[found[1]] = float(found[2].upper().replace("D", "E"))
    packed = {key[1:]: value for key, value in values.items() if re.match("Z(BITPIX|NAXIS)", key)}
    return values | packed


def unread_planes(image: Image.Image, data: bytes | Path | Image.Image) -> str | None:
    """What a FITS file of more than two axes holds beside the plane that is read."""
    if image.format != "FITS" or isinstance(data, Image.Image):
        return None
    header = fits_header(data)
    axes = range(3, int(header.get("NAXIS", 0)) + 1)
    planes = math.prod(int(header.get(f"NAXIS{axis}", 1)) for axis in axes) - 1
    return f"{planes} more plane{'s' * (planes > 1)} (saved as .npy, all are read)" * (planes > 0)


def _physical(array: np.ndarray, header: dict[str, float]) -> np.ndarray:
    scale, zero = header.get("BSCALE", 1.0), header.get("BZERO", 0.0)
    bits = int(header.get("BITPIX", 0))
    if bits == 16:
        array = array.astype(np.uint16).view(np.int16)
    if bits > 0 and "BLANK" in header and bool((array == header["BLANK"]).any()):
        raise ValueError(
            f"FITS with pixels that have no value (BLANK {header['BLANK']:g}): fill them in and"
            " save it as .npy"
        )
    if (bits, scale, zero) == (16, 1.0, 32768.0):
        return np.asarray(array.astype(np.int32) + 32768)
    if (scale, zero) == (1.0, 0.0):
        if bits in (16, 32) and array.size and int(array.min()) < 0:
            raise ValueError(
                "FITS of negative integers, which have no known scale: save it as floats or .npy"
            )
        return array
    return np.asarray(array * scale + zero, dtype=np.float32)


def _head(data: bytes | Path, count: int) -> bytes:
    if isinstance(data, bytes):
        return data[:count]
    with data.open("rb") as file:
        return file.read(count)
