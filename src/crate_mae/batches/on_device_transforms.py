"""Whole batches changed at once on their device: random crops, flips, mixup and cutmix.

Shapes: B images (C, H, W).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crate_mae.batches.config import Augment, SupervisedAugment
from crate_mae.common.precision import float32_products
from crate_mae.common.randomness import AUGMENT, MIX, uniform

TRIES = 10
"""Crops that are drawn for an image before the largest one in its centre is taken."""
ASPECTS = (3 / 4, 4 / 3)
"""Narrowest and widest random crop, width over height, as in torchvision."""


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
