"""Images that stay on the training device and are changed there, a whole batch at once.

For small images and fast devices, where decoding and changing images one by one would make training
wait. What a batch holds depends on (seed, epoch, sample) alone, as with loader processes: every
sample's random numbers are a hash of that key, the same on every device. They are other numbers
than those of loader processes, with the same distribution; the order of the samples, and what
validates, are the same.

Shapes: B images (C, H, W) of L patches.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from crate_mae.data.base import ImageSource
from crate_mae.data.batches import (
    AUGMENT,
    DEPTH,
    MASK,
    MIX,
    ImageBatch,
    Masking,
    SourceBatches,
)
from crate_mae.data.cache import CachedSource
from crate_mae.data.images import to_channels
from crate_mae.data.transforms import Augment, SupervisedAugment, fit, normalise
from crate_mae.models.config import Preprocess
from crate_mae.models.masks import keyed_generator, num_kept
from crate_mae.precision import float32_products

TRIES = 10
"""Crops that are drawn for an image before the largest one in its centre is taken."""
ASPECTS = (3 / 4, 4 / 3)
"""Narrowest and widest random crop, width over height, as in torchvision."""
FREE_SHARES = (0.5, 0.1)
"""Shares of a GPU's free memory that training images and validation batches may take."""


class NotKeptError(ValueError):
    """Raised for images that cannot be kept: streams, too many, or not alike."""


# -- random numbers by key ----------------------------------------------------------------------


def numbers(index: Tensor, count: int, *key: int) -> Tensor:
    """Random 64-bit whole numbers (B, count), fixed by each index (B,) and by whole numbers `key`.

    The same on every device. Source: the finaliser and the counter of SplitMix64 (Steele, Lea,
    Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
    """
    first = _scrambled(index.long() * _GAMMA + keyed_generator(*key).initial_seed())
    counter = torch.arange(1, count + 1, device=index.device)
    return _scrambled(first[:, None] + counter * _GAMMA)


def uniform(index: Tensor, count: int, *key: int) -> Tensor:
    """Random numbers (B, count) in [0, 1), float32, fixed by each index (B,) and by `key`."""
    return (numbers(index, count, *key) >> 40 & 0xFFFFFF).float() / 2**24


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _scrambled(x: Tensor) -> Tensor:
    # int64 wraps around; the masks turn its arithmetic shifts into logical ones.
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _FACTORS[0]
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _FACTORS[1]
    return x ^ (x >> 31 & (1 << 33) - 1)


# -- masks ---------------------------------------------------------------------------------------


def masks_of(masking: Masking, grid: tuple[int, int], index: Tensor, *key: int) -> Tensor:
    """Masks (B, L), True = removed, each fixed by its index (B,) and `key`, on the index' device.

    Random masks are drawn there; the other kinds, which are built step by step, on the CPU.
    """
    patches = grid[0] * grid[1]
    if masking.kind != "random":
        drawn = [masking.draw(grid, *key, i) for i in index.tolist()]
        return torch.stack(drawn).to(index.device, non_blocking=True)
    # The first number of each sample is for its ratio.
    ranks = numbers(index, patches + 1, MASK, *key)[:, 1:].argsort(dim=1).argsort(dim=1)
    if masking.ratio_max is None:
        return ranks >= num_kept(patches, masking.ratio)
    share = uniform(index, 1, MASK, *key).double()
    ratio = masking.ratio + (masking.ratio_max - masking.ratio) * share
    return ranks >= (patches * (1 - ratio)).long()


# -- augmentation ---------------------------------------------------------------------------------


