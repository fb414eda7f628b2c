"""Images that stay on the training device, changed and masked there a whole batch at once.

For small images and fast devices, where decoding and changing images one by one would make training
wait. What a batch holds depends on (seed, epoch, sample) alone, as with loader processes: every
sample's random numbers are a hash of that key, the same on every device. They are other numbers
than those of loader processes, with the same distribution; the order of the samples, and what
validates, are the same.

Shapes: B images (C, H, W) of L patches.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from crate_mae.batches.assembly import ImageBatch, SourceBatches
from crate_mae.batches.cache import CachedSource
from crate_mae.batches.config import Augment, Masking
from crate_mae.batches.on_device_transforms import Mixing, augmented
from crate_mae.batches.samplers import step_of
from crate_mae.batches.transforms import fit, normalise
from crate_mae.common.randomness import DEPTH, MASK, numbers, uniform
from crate_mae.models.config import Preprocess
from crate_mae.models.masks import num_kept, spread
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import to_channels

FREE_SHARES = (0.5, 0.1)
"""Shares of a GPU's free memory that training images and validation batches may take."""


class NotKeptError(ValueError):
    """Raised for images that cannot be kept: streams, too many, or not alike."""


class KeptImages:
    """The training images of a run in one tensor, and the room beside them on their device.

    They begin on the CPU, with `room` bytes left for validation batches.
    """

    def __init__(self, images: Tensor, *, room: int) -> None:
        self.images, self.room = images, room

    def on(self, device: torch.device) -> Tensor:
        """The images (n, C, H, W) on a device, where they are moved to if they are not there yet.

        Raises ValueError where they do not fit, and for devices that images cannot be kept on.
        """
        if self.images.device != device:
            self.room = check_room(self.images, device)
            self.images = self.images.to(device)
        return self.images


def stacked_images(
    source: CachedSource, *, channels: int, size: tuple[int, int], augment: Augment
) -> Tensor:
    """All images of a source in one tensor (n, C, H, W) on the CPU, uint8 or float32.

    They are fitted to `size`, unless `augment` crops them itself. Raises NotKeptError, naming two
    of them, when they then differ in size or type.
    """
    crops = augment.kind == "resized_crop"
    whole = source.stacked
    if whole is not None and whole.shape[1] == channels and (crops or whole.shape[2:] == size):
        return whole
    images: list[Tensor] = []
    for index in range(len(source)):
        sample = source.load(index)
        try:
            image = to_channels(sample.image, channels)
        except ValueError as error:
            raise ValueError(f"{sample.name}: {error}") from error
        image = image if crops else fit(image, size)
        first = images[0] if images else image
        if image.shape != first.shape:
            shapes = ["x".join(map(str, each.shape[1:])) for each in (first, image)]
            raise NotKeptError(
                f"data.on_device cannot crop images of several sizes: {source.name(0)} is"
                f" {shapes[0]}, {sample.name} is {shapes[1]}; use data.augment.kind=pad_crop, which"
                " fits them to the model first, or leave data.on_device out"
            )
        if image.dtype != first.dtype:
            raise NotKeptError(
                f"data.on_device needs images of one type: {source.name(0)} holds {first.dtype},"
                f" {sample.name} {image.dtype}; leave it out"
            )
        images.append(image)
    return torch.stack(images)


def check_room(images: Tensor, device: torch.device) -> int:
    """How many bytes of a device validation batches may take, beside training images.

    Raises ValueError where these do not fit, and for devices that images cannot be kept on.
    """
    if device.type == "cpu":
        return images.nbytes
    if device.type != "cuda":
        raise ValueError(
            f"data.on_device is for CPUs and NVIDIA GPUs, not for {device.type}: leave it out"
        )
    free, _ = torch.cuda.mem_get_info(device)
    if images.nbytes > FREE_SHARES[0] * free:
        raise ValueError(
            f"the images take {images.nbytes / 2**30:.1f} GiB and the GPU has"
            f" {free / 2**30:.1f} GiB free, half of it for them: leave data.on_device out, or set"
            " data.limit"
        )
    return int(FREE_SHARES[1] * free)


