# Copyright 2026 The CRATE-MAE developers. MIT licence.
"""Images to model input in transformers, as the package's own preprocessing does it."""

from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import (
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
)

from crate_mae.batches.transforms import fit
from crate_mae.sources.exact import with_clear_canvas
from crate_mae.sources.pillow_images import check_size, decoded, readable_formats, to_channels
from crate_mae.sources.tiff import NotForPillowError, check_tags


class CrateMAEImageProcessor(TorchvisionBackend):
    """Scales an image until it just covers `size`, keeps the centre, and normalises it.

    Bicubic with antialiasing; nothing is squashed. Grey becomes colour or colour grey as
    `image_mean` has three values or one; transparency lies over white. 8 and 16 bits are divided by
    their full range; floats are taken as they are, whatever `do_rescale` says. Arrays and tensors
    are (C, H, W) or (H, W, C). Raises ValueError for other integers, which have no known scale.
    """

    size: ClassVar = {"height": 224, "width": 224}
    image_mean: ClassVar = [0.0, 0.0, 0.0]
    image_std: ClassVar = [1.0, 1.0, 1.0]
    resample = PILImageResampling.BICUBIC
    do_resize = True
    do_rescale = True
    do_normalize = True

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Images themselves; a path of this machine is opened with the decoders of the package."""
        if isinstance(image_url_or_urls, str) and Path(image_url_or_urls).is_file():
            return _file_pixels(Path(image_url_or_urls))
        return super().fetch_images(image_url_or_urls)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | None = None,
        device: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """An image (C, H, W), uint8 or float32, with as many channels as there are means."""
        channels = len(kwargs.get("image_mean") or self.image_mean)
        if isinstance(image, Image.Image):
            pixels = _pixels(image, image, "image")
        else:
            pixels = _on_a_known_scale(image)
            order = input_data_format or infer_channel_dimension_format(
                pixels, num_channels=tuple({1, 3, channels})
            )
            if order == ChannelDimension.LAST:
                pixels = pixels.permute(2, 0, 1)
        return to_channels(pixels.contiguous().to(device), channels)

    def _preprocess(
        self,
        images: list[Tensor],
        do_resize: bool,
        size: Any,
        do_rescale: bool,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        return_tensors: str | None,
        **_: Any,
    ) -> BatchFeature:
        prepared = []
        for image in images:
            pixels = fit(image, (size.height, size.width)) if do_resize else image
            whole = pixels.dtype == torch.uint8 and do_rescale
            pixels = pixels.float().div_(255) if whole else pixels.float()
            if do_normalize:
                mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (image_mean, image_std))
                pixels = (pixels - mean.to(pixels.device)) / std.to(pixels.device)
            prepared.append(pixels)
        return BatchFeature(data={"pixel_values": prepared}, tensor_type=return_tensors)


def _file_pixels(path: Path) -> Tensor:
    """The upright image of a file, as the package's own reading gives it."""
    clear = with_clear_canvas(path)
    with Image.open(path if clear is None else BytesIO(clear), formats=readable_formats()) as image:
        return _pixels(image, path, str(path))


def _pixels(image: Image.Image, data: Path | Image.Image, name: str) -> Tensor:
    """What `decoded` gives; ValueError for a TIFF that Pillow gets wrong."""
    try:
        check_tags(image)
    except NotForPillowError as fault:
        raise ValueError(
            f"{name} is {fault}, of which Pillow gives wrong values or none: read it with tifffile"
            " and give the array"
        ) from fault
    check_size(image.size, name)
    return decoded(image, data, name)


def _on_a_known_scale(values: np.ndarray | Tensor) -> Tensor:
    """Pixels of an array or tensor: bytes as they are, 16 bits as [0, 1], floats as float32.

    Raises ValueError for other integers.
    """
    if isinstance(values, np.ndarray):  # torch takes neither foreign byte order nor backward steps
        values = torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
    if values.dtype == torch.uint8:
        return values
    if values.dtype == torch.uint16:
        return values.float() / 65535
    if values.is_floating_point() or values.dtype == torch.bool:
        return values.float()
    raise ValueError(
        f"pixels of type {str(values.dtype)[6:]} have no known scale: give uint8, uint16, or floats"
    )


__all__ = ["CrateMAEImageProcessor"]
