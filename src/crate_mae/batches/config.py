"""The settings of data: which images, how they are changed for training, how they are masked."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from crate_mae.common.randomness import MASK, RATIO, keyed_generator
from crate_mae.models.masks import MaskKind, draw_mask, num_kept, spread
from crate_mae.sources.found import Reading

VALIDATION_SEED = 20_240_404
"""Fixes held-out images and their masks, the same whatever the run's seed."""
RAND_AUGMENT_MOST = 10
"""The greatest strength of RandAugment."""
MOST_VIEWS = 64
"""Local crops that an image may have."""
AugmentKind = Literal["resized_crop", "pad_crop", "none"]
"""How training images are cropped, see `Augment.kind`."""


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


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Which patches are removed from an image."""

    kind: MaskKind = "random"
    """"random" (published), "block" or "grid"."""
    ratio: float = 0.75
    """Share of patches removed; the lower end when `ratio_max` is set."""
    ratio_max: float | None = None
    """Upper end of a range from which ratios are drawn evenly."""
    ratio_per: Literal["image", "step"] = "image"
    """What has a ratio of its own where `ratio_max` is set: each image, or all images of an
    optimiser step, which visible-only encoding can batch (R^2MAE, arXiv 2509.21650). By step,
    validation is at the middle of the range."""
    square: int = 1
    """Side, in patches, of the squares that random masks remove or keep whole: 2 hides 2 x 2
    patches together (as Pixio does, arXiv 2512.15716); 1 as published."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(MaskKind):
            raise ValueError(
                f"masking.kind must be one of {', '.join(get_args(MaskKind))}, not {self.kind!r}"
            )
        if self.ratio_max is not None and not self.ratio <= self.ratio_max:
            raise ValueError(
                f"masking.ratio_max {self.ratio_max} is below masking.ratio {self.ratio}"
            )
        if self.ratio_per not in ("image", "step"):
            raise ValueError(f"masking.ratio_per must be image or step, not {self.ratio_per!r}")
        if self.square < 1 or (self.square > 1 and self.kind != "random"):
            raise ValueError(
                "masking.square must be at least 1, and squares are for masking.kind=random alone,"
                f" not {self.square} with {self.kind}"
            )

    def check(self, grid: tuple[int, int]) -> None:
        """Raise ValueError for ratios and squares that do not fit the grid."""
        if any(side % self.square for side in grid):
            raise ValueError(
                f"masking.square {self.square} must divide the grid of {grid[0]} x {grid[1]}"
                " patches"
            )
        for ratio in (self.ratio, self.ratio if self.ratio_max is None else self.ratio_max):
            num_kept(grid[0] * grid[1] // self.square**2, ratio)

    def __str__(self) -> str:
        share = f"{self.ratio:.0%}"
        if self.ratio_max is not None:
            share += f" to {self.ratio_max:.0%} (by {self.ratio_per})"
        squares = f", squares of {self.square} x {self.square}" if self.square > 1 else ""
        return f"{share} ({self.kind}{squares})"

    @property
    def one_count(self) -> bool:
        """Whether all images of all steps keep the same number of patches."""
        return self.ratio_max is None

    @property
    def batchable(self) -> bool:
        """Whether all images of a step keep the same number of patches."""
        return self.one_count or self.ratio_per == "step"

    @property
    def of_validation(self) -> "Masking":
        """How images that validate are masked: they have no step, so by the middle of its range."""
        if self.ratio_max is None or self.ratio_per == "image":
            return self
        return replace(self, ratio=(self.ratio + self.ratio_max) / 2, ratio_max=None)

    def kept(self, grid: tuple[int, int], ratio: float | None = None) -> int:
        """How many patches of a grid stay at a ratio; `ratio` of these settings unless given."""
        area = self.square**2
        return area * num_kept(grid[0] * grid[1] // area, self.ratio if ratio is None else ratio)

    def step_ratio(self, seed: int, step: int) -> float | None:
        """The ratio of all images of an optimiser step; None where each image has its own."""
        if self.ratio_max is None:
            return self.ratio
        if self.ratio_per == "image":
            return None
        share = float(torch.rand((), generator=keyed_generator(RATIO, seed, step)))
        return self.ratio + (self.ratio_max - self.ratio) * share

    def draw(self, grid: tuple[int, int], *key: int, ratio: float | None = None) -> Tensor:
        """The mask (L,) of the whole numbers in `key`, such as (seed, epoch, sample).

        `ratio` is that of the step; None: drawn here where a range is given.
        """
        generator = keyed_generator(MASK, *key)
        if ratio is None:
            ratio = self.ratio
            if self.ratio_max is not None:
                ratio += (self.ratio_max - ratio) * float(torch.rand((), generator=generator))
        coarse = (grid[0] // self.square, grid[1] // self.square)
        return spread(draw_mask(self.kind, coarse, ratio, generator), coarse, self.square)[0]


@dataclass(frozen=True, kw_only=True)
class Crops:
    """The views of each image that SimDINO trains on: two global crops, and smaller local ones.

    The defaults are the published ones for images of 224 pixels, DINO's changes of colour included.
    """

    local_views: int = 10
    """Local crops of each image; 0 for the two global ones alone."""
    local_size: int | tuple[int, int] = 96
    """Height and width of local crops in pixels, a multiple of the patch; global crops are as large
    as model.image_size."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest share of the image's area in a global crop."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Smallest and largest share of the image's area in a local crop."""
    flip: bool = True
    """Whether half of the views are mirrored left to right."""
    jitter: float = 1.0
    """Strength of random changes of brightness, contrast, saturation and hue, in 80 % of the views:
    1 for DINO's (0.4, 0.4, 0.2, 0.1), 0 for none."""
    grey: float = 0.2
    """Share of the views that lose their colour."""
    blur: float = 2.0
    """Largest deviation in pixels of a Gaussian blur (of all first global crops, 10 % of the second
    ones, half of the local ones); 0 for none."""
    solarise: float = 0.2
    """Share of the second global crops whose bright pixels are inverted."""

    def __post_init__(self) -> None:
        if not 0 <= self.local_views <= MOST_VIEWS:
            raise ValueError(
                f"crops.local_views must be from 0 to {MOST_VIEWS}, not {self.local_views}"
            )
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"crops.{name} must be two shares in (0, 1], the smaller first,"
                    f" not {getattr(self, name)}"
                )
        for name, most in (("jitter", 2), ("grey", 1), ("blur", 16), ("solarise", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(
                    f"crops.{name} must be from 0 to {most}, not {getattr(self, name)}"
                )

    @property
    def local_hw(self) -> tuple[int, int]:
        """Height and width of local crops."""
        size = self.local_size
        return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are changed for training and how they are loaded."""

    source: str = "digits"
    """Address of the training images, such as imagefolder:PATH or parquet:PATH."""
    split: str | None = None
    """Split of the source; the source's training split when not given."""
    limit: int | None = None
    """Use this many images only: a random choice, the same one whatever the run's seed."""
    image_key: str | None = None
    """Column, array or member that holds the images; the usual names when not given."""
    label_key: str | None = None
    """Column, array or member that holds the labels, "none" for none; the usual names if not given.
    """
    follow_links: bool = False
    """Whether links to folders are entered."""
    val_source: str | None = None
    """Address of the validation images; the training source when not given."""
    val_split: str | None = None
    """Split that validates. Without one: the validation split of `val_source`, else all that is
    read there; without `val_source`, `val_share` of the training images is held out."""
    val_share: float = 0.1
    """Share of the training images held out when there is no validation split; 0 for none."""
    val_limit: int | None = 10_000
    """At most this many validation images, the same ones whatever the run's seed."""
    augment: Augment = field(default_factory=Augment)
    """Random changes to training images."""
    mean: list[float] | None = None
    """Per-channel mean on the [0, 1] scale; measured on the training images when not given."""
    std: list[float] | None = None
    """Per-channel standard deviation on the [0, 1] scale; measured when not given."""
    workers: int | None = None
    """Loader processes per device; chosen from the cores and the data when not given."""
    cache_gib: float = 2.0
    """Keep the decoded images in memory while they take at most this much, in each process."""
    on_device: bool = False
    """Keep the decoded images on the training device and augment whole batches there: for small
    images and fast devices. Other random crops and masks than without, drawn in the same way."""
    max_broken: float = 0.01
    """Stop when more than this share of the images cannot be read."""

    @property
    def reading(self) -> Reading:
        """How every source of the run is read."""
        return Reading(
            image_key=self.image_key, label_key=self.label_key, follow_links=self.follow_links
        )

    def __post_init__(self) -> None:
        for name, limit in (("limit", self.limit), ("val_limit", self.val_limit)):
            if limit is not None and limit < 1:
                raise ValueError(f"data.{name} must be at least 1, not {limit}")
        if not 0 <= self.val_share < 1:
            raise ValueError(f"data.val_share must be in [0, 1), not {self.val_share}")
        if not 0 <= self.max_broken <= 1:
            raise ValueError(f"data.max_broken must be in [0, 1], not {self.max_broken}")
        if not 0 <= self.cache_gib < math.inf:
            raise ValueError(
                f"data.cache_gib must be a number of GiB, at least 0, not {self.cache_gib}"
            )
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"data.workers must be at least 0, not {self.workers}")
        if self.on_device and self.workers:
            raise ValueError(
                f"data.on_device needs no loader processes: leave data.workers {self.workers} out"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("data.mean and data.std go together: give both or neither")


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig(DataConfig):
    """Which labelled images, how many of their labels are used, and which images test."""

    shots: int | None = None
    """Use this many labelled images of each class (few-shot), drawn by the seed."""
    share: float | None = None
    """Use this share of the labelled images of each class, such as 0.01, drawn by the seed."""
    val_share: float = 0.0
    """Share of the training images of each class held out for validation; 0 for none."""
    test_source: str | None = None
    """Address of the test images; the training source when not given."""
    test_split: str | None = None
    """Split that tests; "test", else "validation", else a held-out fifth when not given."""
    test_limit: int | None = None
    """At most this many test images (a fixed random choice)."""
    augment: SupervisedAugment = field(default_factory=SupervisedAugment)
    """Random changes to training images and labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, count in (("shots", self.shots), ("test_limit", self.test_limit)):
            if count is not None and count < 1:
                raise ValueError(f"data.{name} must be at least 1, not {count}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"data.share must be above 0 and at most 1, not {self.share}")
        if self.shots is not None and self.share is not None:
            raise ValueError("data.shots and data.share both say how many labels: give one")
        augment = self.augment
        if self.on_device and (augment.rand_augment or augment.erasing):
            raise ValueError(
                "data.on_device crops, flips and mixes alone: set augment.rand_augment and"
                " augment.erasing to 0, or leave it out"
            )
