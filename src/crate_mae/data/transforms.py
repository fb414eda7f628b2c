"""Images to model input: random transforms for training, fixed ones for everything else.

All work on tensors (C, H, W), uint8 or float32 on the [0, 1] scale, with any number of channels,
and keep the dtype; `normalise` makes the float32 batch that a model takes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from crate_mae.models.config import Preprocess

AugmentKind = Literal["resized_crop", "pad_crop", "none"]
RAND_AUGMENT_MOST = 10


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to training images; the defaults are MAE's."""

    kind: AugmentKind = "resized_crop"
    """"resized_crop" (MAE), "pad_crop" (pad, then crop back: for small images) or "none"."""
    min_scale: float = 0.2
    """Smallest area share of a random resized crop."""
    padding: int = 4
    """Pixels added on each side before the crop of "pad_crop" (edges reflected)."""
    flip: bool = True
    """Whether half of the images are mirrored left to right."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(AugmentKind):
            raise ValueError(
                f"augment.kind must be one of {', '.join(get_args(AugmentKind))}, not {self.kind!r}"
            )
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"augment.min_scale must be in (0, 1], not {self.min_scale}")
        if self.padding < 0:
            raise ValueError(f"augment.padding must be at least 0, not {self.padding}")


@dataclass(frozen=True, kw_only=True)
class SupervisedAugment(Augment):
    """Random changes to labelled training images: those of `Augment`, and stronger ones."""

    rand_augment: int = 0
    """RandAugment: two random operations of this strength, from 0 (off) to 10; MAE uses 9."""
    erasing: float = 0.0
    """Share of the images in which one rectangle becomes noise, after normalisation."""
    mixup: float = 0.0
    """Blend pairs of images and labels, by a share drawn from Beta(mixup, mixup); 0 for never."""
    cutmix: float = 0.0
    """Paste a rectangle of one image of a pair into the other and mix the labels by its area, which
    is drawn from Beta(cutmix, cutmix); 0 for never. With both, a pair gets one or the other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rand_augment <= RAND_AUGMENT_MOST:
            raise ValueError(
                f"augment.rand_augment must be from 0 to {RAND_AUGMENT_MOST},"
                f" not {self.rand_augment}"
            )
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"augment.erasing must be in [0, 1], not {self.erasing}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"augment.{name} must be at least 0, not {getattr(self, name)}")

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0


def training_transform(augment: Augment, size: tuple[int, int]) -> v2.Transform:
    """A transform of images (C, H, W) to (C, *size); it draws from torch's global generator."""
    steps: list[v2.Transform] = []
    if augment.kind == "resized_crop":
        crop = v2.RandomResizedCrop(
            size,
            scale=(augment.min_scale, 1.0),
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        )
        steps.append(v2.Lambda(partial(_cropped, crop=crop)))
    else:
        steps.append(v2.Lambda(partial(fit, size=size)))  # picklable, for workers
        if augment.kind == "pad_crop":
            # Reflection cannot reach further than the image itself.
            padding = min(augment.padding, size[0] - 1, size[1] - 1)
            steps.append(v2.RandomCrop(size, padding=padding, padding_mode="reflect"))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)


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
    change = partial(
        _rand_augmented,
        of_bytes=build(fill=[255 * mean for mean in preprocess.mean]),
        of_floats=build(fill=list(preprocess.mean)),
    )
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
    scale = max(size[0] / height, size[1] / width)
    scaled = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    resized = tv.resize(image, scaled, interpolation=InterpolationMode.BICUBIC, antialias=True)
    centre: Tensor = tv.center_crop(resized, list(size))
    return _within_range(centre, image)


def normalise(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Model input (..., C, H, W), float32, from images of that shape, uint8 or in [0, 1]."""
    mean, std = (_per_channel(v, images.device) for v in (preprocess.mean, preprocess.std))
    scaled = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
    return (scaled - mean) / std


def denormalise(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Images on the [0, 1] scale, float32, from model input (..., C, H, W); nothing is clipped."""
    mean, std = (_per_channel(v, images.device) for v in (preprocess.mean, preprocess.std))
    return images.float() * std + mean


def prepare(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """Model input (B, C, H, W) for decoded images of any sizes: fixed fit, then normalised."""
    return normalised_batch([fit(image, preprocess.size) for image in images], preprocess)


def normalised_batch(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """Model input (B, C, H, W) for images (C, H, W) of one size; their dtypes may differ."""
    if len({image.dtype for image in images}) == 1:
        return normalise(torch.stack(list(images)), preprocess)
    # Stacking would turn bytes into floats without scaling them.
    return torch.stack([normalise(image, preprocess) for image in images])


def _rand_augmented(image: Tensor, of_bytes: v2.Transform, of_floats: v2.Transform) -> Tensor:
    changed: Tensor = (of_bytes if image.dtype == torch.uint8 else of_floats)(image)
    return changed


def _cropped(image: Tensor, crop: v2.Transform) -> Tensor:
    return _within_range(crop(image), image)


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
