"""Sources of images written by the tests themselves, and what the tests ask of any source."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource

Encode = Callable[..., bytes]
MakeImage = Callable[..., Image.Image]
Write = Callable[..., Path]

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)


def opened(address: str, **options: Any) -> ImageSource:
    """The source of an address that can be indexed."""
    source = open_source(address, **options)
    assert isinstance(source, ImageSource)
    return source


def names_of(source: ImageSource) -> list[str]:
    """The names of all its images."""
    return [source.name(index) for index in range(len(source))]


def labels_of(source: ImageSource) -> list[int | None]:
    """The labels of all its images."""
    return [source.label(index) for index in range(len(source))]


def picture_table(
    images: Sequence[bytes | None], *, struct: bool = True, **columns: Any
) -> pa.Table:
    """A table with a column of encoded images, as the Hugging Face Hub has them, and others."""
    cells: list[Any] = [{"bytes": i, "path": f"{n}.png"} for n, i in enumerate(images)]
    return pa.table({"picture": cells if struct else images, **columns})


class Items(torch.utils.data.Dataset[Any]):
    """A dataset with given items and any further attributes."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item
