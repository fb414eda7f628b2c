"""From the bytes of an image file to a tensor, without trusting the file."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from crate_mae.common.file_kinds import file_kind
from crate_mae.sources import tiff
from crate_mae.sources.exact import corrected, with_clear_canvas

MAX_PIXELS = 64_000_000
MAX_PIXELS_VARIABLE = "CRATE_MAE_MAX_PIXELS"

ImageData = bytes | Path | Image.Image

# EPS runs Ghostscript; the others are recognised by Pillow but have no decoder of their own.
_REFUSED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
_COMMON_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_VOID_COLOUR = (224, 224, 192)
_SIDEWAYS = {5, 6, 7, 8}

# ITU-R 601 luma in 16-bit fixed point, the integers Pillow uses for RGB -> L.
_LUMA_FIXED = (19595, 38470, 7471)
_LUMA = (0.299, 0.587, 0.114)


class UnreadableImage(Exception):  # noqa: N818 - it is also handed on as a value
    """An image that cannot be used: which one (`name`) and why (`reason`, one line)."""

    def __init__(self, name: str, reason: str) -> None:
        reason = " ".join(reason.split()) or "unknown reason"
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class ImageFacts:
    """What the header of an image says; height and width are those of the upright image."""

    mode: str
    height: int
    width: int
    unread: str | None = None
    """What the file holds beside the image that is read, such as further pages."""
    profile: str | None = None
    """The colour profile, where it is not sRGB; colours are taken as they are stored."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its label, if it has one, and the name it is reported by."""

    image: Tensor
    """(C, H, W), uint8 or float32."""
    label: int | None
    name: str


def decode_image(data: ImageData, name: str) -> Tensor:
    """The upright image as (C, H, W): uint8, or float32 for 16-bit (in [0, 1]) and float files.

    Grey stays one channel, transparency is laid over white, every other colour space becomes RGB;
    of an animation the first frame counts. Raises UnreadableImage for anything that is damaged,
    empty, not an image, or larger than `MAX_PIXELS` (see `max_pixels`).
    """
    try:
        with _opened(data, name) as image:
            image.load()
            _check_size(image.size, name)  # icon files may grow on loading
            upright = _UPRIGHT.get(_orientation(image))
            flat = _without_alpha(image)
            array = np.array(flat if upright is None else flat.transpose(upright))
            array = corrected(array, image, data)
    except tiff.NotForPillowError as fault:
        return _through_tifffile(data, name, str(fault))
    return _scaled(array, flat.mode, name)


def _through_tifffile(data: ImageData, name: str, fault: str) -> Tensor:
    from crate_mae.sources.arrays import array_pixels

    assert not isinstance(data, Image.Image)
    with decoding(name):
        found = tiff.first_image(data, fault)
    if isinstance(found, Image.Image):
        return decode_image(found, name)
    return array_pixels(found, name)


def decode_labels(data: ImageData, name: str) -> Tensor:
    """The upright numbers (H, W), int64, that the pixels of a mask stand for.

    Palette entries and grey levels are taken as they are, of 16 bits the highest as 255. Colours
    are 1, black is 0, and the cream (224, 224, 192) in which PASCAL VOC draws its void is 255.
    Raises UnreadableImage as `decode_image`.
    """
    try:
        with _opened(data, name) as image:
            image.load()
            _check_size(image.size, name)
            upright = _UPRIGHT.get(_orientation(image))
            numbered = image.mode in {"1", "L", "P", "I"} or image.mode.startswith("I;16")
            flat = image if numbered else _without_alpha(image).convert("RGB")
            array = np.array(flat if upright is None else flat.transpose(upright))
    except tiff.NotForPillowError as fault:
        raise UnreadableImage(name, f"{fault}, which is no mask: save it as PNG") from fault
    if numbered:
        numbers = torch.from_numpy(array.astype(np.int64))
        return torch.where(numbers == 65535, 255, numbers)
    colours = torch.from_numpy(array.astype(np.int64))
    void = (colours == torch.tensor(_VOID_COLOUR)).all(dim=-1)
    return torch.where(void, 255, (colours != 0).any(dim=-1).long())


def probe_image(data: ImageData, name: str) -> ImageFacts:
    """Mode, upright size, profile and what is not read, from headers; raises UnreadableImage."""
    try:
        return _header_facts(data, name)
    except tiff.NotForPillowError as fault:
        assert not isinstance(data, Image.Image)
        with decoding(name):
            return ImageFacts(*tiff.facts_of(data, str(fault)))


def _header_facts(data: ImageData, name: str) -> ImageFacts:
    with _opened(data, name) as image:
        width, height = image.size
        # Pillow already gives the upright size of a TIFF, and to find EXIF behind the pixels of a
        # PNG it would have to decode them.
        settled = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
        if not settled and _orientation(image) in _SIDEWAYS:
            width, height = height, width
        mode, profile = image.mode, _foreign_profile(image)
        return ImageFacts(mode, height, width, tiff.unread_part(image), profile)


