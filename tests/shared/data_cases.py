"""Sources and batches that the tests of loading share."""

import io
import tarfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crate_mae.batches.assembly import Batch, BatchMaker
from crate_mae.batches.config import Augment, Masking
from crate_mae.batches.transforms import training_transform
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage

MODEL = ModelConfig(
    image_size=8,
    patch_size=2,
    channels=1,
    dim=16,
    depth=1,
    num_heads=2,
    decoder_depth=1,
    decoder_num_heads=2,
)
GREY = Preprocess(size=(8, 8), channels=1, mean=(0.25,), std=(0.5,))


class Pictures(ImageSource):
    """Random images (channels, *size) that depend on their number alone; some cannot be read."""

    def __init__(
        self,
        count: int,
        *,
        size: tuple[int, int] = (8, 8),
        channels: int = 1,
        broken: Collection[int] = (),
    ) -> None:
        self.address, self.split, self.class_names = "pictures", None, ("even", "odd")
        self.count, self.shape, self.broken = count, (channels, *size), frozenset(broken)
        self.loads = 0

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Sample:
        """The image of that number."""
        self.loads += 1
        if index in self.broken:
            raise UnreadableImage(self.name(index), "torn")
        return Sample(image=self.pixels(index), label=index % 2, name=self.name(index))

    def pixels(self, index: int) -> Tensor:
        """The pixels of that number."""
        values = np.random.default_rng(index).integers(0, 256, self.shape, np.uint8)
        return torch.from_numpy(values)

    def name(self, index: int) -> str:
        """A name with the number."""
        return f"picture-{index:03d}"

    def label(self, index: int) -> int:
        """Whether the number is odd."""
        return index % 2

    def facts(self, index: int) -> ImageFacts:
        """Mode and size."""
        if index in self.broken:
            raise UnreadableImage(self.name(index), "torn")
        return ImageFacts(f"{self.shape[0]} x uint8", *self.shape[1:])


def batch_maker(
    augment: Augment | None = None,
    *,
    masking: Masking | None = None,
    preprocess: Preprocess = GREY,
    seed: int = 0,
) -> BatchMaker:
    """A maker of batches of 8x8 images in 2x2 patches."""
    return BatchMaker(
        transform=training_transform(augment or Augment(), (8, 8)),
        preprocess=preprocess,
        masking=masking or Masking(),
        grid=(4, 4),
        seed=seed,
    )


def same_batches(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    """Whether both hold the same images, masks, numbers and names in the same order."""
    return len(first) == len(second) and all(
        torch.equal(a["images"], b["images"])
        and torch.equal(a["mask"], b["mask"])
        and torch.equal(a["index"], b["index"])
        and a["names"] == b["names"]
        for a, b in zip(first, second, strict=True)
    )


def indices(batches: Iterable[Batch]) -> list[int]:
    """The numbers of all samples in the order of the batches."""
    return [int(index) for batch in batches for index in batch["index"]]


def write_shards(folder: Path, sizes: Sequence[int], broken: Collection[int] = ()) -> str:
    """The address of tar shards of so many grey 8x8 images; broken ones hold no image."""
    folder.mkdir()
    number = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{shard:02d}.tar", "w") as archive:
            for _ in range(size):
                data = b"torn" if number in broken else _png(number)
                info = tarfile.TarInfo(f"{number:04d}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                number += 1
    return f"wds:{folder}"


def bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (C, H, W) of another size in float64, from the definition of the kernel alone.

    Keys' kernel with a = -1/2, widened where an axis shrinks. Bytes are rounded after each axis.
    """
    made = _axis_weights(image.shape[2], size[1]) @ image.double().mT  # columns first
    made = _as_bytes(made) if image.dtype == torch.uint8 else made
    made = _axis_weights(image.shape[1], size[0]) @ made.mT
    return _as_bytes(made) if image.dtype == torch.uint8 else made


def _axis_weights(length: int, out: int) -> Tensor:
    step = length / out
    rows = []
    for place in range(out):
        row = []
        for pixel in range(length):
            x = abs(pixel + 0.5 - (place + 0.5) * step) / max(step, 1)
            near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            row.append(near if x < 1 else far if x < 2 else 0.0)
        rows.append([value / sum(row) for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def _as_bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255)


def _png(number: int) -> bytes:
    values = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()
