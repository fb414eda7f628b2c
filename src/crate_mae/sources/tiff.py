"""TIFF files that Pillow does not read, or not rightly, through tifffile (an extra).

tifffile gives what is stored. What is made of it follows `decode_image`: 8 bits stay bytes, 16 bits
are divided by 65535, floats are taken as they are; WhiteIsZero is turned round.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, TiffImagePlugin

from crate_mae.sources.pillow_images import SIDEWAYS

if TYPE_CHECKING:
    from types import ModuleType

MAX_TIFF_BYTES = 4 * 1024**3
SUFFIXES = frozenset({".tif", ".tiff", ".btf", ".tf8"})
INSTALL = 'pip install "crate-mae[tiff]" reads it; or save it as .npy'

_ORIENTATION = 274
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _FORMAT, _COMPRESSION = (
    256, 257, 258, 262, 277, 284, 338, 339, 259,
)  # fmt: skip
_SIGNED = 2
_PALETTE, _SEPARATED, _YCBCR, _CIE_LAB, _ICC_LAB, _ITU_LAB = 3, 5, 6, 8, 9, 10
_JPEG, _WEBP = 7, 50001
_NO_DATA = 42113
_MULTIPLIED, _PLAIN = (1,), (2,)
"""Extra samples that are an alpha channel; by the first, colours are multiplied already."""


class NotForPillowError(Exception):
    """A TIFF that Pillow reads wrongly or not at all; the text says what it is."""


def check_tags(image: Image.Image) -> None:
    """Raise NotForPillowError for a TIFF whose pixels Pillow would get wrong."""
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None:
        return
    bits = tuple(tags.get(_BITS, (1,)))
    if tags.get(_COMPRESSION) == _WEBP:
        raise NotForPillowError("a TIFF of WebP tiles")
    if _SIGNED in tuple(tags.get(_FORMAT, ())):
        raise NotForPillowError(f"a TIFF of signed {bits[0]}-bit integers")
    if tags.get(_PHOTOMETRIC) == 0 and image.mode in ("I", "F"):
        raise NotForPillowError("a TIFF in which 0 is white, of more than 16 bits")
    packed = tags.get(_COMPRESSION, 1) != 1
    if packed and image.mode in ("I", "F") and tags.prefix == b"MM":
        # Unpacking has put the bytes in the machine's order, and Pillow turns them once more.
        raise NotForPillowError(f"a compressed big-endian TIFF of {bits[0]} bits")
    separate = tags.get(_PLANAR, 1) == 2 and len(bits) > 1
    if separate and tags.get(_PHOTOMETRIC) in (_CIE_LAB, _ICC_LAB, _ITU_LAB):
        raise NotForPillowError("a TIFF of separate planes of Lab colours")
    grey = tags.get(_PHOTOMETRIC) in (0, 1)
    multiplied = _MULTIPLIED[0] in tuple(tags.get(_EXTRA, ()))
    if separate and (grey or (not packed and (max(bits) > 8 or multiplied))):
        raise NotForPillowError(f"a TIFF of {len(bits)} separate planes of {bits[0]} bits")


def no_data(image: Image.Image) -> str | None:
    """The value of a GeoTIFF that stands for pixels without one, as it is written; else None."""
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return str(tags[_NO_DATA]).strip("\0 ") if _NO_DATA in tags else None


def unread_part(image: Image.Image) -> str | None:
    """What a picture file holds beside the image that is read: pages, frames, channels, bits."""
    parts = list(_unread_parts(image))
    return " and ".join(parts) if parts else None


def _unread_parts(image: Image.Image) -> Iterator[str]:
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        pages = int(getattr(image, "n_frames", 1)) - 1
        samples, read = int(tags.get(_SAMPLES, 1)), len(image.getbands())
        if samples > read and 0 in tuple(tags.get(_EXTRA, ())):
            which = "the last" if samples == read + 1 else f"the last {samples - read}"
            yield f"{which} of {samples} channels (tiff:PATH reads all)"
        if max(tags.get(_BITS, (1,))) > 8 and read > 1:
            yield "the lower 8 of 16 bits (tiff:PATH reads all)"
        if pages > 0:
            yield f"{pages} more page{'s' * (pages > 1)} (tiff:PATH reads all)"
        return
    if (len(image.getbands()) > 1 or image.format == "SGI") and _is_deep(image):
        yield "the lower 8 of 16 bits (saved as .npy, all are read)"
    # A phone's second frame is the same picture again.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        yield "the frames after the first"


def _is_deep(image: Image.Image) -> bool:
    """Whether the file holds more than 8 bits a value, of formats that Pillow cuts to 8."""
    for codec, _, _, args in getattr(image, "tile", ()):
        most = args[-1] if isinstance(args, tuple) else args
        if codec == "SGI16" or (image.format == "PNG" and str(args).endswith(";16B")):
            return True
        if image.format == "PPM" and isinstance(most, int) and most > 255:
            return True
    return False


def in_words(data: bytes | Path) -> str:
    """What a TIFF is that Pillow does not know, from its tags alone."""
    try:
        with _stream(data) as file:
            directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
            bits = tuple(directory.get(_BITS, (1,)))
            bands = int(directory.get(_SAMPLES, 1))
    except Exception:  # tags of a damaged file say nothing
        return "a TIFF of an unknown kind"
    kinds = {2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex numbers"}
    kind = kinds.get((tuple(directory.get(_FORMAT, ())) or (1,))[0], "integers")
    return f"a TIFF of {bands} band{'s' * (bands > 1)} of {bits[0]}-bit {kind}"


def first_image(data: bytes | Path, fault: str) -> np.ndarray | Image.Image:
    """The first image: channels (C, H, W), or for Pillow where it is a picture of 16-bit RGB(A).

    An alpha channel of integers behind one or three others is laid over white. Raises ImportError
    with the command without tifffile, and ValueError for what has no scale.
    """
    library = tifffile_module(fault)
    with _stream(data) as file, library.TiffFile(file) as tiff:
        page = tiff.pages[0]
        planes = read_page(page, fault)
        picture = _as_picture(planes, page, fault)
        if picture is not None:
            return picture
        colour = getattr(page.photometric, "name", "") == "RGB"
        extra = tuple(int(kind) for kind in page.extrasamples)
    has_alpha = len(planes) in (2, 4) and extra in (_MULTIPLIED, _PLAIN)
    alpha = extra if has_alpha and planes.dtype in (np.uint8, np.uint16) else None
    if planes.dtype == np.uint16 and colour and (len(planes) == 3 or alpha is not None):
        # As Pillow reads these where the planes are not separate: the upper bytes.
        planes = (planes >> 8).astype(np.uint8)
        if alpha != _MULTIPLIED:
            return Image.fromarray(np.ascontiguousarray(np.moveaxis(planes, 0, -1)))
    return planes if alpha is None else _over_white(planes, multiplied=alpha == _MULTIPLIED)


def _as_picture(planes: np.ndarray, page: Any, fault: str) -> Image.Image | None:
    """Planes of colours that are not RGB, for Pillow to convert; None for bands, grey and RGB.

    Lab has signed a and b, but for that of ICC, where they are moved by half the range.
    """
    space = int(page.photometric)
    if space not in (_SEPARATED, _CIE_LAB, _ICC_LAB, _ITU_LAB, _YCBCR):
        return None
    if space == _SEPARATED and len(planes) != 4:
        return None  # inks of any kind are bands
    if space == _YCBCR and int(page.compression) == _JPEG:
        return None  # unpacking has made RGB of it
    if space in (_ITU_LAB, _YCBCR) or planes.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{fault}: colours that are not RGB: save it as PNG")
    upper = planes if planes.dtype == np.uint8 else (planes >> 8).astype(np.uint8)
    pixels = np.ascontiguousarray(np.moveaxis(upper, 0, -1))
    height, width = pixels.shape[:2]
    if space == _SEPARATED:
        return Image.frombytes("CMYK", (width, height), pixels.tobytes())
    if len(planes) != 3:
        raise ValueError(f"{fault}: Lab colours of {len(planes)} channels: save it as PNG")
    if space == _ICC_LAB:
        pixels[..., 1:] ^= 128
    return Image.frombytes("LAB", (width, height), pixels.tobytes(), "raw", "LAB")


def _over_white(planes: np.ndarray, *, multiplied: bool) -> np.ndarray:
    """The channels before the last, which is alpha, laid over white; 16 bits become [0, 1]."""
    *colours, alpha = planes.astype(np.float64) / np.iinfo(planes.dtype).max
    laid = np.stack([colour if multiplied else colour * alpha for colour in colours]) + 1 - alpha
    if planes.dtype == np.uint8:
        return np.asarray(np.rint(laid.clip(0, 1) * 255), np.uint8)
    return np.asarray(laid, np.float32)


def facts_of(data: bytes | Path, fault: str) -> tuple[str, int, int, str | None]:
    """(Mode such as "4 x uint16", upright height, width, what is not read) of the first image."""
    library = tifffile_module(fault)
    with _stream(data) as file, library.TiffFile(file) as tiff:
        page = tiff.pages[0]
        more = len(tiff.pages) - 1
        rest = f"{more} more page{'s' * (more > 1)} (tiff:PATH reads all)" if more else None
        size = (page.imagelength, page.imagewidth)
        height, width = size[::-1] if orientation(page) in SIDEWAYS else size
        return f"{page.samplesperpixel} x {page.dtype}", height, width, rest


def read_page(page: Any, what: str) -> np.ndarray:
    """The upright channels (C, H, W) of one page of tifffile; ValueError without a scale."""
    check_extent(page.imagelength, page.imagewidth, page.nbytes)
    kind = np.dtype(page.dtype).kind
    if kind not in "uf":
        known = {"i": "signed integers", "c": "complex numbers"}.get(kind, str(page.dtype))
        raise ValueError(f"{what}: {known} have no known scale: save them as floats")
    array = np.asarray(page.asarray())
    if "S" in page.axes:
        array = np.moveaxis(array, page.axes.index("S"), 0)
    planes = array.reshape(-1, page.imagelength, page.imagewidth)
    colours = palette(page)
    if colours is not None:
        if len(planes) > 1 and planes.dtype != np.uint8:
            raise ValueError(f"{what}: a palette beside {planes.dtype} values: save it as PNG")
        laid = colours[:, planes[0]]
        planes = np.concatenate([laid, planes[1:]]) if len(planes) > 1 else laid
    else:
        planes = scaled(planes, page)
    return upright(planes, orientation(page))


def palette(page: Any) -> np.ndarray | None:
    """The colours (3, n) of the numbers that a page of tifffile holds; None where it holds values.

    They have 16 bits; where all are below 256 they were written with 8, as libtiff takes them.
    """
    if int(page.photometric) != _PALETTE or page.colormap is None:
        return None
    colours = np.asarray(page.colormap)
    return np.asarray(colours if colours.max() < 256 else colours >> 8, np.uint8)


def orientation(page: Any) -> int:
    """How a page of tifffile lies, as EXIF numbers it; 1 for upright or a damaged tag."""
    tag = page.tags.get(_ORIENTATION)
    value = 1 if tag is None else tag.value
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(planes: np.ndarray, orientation: int) -> np.ndarray:
    """Planes (..., H, W) turned as the orientation tells."""
    if orientation in SIDEWAYS:
        planes = planes.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        planes = planes[..., ::-1, :]
    return planes[..., ::-1] if orientation in (2, 3, 6, 7) else planes


def scaled(planes: np.ndarray, page: Any) -> np.ndarray:
    """The values with white at the top; 1 to 7 bits brought to 8, 9 to 15 divided to [0, 1].

    Photometric interpretation 0, WhiteIsZero, counts from white to black.
    """
    told: Any = page.bitspersample
    bits = int(told if isinstance(told, int) else told[0])
    if int(page.photometric) == 0:
        if planes.dtype.kind == "f":
            raise ValueError("floats in which 0 is white have no known scale")
        turned = np.asarray((1 << bits) - 1 - planes.astype(np.int64), planes.dtype)
        samples, extra = int(page.samplesperpixel), tuple(map(int, page.extrasamples))
        if extra == _MULTIPLIED:
            raise ValueError("0 is white, and colours are multiplied by alpha: save it as PNG")
        if extra == _PLAIN:  # how clear a pixel is does not turn round
            turned[samples - 1 :: samples] = planes[samples - 1 :: samples]
        planes = turned
    if bits < 8:
        return np.rint(planes * (255 / ((1 << bits) - 1))).astype(np.uint8)
    if 8 < bits < 16:
        return np.asarray(planes.astype(np.float32) / np.float32((1 << bits) - 1))
    return planes


def check_extent(height: int, width: int, nbytes: int) -> None:
    """Raise ValueError for an image too large to be held."""
    from crate_mae.sources.images import max_pixels

    if height < 1 or width < 1 or height * width > max_pixels() or nbytes > MAX_TIFF_BYTES:
        raise ValueError(f"{height} x {width} pixels, {nbytes} bytes: nothing, or too large")


def tifffile_module(what: str) -> "ModuleType":
    """The library; ImportError with the command that installs it."""
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(f"{what}, which Pillow does not read rightly: {INSTALL}") from error
    return tifffile


@contextmanager
def _stream(data: bytes | Path) -> Iterator[Any]:
    if isinstance(data, bytes):
        yield BytesIO(data)
        return
    with data.open("rb") as file:
        yield file
