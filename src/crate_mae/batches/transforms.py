"""Images to model input: random transforms for training, fixed ones for everything else.

All work on tensors (C, H, W), uint8 or float32 on the [0, 1] scale, with any number of channels,
and keep the dtype; `normalise` makes the float32 batch that a model takes.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from crate_mae.batches.config import RAND_AUGMENT_MOST, Augment, SupervisedAugment
from crate_mae.models.config import Preprocess


def training_transform(augment: Augment, size: tuple[int, int]) -> v2.Transform:
    """A transform of images (C, H, W) to (C, *size); it draws from torch's global generator."""
    steps: list[v2.Transform] = []
    if augment.kind == "resized_crop":
        steps.append(resized_crop(size, (augment.min_scale, 1.0)))
    else:
        steps.append(v2.Lambda(partial(fit, size=size)))  # picklable, for workers
        if augment.kind == "pad_crop":
            # Reflection cannot reach further than the image itself.
            padding = min(augment.padding, size[0] - 1, size[1] - 1)
            steps.append(v2.RandomCrop(size, padding=padding, padding_mode="reflect"))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)


def resized_crop(size: tuple[int, int], scale: tuple[float, float]) -> v2.Transform:
    """A transform of images (C, H, W) to a random part of them, resized to (C, *size).

    `scale` is the range of the part's share of the area.
    """
    crop = v2.RandomResizedCrop(size, scale=scale)
    return v2.Lambda(partial(_cropped, crop=crop, size=size))  # picklable, for workers


def supervised_transform(augment: SupervisedAugment, preprocess: Preprocess) -> v2.Transform:
    """`training_transform`, then RandAugment when it is on.

    RandAugment's strength is a share of each operation's range (10 is all of it); pixels that it
    moves in from outside have the mean colour. Needs one or three channels: ValueError.
    """
    basic = training_transform(augment, preprocess.size)
    if not augment.rand_augment:
        return basic
    if preprocess.channels not in (1, 3):
        raise ValueError(
            f"augment.rand_augment needs images of 1 or 3 channels, not {preprocess.channels}"
        )
    build = partial(
        v2.RandAugment,
        magnitude=augment.rand_augment,
        num_magnitude_bins=RAND_AUGMENT_MOST + 1,
        interpolation=InterpolationMode.BILINEAR,
    )
    low, high = torch.tensor(preprocess.low), torch.tensor(preprocess.high)
    unit_mean = (torch.tensor(preprocess.mean) - low) / (high - low)
    by_type = partial(
        changed_by_type,
        of_bytes=build(fill=[255 * mean for mean in preprocess.mean]),
        of_floats=build(fill=unit_mean.tolist()),
    )
    change = partial(on_unit_scale, change=by_type, preprocess=preprocess)
    return v2.Compose([basic, v2.Lambda(change)])


def mixing(augment: SupervisedAugment, num_classes: int) -> v2.Transform | None:
    """What turns a pair's images (2, C, H, W) and labels (2,) into mixed ones; None when off.

    Labels become (2, num_classes), the share of each class. Draws from torch's global generator.
    """
    kinds = ((v2.MixUp, augment.mixup), (v2.CutMix, augment.cutmix))
    chosen = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]
    return v2.RandomChoice(chosen) if chosen else None


def fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of an image (C, H, W), scaled so that it just covers `size`: (C, *size).

    Deterministic, keeps the aspect ratio, bicubic with antialiasing; the identity when sizes agree.
    """
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    scaled = covering_size((height, width), size)
    centre: Tensor = tv.center_crop(resized(image, scaled), list(size))
    return _within_range(centre, image)


def covering_size(image_hw: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image, scaled so that it just covers `size`."""
    scale = max(size[0] / image_hw[0], size[1] / image_hw[1])
    return max(size[0], round(image_hw[0] * scale)), max(size[1], round(image_hw[1] * scale))