def augmented(
    images: Tensor, index: Tensor, augment: Augment, size: tuple[int, int], *key: int
) -> Tensor:
    """Randomly changed images (B, C, *size) of the same dtype, each fixed by its index and `key`.

    What `transforms.training_transform` does, for a whole batch: `images` (B, C, H, W) are of that
    size already, but for the resized crop. Crops of bytes differ from those of torchvision by one
    level, seldom two, as it rounds its weights.
    """
    drawn = uniform(index, 1 + 4 * TRIES, AUGMENT, *key)
    flipped = drawn[:, 0] < 0.5 if augment.flip else torch.zeros_like(drawn[:, 0], dtype=torch.bool)
    if augment.kind == "resized_crop":
        top, left, height, width = _crops(drawn[:, 1:], images.shape[-2:], augment.min_scale)
        rows = _cubic_weights(top, height, images.shape[-2], size[0])
        columns = _cubic_weights(left, width, images.shape[-1], size[1])
        columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
        return _resampled(images, rows, columns)
    # Reflection cannot reach further than the image itself.
    reach = min(augment.padding, size[0] - 1, size[1] - 1) if augment.kind == "pad_crop" else 0
    places = []
    for axis, length in enumerate(size):
        offset = (drawn[:, 1 + axis] * (2 * reach + 1)).long() - reach
        place = (torch.arange(length, device=index.device) + offset[:, None]).abs()
        places.append(length - 1 - (length - 1 - place).abs())
    rows, columns = places
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    batch = torch.arange(len(images), device=index.device)[:, None, None]
    return images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _crops(
    drawn: Tensor, size: tuple[int, int] | torch.Size, min_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height, width (B,) of random crops from uniform numbers (B, 4 x tries)."""
    full_height, full_width = size
    area, aspect, down, right = drawn.double().view(len(drawn), TRIES, 4).unbind(-1)
    area = full_height * full_width * (min_scale + (1 - min_scale) * area)
    low, high = (math.log(value) for value in ASPECTS)
    aspect = (low + (high - low) * aspect).exp()
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    good = (width >= 1) & (width <= full_width) & (height >= 1) & (height <= full_height)
    first = good.int().argmax(dim=1, keepdim=True)  # the first that fits
    height, width, down, right = (
        value.gather(1, first)[:, 0] for value in (height, width, down, right)
    )
    none = ~good.any(dim=1)
    within = [float(full_height), float(full_width)]
    within[0] = min(within[0], round(within[1] / ASPECTS[0]))
    within[1] = min(within[1], round(within[0] * ASPECTS[1]))
    height = torch.where(none, torch.full_like(height, within[0]), height)
    width = torch.where(none, torch.full_like(width, within[1]), width)
    top, left = (
        (down * (full_height - height + 1)).floor(),
        (right * (full_width - width + 1)).floor(),
    )
    top = torch.where(none, (full_height - height).div(2).floor(), top)
    left = torch.where(none, (full_width - width).div(2).floor(), left)
    return top, left, height, width


def _cubic_weights(start: Tensor, length: Tensor, full: int, out: int) -> Tensor:
    """Weights (B, out, full) that resize the part [start, start + length) of an axis to `out`.

    Bicubic (Keys, a = -1/2), widened when it shrinks (antialiased), and of the part alone.
    """
    step = (length / out)[:, None, None]
    centre = start[:, None, None] + (torch.arange(out, device=start.device)[:, None] + 0.5) * step
    place = torch.arange(full, device=start.device).double()
    x = ((place + 0.5 - centre) / step.clamp(min=1)).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    first, last = start[:, None, None], (start + length)[:, None, None]
    weights = weights * ((place >= first) & (place < last))
    return (weights / weights.sum(dim=-1, keepdim=True)).float()


def _resampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    with float32_products(tf32=False):  # images depend on their key, not on how a model computes
        if images.dtype == torch.uint8:  # bytes are rounded after each axis, as torchvision does
            wide = (images.float() @ columns[:, None].mT).round_().clamp_(0, 255)
            return (rows[:, None] @ wide).round_().clamp_(0, 255).to(torch.uint8)
        low, high = images.flatten(1).aminmax(dim=1)
        made = rows[:, None] @ (images @ columns[:, None].mT)
        return made.clamp(low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1))


# -- mixing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Pairs of neighbours in a batch mixed by mixup or cutmix; with both, one or the other."""

    mixup: float
    cutmix: float
    num_classes: int

    def __call__(
        self, images: Tensor, labels: Tensor, indices: list[int], *key: int
    ) -> tuple[Tensor, Tensor]:
        """Mixed images (B, C, H, W) and the share of each class (B, classes).

        Fixed by the index of each pair's first sample and `key`; an odd last image stays.
        """
        targets = torch.nn.functional.one_hot(labels, self.num_classes).float()
        first = torch.tensor(indices[: len(indices) // 2 * 2 : 2])
        if not len(first):
            return images, targets
        drawn = uniform(first, 4, MIX, *key).double()  # on the CPU, as the inverse below is
        pasted = torch.full((len(first),), self.cutmix > 0)
        if self.mixup and self.cutmix:
            pasted = drawn[:, 0] < 0.5
        share = torch.where(pasted, _beta(self.cutmix, drawn[:, 1]), _beta(self.mixup, drawn[:, 1]))
        boxes, area = _boxes(1 - share, drawn[:, 2:], images.shape[-2:])
        share = torch.where(pasted, 1 - area, share)
        whole = (~pasted)[:, None, None] * share[:, None, None]  # of the image's own pixels
        own = _sent(whole + pasted[:, None, None] * ~boxes, images.device)
        share = _sent(share, images.device)
        partner = torch.arange(2 * len(first), device=images.device).view(-1, 2).flip(1).flatten()
        own = own[:, None].repeat_interleave(2, dim=0)
        share = share[:, None].repeat_interleave(2, dim=0)
        mixed, of_pairs = images[: len(partner)], targets[: len(partner)]
        mixed = own * mixed + (1 - own) * mixed[partner]
        of_pairs = share * of_pairs + (1 - share) * of_pairs[partner]
        rest = slice(len(partner), None)
        return torch.cat([mixed, images[rest]]), torch.cat([of_pairs, targets[rest]])


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values as float32 on a device, without waiting for what the device still has to do."""
    values = values.float()
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def mixing_on_device(augment: SupervisedAugment, num_classes: int) -> Mixing | None:
    """What mixes batches as an augmentation says; None when it mixes nothing."""
    if not augment.mixes:
        return None
    return Mixing(mixup=augment.mixup, cutmix=augment.cutmix, num_classes=num_classes)


def _beta(alpha: float, u: Tensor) -> Tensor:
    """Beta(alpha, alpha) numbers from uniform ones, by the inverse of the distribution."""
    if not alpha:
        return torch.ones_like(u)
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, u.numpy()))


def _boxes(area: Tensor, centre: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Boxes (P, H, W) of about these shares of an image, cut at its edges, and their true shares.

    Source: CutMix (Yun et al., ICCV 2019), its equation 2.
    """
    inside = []
    for axis, length in enumerate(size):
        middle = (centre[:, axis] * length).floor()
        half = (0.5 * area.sqrt() * length).floor()
        place = torch.arange(length)
        low, high = (middle - half)[:, None], (middle + half)[:, None]
        inside.append((place >= low) & (place < high))
    boxes = inside[0][:, :, None] & inside[1][:, None, :]
    return boxes, boxes.double().mean(dim=(1, 2))


# -- batches --------------------------------------------------------------------------------------


def kept_images(
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
        changed = augmented(
            kept[index], index, self.augment, self.preprocess.size, self.seed, epoch
        )
        return normalise(changed, self.preprocess)


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
            batch["mask"] = masks_of(maker.masking, maker.grid, index, maker.seed, epoch)
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