def _foreign_profile(image: Image.Image) -> str | None:
    """The name of an RGB image's colour profile unless it is sRGB; None without one."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not image.mode.startswith("RGB"):
        return None
    try:
        text = ImageCms.getProfileDescription(BytesIO(profile)).strip()
    except Exception:  # a damaged profile says nothing
        return None
    return None if re.search(r"srgb|^c2$", text, re.IGNORECASE) or not text else text[:60]


def to_channels(image: Tensor, channels: int) -> Tensor:
    """The (C, H, W) image with that many channels: grey repeated to colour, or colour's luma."""
    if image.ndim != 3:
        raise ValueError(f"an image has three axes (C, H, W), not shape {tuple(image.shape)}")
    present = image.shape[0]
    if present == channels:
        return image
    if (present, channels) == (1, 3):
        return image.expand(3, -1, -1).contiguous()
    if (present, channels) == (3, 1):
        return _luma(image)
    raise ValueError(
        f"an image of {present} channels cannot be turned into {channels}: only 1 <-> 3 is defined;"
        f" set channels={present} in the model, or convert the images beforehand"
    )


def max_pixels() -> int:
    """The largest number of pixels that is decoded: MAX_PIXELS, or CRATE_MAE_MAX_PIXELS if set.

    Pillow's own limit, about 179 million pixels, stays in force above it.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE)
    if text is None:
        return MAX_PIXELS
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{MAX_PIXELS_VARIABLE} must be a positive whole number, not {text!r}")
    return int(text)


@cache
def readable_formats() -> tuple[str, ...]:
    """Names of the formats Pillow decodes by itself, the common ones first."""
    Image.init()
    present = set(Image.OPEN) - _REFUSED_FORMATS
    common = [name for name in _COMMON_FORMATS if name in present]
    return (*common, *sorted(present.difference(common)))


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case file suffixes, with the dot, that belong to a readable format."""
    formats = {*readable_formats(), "MPO"}
    return frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in formats)


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """A context in which whatever a decoder raises becomes UnreadableImage.

    The one guard around all of them: libraries that read damaged files raise what they like.
    """
    try:
        yield
    except (UnreadableImage, tiff.NotForPillowError):
        raise
    except Exception as error:
        raise UnreadableImage(name, _reason(error)) from error


@contextmanager
def _opened(data: ImageData, name: str) -> Iterator[Image.Image]:
    """The image with its header read; whatever decoding raises inside becomes UnreadableImage."""
    limit = max_pixels()
    # Pillow warns about odd metadata and about sizes; the sizes are checked here instead.
    with warnings.catch_warnings(), decoding(name):
        warnings.simplefilter("ignore")
        image = data if isinstance(data, Image.Image) else _open_header(data, name)
        try:
            _check_size(image.size, name, limit)
            yield image
        finally:
            if image is not data:
                image.close()


def _open_header(data: bytes | Path, name: str) -> Image.Image:
    if isinstance(data, Path):
        if not data.is_file():
            raise UnreadableImage(name, "there is no such file")
        empty = data.stat().st_size == 0
    else:
        empty = not data
    if empty:
        raise UnreadableImage(name, "the file is empty")
    clear = with_clear_canvas(data) or data
    file = clear if isinstance(clear, Path) else BytesIO(clear)
    try:
        image = Image.open(file, formats=readable_formats())
    except UnidentifiedImageError as error:
        kind = file_kind(data)
        if kind == "TIFF":
            raise tiff.NotForPillowError(tiff.in_words(data)) from error
        known = "" if kind is None else f", but {kind}"
        raise UnreadableImage(name, f"not an image in a known format{known}") from error
    try:
        tiff.check_tags(image)
    except tiff.NotForPillowError:
        image.close()
        raise
    return image


def _check_size(size: tuple[int, int], name: str, limit: int | None = None) -> None:
    limit = max_pixels() if limit is None else limit
    width, height = size
    if width < 1 or height < 1:
        raise UnreadableImage(name, f"it has no pixels ({height} x {width})")
    if width * height > limit:
        raise UnreadableImage(
            name,
            f"{height} x {width} pixels are above the limit of {limit}"
            f" (set {MAX_PIXELS_VARIABLE} to raise it)",
        )


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"far too many pixels: {error}"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return f"damaged or unsupported: {str(error) or type(error).__name__}"


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata says nothing; the pixels are still good
        return 1
    return value if isinstance(value, int) else 1


def _without_alpha(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB, I, I;16* or F, with any transparency laid over white."""
    mode = image.mode
    if mode in {"F", "I"} or mode.startswith("I;16"):
        return image
    if mode in {"L", "RGB"} and "transparency" not in image.info:
        return image
    grey = mode in {"1", "L", "LA", "La"}
    if not image.has_transparency_data:
        return image.convert("L" if grey else "RGB")
    colours = image.convert("LA" if grey else "RGBA")
    page = Image.new("L" if grey else "RGB", image.size, "white")
    page.paste(colours.convert(page.mode), mask=colours.getchannel("A"))
    return page


def _scaled(array: np.ndarray, mode: str, name: str) -> Tensor:
    if array.dtype.kind != "f" and (mode == "I" or mode.startswith("I;16")):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise UnreadableImage(
                name,
                f"integers from {low} to {high} do not fit 16 bits; save it as 16-bit or float",
            )
        array = array.astype(np.float32) / np.float32(65535)
    if not np.isfinite(array).all():
        raise UnreadableImage(name, "it holds values that are not finite")
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return torch.from_numpy(np.ascontiguousarray(planes))


def _luma(image: Tensor) -> Tensor:
    if image.dtype != torch.uint8:
        weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device)
        return (image * weights[:, None, None]).sum(dim=0, keepdim=True)
    red, green, blue = image.to(torch.int32)
    r, g, b = _LUMA_FIXED
    luma: Tensor = (red * r + green * g + blue * b + (1 << 15)) >> 16
    return luma.to(torch.uint8)[None]
