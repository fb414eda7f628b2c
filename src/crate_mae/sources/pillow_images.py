"""Images that Pillow has opened to tensors: upright, without transparency, on a known scale."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crate_mae.sources.exact import corrected, settled
from crate_mae.sources.jpeg2000 import exact

MAX_PIXELS = 64_000_000
MAX_PIXELS_VARIABLE = "CRATE_MAE_MAX_PIXELS"

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
SIDEWAYS = {5, 6, 7, 8}
"""Orientations that swap height and width."""

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


def decoded(image: Image.Image, data: bytes | Path | Image.Image, name: str) -> Tensor:
    """The upright image as (C, H, W): uint8, or float32 for 16-bit (in [0, 1]) and float files.

    `data` is what it was opened from, or the image itself: what only the file tells, as which grey
    of 4 bits is transparent, is then not known. Raises UnreadableImage for what is too large or has
    no scale, and what decoding raises.
    """
    image = exact(image, data)
    image.load()
    check_size(image.size, name)  # icon files may grow on loading
    flat = without_alpha(settled(image, data))
    return scaled(corrected(upright(image, flat), image, data), flat.mode, name)


def upright(image: Image.Image, flat: Image.Image) -> np.ndarray:
    """The values of a flattened image, turned as its metadata tell; not to be written to."""
    turn = _UPRIGHT.get(orientation(image))
    return np.asarray(flat if turn is None else flat.transpose(turn))


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


def check_size(size: tuple[int, int], name: str, limit: int | None = None) -> None:
    """Raise UnreadableImage for an image (width, height) without pixels or above `max_pixels`."""
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


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 for an upright image or damaged metadata."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata says nothing; the pixels are still good
        return 1
    return value if isinstance(value, int) else 1


def without_alpha(image: Image.Image, over: str = "white") -> Image.Image:
    """The image in mode L, RGB, I, I;16* or F, with any transparency laid over a colour."""
    mode = image.mode
    if mode in {"F", "I"} or mode.startswith("I;16"):
        return image
    if mode in {"L", "RGB"} and "transparency" not in image.info:
        return image
    grey = mode in {"1", "L", "LA", "La"}
    if not image.has_transparency_data:
        return image.convert("L" if grey else "RGB")
    colours = image.convert("LA" if grey else "RGBA")
    page = Image.new("L" if grey else "RGB", image.size, over)
    page.paste(colours.convert(page.mode), mask=colours.getchannel("A"))
    return page


def scaled(array: np.ndarray, mode: str, name: str) -> Tensor:
    """Values (H, W) or (H, W, C) of a Pillow mode as (C, H, W); UnreadableImage without a scale."""
    if array.dtype.kind != "f" and (mode == "I" or mode.startswith("I;16")):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise UnreadableImage(
                name,
                f"integers from {low} to {high} do not fit 16 bits; save it as 16-bit or float",
            )
        array = array.astype(np.float32) / np.float32(65535)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnreadableImage(name, "it holds values that are not finite")
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, order="C"))


def _luma(image: Tensor) -> Tensor:
    if image.dtype != torch.uint8:
        weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device)
        return (image * weights[:, None, None]).sum(dim=0, keepdim=True)
    red, green, blue = image.to(torch.int32)
    r, g, b = _LUMA_FIXED
    luma: Tensor = (red * r + green * g + blue * b + (1 << 15)) >> 16
    return luma.to(torch.uint8)[None]