@dataclass(frozen=True, kw_only=True)
class DeviceMaker:
    """What turns kept images into training batches, on their device."""

    augment: Augment
    preprocess: Preprocess
    seed: int
    masking: Masking | None = None
    """None for batches without masks."""
    grid: tuple[int, int] = (0, 0)
    mix: Mixing | None = None
    """Applied to labelled images."""
    drop_rates: tuple[float, ...] | None = None
    """For each layer, the probability that an image leaves out the MSSA step."""

    def images(self, kept: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Changed, normalised images (B, C, H, W), float32."""
        size = self.preprocess.size
        changed = augmented(kept[index], index, self.augment, size, self.seed, epoch)
        return normalise(changed, self.preprocess)

    def masks(self, index: Tensor, epoch: int, step: int) -> Tensor:
        """Masks (B, L) of images in an optimiser step."""
        assert self.masking is not None
        ratio = self.masking.step_ratio(self.seed, step)
        return masks_of(self.masking, self.grid, index, self.seed, epoch, ratio=ratio)


class DeviceBatches(Dataset[Any]):
    """Whole training batches from images (n, C, H, W) on a device, by lists of (epoch, index)."""

    def __init__(self, source: ImageSource, kept: Tensor, maker: DeviceMaker) -> None:
        self.source, self.kept, self.maker, self.device = source, kept, maker, kept.device
        self.labels: Tensor | None = None
        if maker.masking is None:
            labels = [source.label(index) for index in range(len(source))]
            if None in labels:
                name = source.name(labels.index(None))
                raise ValueError(f"{name} has no label: leave it out")
            self.labels = torch.tensor(labels, device=self.device)
        self.stays = None
        if maker.drop_rates is not None:
            self.stays = 1 - torch.tensor(maker.drop_rates, device=self.device)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Any:
        maker, epoch = self.maker, keys[0][0]  # an epoch ends with a whole batch
        indices = [index for _, index in keys]
        index = torch.tensor(indices)
        if self.device.type == "cuda":
            index = index.pin_memory().to(self.device, non_blocking=True)
        batch: dict[str, Any] = dict(
            ImageBatch(
                images=maker.images(self.kept, index, epoch),
                index=index,
                names=[self.source.name(i) for i in indices],
                broken=[],
            )
        )
        if maker.masking is not None:
            batch["mask"] = maker.masks(index, epoch, step_of(keys))
            return batch
        assert self.labels is not None
        batch["labels"] = batch["targets"] = self.labels[index]
        if maker.mix is not None:
            batch["images"], batch["targets"] = maker.mix(
                batch["images"], batch["labels"], indices, maker.seed, epoch
            )
        batch["keep"] = None
        if self.stays is not None:
            drawn = uniform(index, len(self.stays), DEPTH, maker.seed, epoch)
            batch["keep"] = ((drawn < self.stays) / self.stays).T
        return batch


class FixedDeviceBatches(Dataset[Any]):
    """Batches that never change, on a device: for validation.

    The first ones, up to `room` bytes, stay there once they were made.
    """

    def __init__(self, batches: SourceBatches, device: torch.device, *, room: int) -> None:
        self.batches, self.device, self.room = batches, device, room
        self.made: dict[tuple[int, int], Any] = {}

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Any:
        place = keys[0][1], keys[-1][1]
        if place in self.made:
            return self.made[place]
        batch = {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in self.batches.__getitems__(keys).items()
        }
        self.room -= sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
        if self.room >= 0:
            self.made[place] = batch
        return batch


def masks_of(
    masking: Masking,
    grid: tuple[int, int],
    index: Tensor,
    *key: int,
    ratio: float | None = None,
) -> Tensor:
    """Masks (B, L), True = removed, each fixed by its index (B,) and `key`, on the index' device.

    Random masks are drawn there; the other kinds, which are built step by step, on the CPU.
    `ratio` is that of the step, as `Masking.draw` takes it.
    """
    if masking.kind != "random":
        drawn = [masking.draw(grid, *key, i, ratio=ratio) for i in index.tolist()]
        return torch.stack(drawn).to(index.device, non_blocking=True)
    coarse = (grid[0] // masking.square, grid[1] // masking.square)
    return spread(_random_masks(masking, coarse, index, *key, ratio=ratio), coarse, masking.square)


def _random_masks(
    masking: Masking, grid: tuple[int, int], index: Tensor, *key: int, ratio: float | None
) -> Tensor:
    patches = grid[0] * grid[1]
    # The first number of each sample is for its ratio.
    ranks = numbers(index, patches + 1, MASK, *key)[:, 1:].argsort(dim=1).argsort(dim=1)
    if ratio is not None:
        return ranks >= num_kept(patches, ratio)
    if masking.ratio_max is None:
        return ranks >= num_kept(patches, masking.ratio)
    share = uniform(index, 1, MASK, *key).double()
    ratios = masking.ratio + (masking.ratio_max - masking.ratio) * share
    return ranks >= (patches * (1 - ratios)).long()
