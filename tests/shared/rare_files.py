"""Image files of kinds that Pillow reads otherwise than they are defined."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def key_among_four_bits(path: Path) -> Path:
    """A grey PNG of 4 bits, of which a sixteenth of the levels is transparent."""
    rows = np.random.default_rng(0).integers(0, 256, (40, 25), np.uint8)
    return _png(path, depth=4, kind=0, rows=rows, width=50, key=struct.pack(">H", 5))


def key_among_deep_colours(path: Path) -> Path:
    """A PNG of 16-bit colours, half of which has the one that is transparent."""
    values = np.random.default_rng(1).integers(0, 65536, (40, 50, 3)).astype(">u2")
    values[:, :25] = (4660, 22136, 39612)
    rows = values.view(np.uint8).reshape(40, -1)
    return _png(path, depth=16, kind=2, rows=rows, width=50, key=values[0, 0].tobytes())


def undeclared_alpha(path: Path) -> Path:
    """A TGA whose fourth byte is noise and no transparency, as its header says."""
    values = np.random.default_rng(2).integers(0, 256, (40, 50, 4), np.uint8)
    Image.fromarray(values).save(path)
    content = bytearray(path.read_bytes())
    content[17] &= 0xF0  # bits of alpha
    path.write_bytes(content)
    return path


def _png(
    path: Path, *, depth: int, kind: int, rows: np.ndarray, width: int, key: bytes
) -> Path:  # fmt: skip
    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", pixels), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in parts:
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(content)
    return path