def dense_transform(
    augment: Augment, size: tuple[int, int]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A transform of an image (C, H, W) and its mask (H, W) to (C, *size) and `size`, both alike.

    Images change as by `training_transform`; masks take the nearest value, and edges are
    reflected in both. It draws from torch's global generator.
    """
    steps: list[v2.Transform] = []
    crop = None
    if augment.kind == "resized_crop":
        crop = v2.RandomResizedCrop(size, scale=(augment.min_scale, 1.0))
    elif augment.kind == "pad_crop":
        padding = min(augment.padding, size[0] - 1, size[1] - 1)
        steps.append(v2.RandomCrop(size, padding=padding, padding_mode="reflect"))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    further = v2.Compose(steps) if steps else None
    return partial(_changed_alike, crop=crop, size=size, further=further)


def dense_fit(image: Tensor, mask: Tensor, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """An image (C, H, W) as `fit` gives it, and the same part of its mask (H, W), nearest values.

    The identity when sizes agree.
    """
    if (mask.shape[0], mask.shape[1]) == size:
        return fit(image, size), mask
    scaled = covering_size((mask.shape[0], mask.shape[1]), size)
    part: Tensor = tv.center_crop(_nearest(mask, scaled)[None], list(size))
    return fit(image, size), part[0]


def _changed_alike(
    image: Tensor,
    mask: Tensor,
    *,
    crop: v2.RandomResizedCrop | None,
    size: tuple[int, int],
    further: v2.Transform | None,
) -> tuple[Tensor, Tensor]:
    if crop is None:
        image, mask = dense_fit(image, mask, size=size)
    else:
        place = crop.make_params([image])
        mask = _nearest(tv.crop(mask[None], **place)[0], size)
        image = _within_range(resized(tv.crop(image, **place), size), image)
    if further is None:
        return image, mask
    image, mask = further(tv_tensors.Image(image), tv_tensors.Mask(mask[None]))
    return image.as_subclass(Tensor), mask[0].as_subclass(Tensor)


def _nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) of another size, each pixel the value at its own centre.

    torchvision's own way with masks, "nearest", takes the value at the pixel's upper left corner:
    the mask would lie half a pixel beside its image.
    """
    resized: Tensor = tv.resize(
        mask[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT
    )
    return resized[0]


def normalise(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Model input (..., C, H, W), float32, from images of that shape, uint8 or in [0, 1]."""
    mean, std = (_per_channel(v, images.device) for v in (preprocess.mean, preprocess.std))
    if images.dtype == torch.uint8:
        # In place: memory for every step would take ten times as long as its arithmetic.
        return images.float().div_(255).sub_(mean).div_(std)
    return (images.float() - mean).div_(std)


def denormalise(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Images on the [0, 1] scale, float32, from model input (..., C, H, W); nothing is clipped."""
    mean, std = (_per_channel(v, images.device) for v in (preprocess.mean, preprocess.std))
    return images.float() * std + mean


ROUNDING = 1e-4
"""So much of its range a value may lie outside without being counted as outside."""


def value_range(
    images: Tensor, preprocess: Preprocess, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(Lowest, highest) values (C, 1, 1) of images (..., C, H, W) as `denormalise` gives them.

    Those of the preprocessing, made wider where the images leave them by more than rounding.
    `counted` (..., 1, H, W) says which pixels are looked at; all without it.
    """
    low, high = (_per_channel(v, images.device) for v in (preprocess.low, preprocess.high))
    known = images.isfinite() if counted is None else images.isfinite() & counted
    values = torch.where(known, images, low).movedim(-3, 0).flatten(1)
    least, most = values.amin(dim=1).view_as(low), values.amax(dim=1).view_as(high)
    if preprocess.channels in (1, 3):  # colours of one picture share a scale
        least, most = least.min().expand_as(low), most.max().expand_as(high)
    slack = ROUNDING * (high - low)
    return (
        torch.where(least < low - slack, least, low),
        torch.where(most > high + slack, most, high),
    )


def displayed(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Model input (..., C, H, W) as it is drawn: in [0, 1], from the lowest value to the highest.

    The two are those of `value_range`, so that nothing is cut off.
    """
    values = denormalise(images, preprocess)
    low, high = value_range(values, preprocess)
    return ((values - low) / (high - low)).clamp(0, 1)


def prepare(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """Model input (B, C, H, W) for decoded images of any sizes: fixed fit, then normalised."""
    return normalised_batch([fit(image, preprocess.size) for image in images], preprocess)


def normalised_batch(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """Model input (B, C, H, W) for images (C, H, W) of one size; their dtypes may differ."""
    if len({image.dtype for image in images}) == 1:
        return normalise(torch.stack(list(images)), preprocess)
    # Stacking would turn bytes into floats without scaling them.
    return torch.stack([normalise(image, preprocess) for image in images])


def on_unit_scale(
    image: Tensor, change: Callable[[Tensor], Tensor], preprocess: Preprocess
) -> Tensor:
    """An image (C, H, W) changed by what knows bytes and floats in [0, 1] alone.

    Floats of another range, `low` to `high`, are brought there and back.
    """
    if image.dtype == torch.uint8:
        return change(image)
    low, high = (_per_channel(v, image.device) for v in (preprocess.low, preprocess.high))
    return change((image - low) / (high - low)) * (high - low) + low


def changed_by_type(image: Tensor, of_bytes: v2.Transform, of_floats: v2.Transform) -> Tensor:
    """An image (C, H, W) changed by the transform that is made for its type."""
    changed: Tensor = (of_bytes if image.dtype == torch.uint8 else of_floats)(image)
    return changed


def _cropped(image: Tensor, crop: v2.RandomResizedCrop, size: tuple[int, int]) -> Tensor:
    part = tv.crop(image, **crop.make_params([image]))
    return _within_range(resized(part, size), image)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (C, H, W) of another size (C, *size), bicubic with antialiasing.

    Torch cannot make images that are one pixel wide of images of another height: most values come
    out wrong without a word, and one pixel of three bytes ends in an internal assertion. Each axis
    of these is resized by itself, in the same order, and beside a copy, so that torch never makes
    a single pixel in the first step nor a single column in the second. All that torch makes right
    keeps its value.
    """
    if size[1] > 1:
        return _bicubic(image, size)
    height = image.shape[-2]
    column = _bicubic(image.repeat(1, 2, 1), (2 * height, 1))[:, :height]
    return _bicubic(column.repeat(1, 1, 2), (size[0], 2))[..., :1]


def _bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    resized: Tensor = tv.resize(
        image, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return resized


def _within_range(resized: Tensor, image: Tensor) -> Tensor:
    """Bicubic overshoots; a float image must not leave the range it had."""
    if not image.dtype.is_floating_point:
        return resized
    return resized.clamp(float(image.min()), float(image.max()))


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept, as sending them to a GPU would wait for all that it still has to do."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
