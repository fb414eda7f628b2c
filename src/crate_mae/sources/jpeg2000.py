"""JPEG 2000 as it is defined: of colours of more than 8 bits, Pillow turns white into black."""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

_CODESTREAM = b"\xff\x4f\xff\x51"
_COUNT, _SIZES = 40, 42
"""Where the number of components and their sizes stand, behind the begin of the codestream."""
_COLOURS = b"colr\x01"
_SRGB = b"colr\x01\0\0\0\0\0\x10"
_LOOKED_AT = 1 << 16


class Components(NamedTuple):
    """What the header says of the components of an image."""

    number: int
    bits: int
    signed: bool


def components(data: bytes) -> Components | None:
    """The components of a JPEG 2000 file; None where its header cannot be found."""
    start = data.find(_CODESTREAM)
    if start < 0 or len(data) < start + _SIZES + 1:
        return None
    (count,) = struct.unpack_from(">H", data, start + _COUNT)
    sizes = data[start + _SIZES : start + _SIZES + 3 * count : 3]
    bits = max((size & 127) + 1 for size in sizes) if sizes else 8
    return Components(count, bits, any(size & 128 for size in sizes))


def exact(image: Image.Image, data: bytes | Path | Image.Image) -> Image.Image:
    """The opened image, decoded otherwise where Pillow would get it wrong; others as they are.

    Raises ValueError for signed integers and ImportError with the remedy where that needs
    imagecodecs. Of colours the upper 8 bits are kept.
    """
    found = None if isinstance(data, Image.Image) else _found(image, data)
    if found is None or isinstance(data, Image.Image):
        return image
    if found.signed:
        raise ValueError(
            "JPEG 2000 of signed integers, which have no known scale: save it as floats or .npy"
        )
    if not _deep_colours(found):
        return image
    what = f"JPEG 2000 of {found.bits}-bit colours"
    head = _head(data)
    if _COLOURS in head and _SRGB not in head:
        raise ValueError(f"{what} that are not RGB: save it as 16-bit PNG or TIFF")
    try:
        from imagecodecs import jpeg2k_decode
    except ImportError as error:
        raise ImportError(
            f'{what}, of which Pillow turns white into black: pip install "crate-mae[tiff]" reads'
            " it; or save it as 16-bit PNG or TIFF"
        ) from error
    values = jpeg2k_decode(data if isinstance(data, bytes) else data.read_bytes())
    return Image.fromarray(np.ascontiguousarray(values >> (found.bits - 8), np.uint8))


def unread_bits(image: Image.Image, data: bytes | Path | Image.Image) -> str | None:
    """What is not read of deep colours, in words; None for other images."""
    found = None if isinstance(data, Image.Image) else _found(image, data)
    if found is None or not _deep_colours(found):
        return None
    return f"the lower {found.bits - 8} of {found.bits} bits (saved as .npy, all are read)"


def _found(image: Image.Image, data: bytes | Path) -> Components | None:
    return components(_head(data)) if image.format == "JPEG2000" else None


def _deep_colours(found: Components) -> bool:
    return found.number > 1 and found.bits > 8


def _head(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data[:_LOOKED_AT]
    with data.open("rb") as file:
        return file.read(_LOOKED_AT)
