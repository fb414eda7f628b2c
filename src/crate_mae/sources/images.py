"""From the bytes of an image file to a tensor, without trusting the file."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from crate_mae.common.file_kinds import file_kind
from crate_mae.sources import jpeg2000, tiff
from crate_mae.sources.colour_profiles import foreign_profile
from crate_mae.sources.exact import (
    settled,
    stored_step,
    unread_planes,
    with_clear_canvas,
)
from crate_mae.sources.pillow_images import MAX_PIXELS_VARIABLE as MAX_PIXELS_VARIABLE
from crate_mae.sources.pillow_images import (
    SIDEWAYS,
    check_size,
    decoded,
    orientation,
    upright,
    without_alpha,
)
from crate_mae.sources.pillow_images import UnreadableImage as UnreadableImage
from crate_mae.sources.pillow_images import max_pixels as max_pixels
from crate_mae.sources.pillow_images import readable_formats as readable_formats
from crate_mae.sources.pillow_images import to_channels as to_channels

ImageData = bytes | Path | Image.Image

_VOID_COLOUR = (224, 224, 192)


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
    no_data: str | None = None
    """The value that stands for pixels without one; they are read like any other."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its label, if it has one, and the name it is reported by."""

    image: Tensor
    """(C, H, W), uint8 or float32."""
    label: int | None
    name: str
    mask: Tensor | None = None
    """(H, W) uint8, the class number of every pixel; None where pixels have no classes."""


def decode_image(data: ImageData, name: str) -> Tensor:
    """The upright image as (C, H, W): uint8, or float32 for 16-bit (in [0, 1]) and float files.

    Grey stays one channel, transparency is laid over white, every other colour space becomes RGB;
    of an animation the first frame counts. Raises UnreadableImage for anything that is damaged,
    empty, not an image, or larger than `MAX_PIXELS` (see `max_pixels`).
    """
    try:
        with _opened(data, name) as opened:
            return decoded(opened, data, name)
    except tiff.NotForPillowError as fault:
        return _through_tifffile(data, name, str(fault))


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

    Palette entries and grey levels are taken as stored, of 16 bits the highest as 255. Colours
    are 1, black and what is transparent are 0, and the cream (224, 224, 192) in which PASCAL VOC
    draws its void is 255.
    Raises UnreadableImage as `decode_image`.
    """
    values = _mask_values(data, name)
    if values.ndim == 2:
        return values
    void = (values == torch.tensor(_VOID_COLOUR)).all(dim=-1)
    return torch.where(void, 255, (values != 0).any(dim=-1).long())


def decode_class_values(data: ImageData, name: str) -> Tensor:
    """The upright values (H, W), int64, of a mask that numbers classes, as `decode_labels`.

    Grey levels that were saved as colours are grey levels. Other colours are no numbers, and which
    class each would be is not known: raises UnreadableImage for them, too.
    """
    values = _mask_values(data, name)
    if values.ndim == 2:
        return values
    if bool((values != values[..., :1]).any()):
        raise UnreadableImage(
            name,
            "it holds colours, which are no numbers of classes: save masks with a palette, or as"
            " grey levels",
        )
    return values[..., 0]


def _mask_values(data: ImageData, name: str) -> Tensor:
    """The upright values of a mask: numbers (H, W), or colours (H, W, 3), int64."""
    try:
        with _opened(data, name) as opened:
            image = jpeg2000.exact(opened, data)
            image.load()
            check_size(image.size, name)
            if image.format in ("JPEG", "MPO"):
                raise UnreadableImage(
                    name, "JPEG changes the values of masks: save them as PNG, from before that"
                )
            flat = _flat_mask(settled(image, data, over="black"))
            array = upright(image, flat) // stored_step(image, data)
    except tiff.NotForPillowError as fault:
        raise UnreadableImage(name, f"{fault}, which is no mask: save it as PNG") from fault
    values = torch.from_numpy(array.astype(np.int64))
    return values if flat.mode == "RGB" else torch.where(values == 65535, 255, values)


def _flat_mask(image: Image.Image) -> Image.Image:
    """A mask in a mode of numbers, or in RGB; what is transparent is 0."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in {"1", "I"} or image.mode.startswith("I;16"):
        return image
    if image.mode not in {"L", "LA", "P"}:
        return without_alpha(image, over="black").convert("RGB")
    flat = image.getchannel("L") if image.mode == "LA" else image.copy()
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        flat.paste(0, mask=alpha.point(lambda value: 255 * (value == 0)))
    return flat


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
        if not settled and orientation(image) in SIDEWAYS:
            width, height = height, width
        unread = (
            tiff.unread_part(image)
            or unread_planes(image, data)
            or jpeg2000.unread_bits(image, data)
            or None
        )
        return ImageFacts(
            image.mode, height, width, unread, foreign_profile(image, data), tiff.no_data(image)
        )


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
            check_size(image.size, name, limit)
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


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"far too many pixels: {error}"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return f"damaged or unsupported: {str(error) or type(error).__name__}"
