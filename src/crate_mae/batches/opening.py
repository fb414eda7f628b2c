"""From a data configuration to the images of a run: opened, checked, measured, kept in memory."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from crate_mae.batches.broken import BrokenImages
from crate_mae.batches.cache import CachedSource, decoded_bytes
from crate_mae.batches.config import VALIDATION_SEED, DataConfig
from crate_mae.batches.measuring import chosen_preprocess
from crate_mae.batches.on_device import KeptImages, NotKeptError, stacked_images
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.sources.address import CHOICE_SEED, open_source, open_validation
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import Sample, UnreadableImage, to_channels
from crate_mae.sources.splits import split_off
from crate_mae.sources.torch_datasets import as_source
from crate_mae.sources.webdataset import StreamSource

logger = logging.getLogger(__name__)

CHECKED_IMAGES = 16
"""Images of a source that are tried for one that shows whether they fit the model."""

Progress = Callable[[str], Callable[[int, int], None] | None]
"""Given the name of some work, what reports (done, total); such as `progress.counter`."""


class TooFewImagesError(ValueError):
    """Fewer training images than one optimiser step takes; `images` is their number."""

    def __init__(self, images: int, step_images: int) -> None:
        super().__init__(
            f"{images} training images are fewer than one batch of {step_images}; use more images,"
            " a smaller optim.batch_size, or fewer devices and trainer.accumulate"
        )
        self.images = images


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """The images of a run and how they become model input."""

    train: ImageSource | StreamSource
    val: ImageSource | None
    preprocess: Preprocess
    kept: KeptImages | None
    """The training images once more, where data.on_device asks for it."""

    @property
    def train_cached(self) -> bool:
        """Whether the training images lie decoded in memory."""
        return isinstance(self.train, CachedSource)

    @property
    def val_cached(self) -> bool:
        """Whether the validation images lie decoded in memory."""
        return isinstance(self.val, CachedSource)


def open_data(
    config: DataConfig,
    *,
    model: ModelConfig,
    size: tuple[int, int],
    step_images: int,
    seed: int,
    broken: BrokenImages,
    dataset: Dataset[Any] | ImageSource | None = None,
    val_dataset: Dataset[Any] | ImageSource | None = None,
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
) -> OpenedData:
    """The images that a configuration names, checked against the model before any training.

    Images are brought to `size` (height, width); `step_images` of them make an optimiser step. Data
    sets in Python replace the sources, and a given `preprocess` what would be measured. `broken` is
    told how many images there are, and which of them could not be decoded.
    Raises TooFewImagesError, ValueError for other data that cannot train this model, and
    TooManyBrokenImagesError.
    """
    train, val = _open_sources(config, dataset, val_dataset)
    broken.total = len(train) + (0 if val is None else len(val))
    for source in (train, val):
        if isinstance(source, ImageSource):
            check_first_image(source, model, size)
    memory = _Memory(config.cache_gib * 2**30, broken, progress)
    kept = None
    if isinstance(train, ImageSource):
        train = memory.cached(train)
    if config.on_device:
        room = int(config.cache_gib * 2**30)
        kept = KeptImages(_images_to_keep(train, config, model, size), room=room)
    if val is not None and isinstance(train, ImageSource):
        val = memory.cached(val)
    if len(train) < step_images:
        raise TooFewImagesError(len(train), step_images)
    preprocess = chosen_preprocess(train, config, model, size, seed, given=preprocess)
    return OpenedData(train=train, val=val, preprocess=preprocess, kept=kept)


# -- sources ------------------------------------------------------------------------------------


def _open_sources(
    config: DataConfig,
    dataset: Dataset[Any] | ImageSource | None,
    val_dataset: Dataset[Any] | ImageSource | None,
) -> tuple[ImageSource | StreamSource, ImageSource | None]:
    train: ImageSource | StreamSource
    if dataset is not None:
        if val_dataset is None and config.val_source is None and config.val_split is not None:
            raise ValueError(
                f"data.val_split {config.val_split} is a split of {config.source}, not of the data"
                " set given in Python: give val_dataset, or data.val_share for a part of it"
            )
        train = as_source(dataset, config.limit, CHOICE_SEED)
    else:
        train = open_source(
            config.source,
            split=config.split,
            limit=config.limit,
            seed=CHOICE_SEED,
            reading=config.reading,
        )
    if val_dataset is not None:
        return train, as_source(val_dataset, config.val_limit)
    if config.val_source is not None or config.val_split is not None:
        return train, _validation_source(config, train)
    if config.val_share and isinstance(train, ImageSource):
        return split_off(train, config.val_share, VALIDATION_SEED, config.val_limit)
    if config.val_share:
        logger.warning("a stream has no held-out share: name data.val_source for validation")
    return train, None


def _validation_source(config: DataConfig, train: ImageSource | StreamSource) -> ImageSource:
    """The validation images that a configuration names by themselves."""
    address = config.val_source or config.source
    if address.startswith("wds:"):
        raise ValueError(
            f"validation needs a source of known size, not {address}: name data.val_source"
        )
    val = named_validation(config)
    same = val.split == train.split or "all" in (val.split, train.split)
    if val.address == train.address and same:
        logger.warning("validation images are training images: name data.val_split")
    return val


def named_validation(config: DataConfig, *, labelled: bool = False) -> ImageSource:
    """The images that a configuration names for validation; raises as `open_validation`."""
    return open_validation(
        config.source,
        config.val_source,
        config.val_split,
        limit=config.val_limit,
        reading=config.reading,
        labelled=labelled,
    )


def check_first_image(source: ImageSource, model: ModelConfig, size: tuple[int, int]) -> None:
    """Raise ValueError unless the first readable image suits the model."""
    height, width = size
    patch_height, patch_width = model.patch_hw
    for index in range(min(len(source), CHECKED_IMAGES)):
        try:
            facts = source.facts(index)
        except UnreadableImage:
            continue
        if facts.height < patch_height or facts.width < patch_width:
            raise ValueError(
                f"{source.name(index)} is {facts.height}x{facts.width}, smaller than a"
                f" {patch_height}x{patch_width} patch; use a smaller model.patch_size, or"
                " leave such images out"
            )
        sample = source.read(index)
        if not isinstance(sample, Sample):
            continue
        try:
            to_channels(sample.image, model.channels)
        except ValueError as error:
            raise ValueError(f"{source.name(index)}: {error}") from error
        if facts.height * 2 <= height and facts.width * 2 <= width:
            logger.warning(
                "%s is %dx%d and is enlarged to model.image_size %dx%d",
                source.name(index), facts.height, facts.width, height, width,
            )  # fmt: skip
        return


# -- memory -------------------------------------------------------------------------------------


class _Memory:
    """How many bytes decoded images may still take; what cannot be decoded is noted."""

    def __init__(self, left: float, broken: BrokenImages, progress: Progress | None) -> None:
        self.left, self.broken, self.progress = left, broken, progress

    def cached(self, source: ImageSource) -> ImageSource:
        """The source with its images decoded in memory, or itself where they take too much."""
        if isinstance(source, CachedSource) or not len(source):
            return source
        size = decoded_bytes(source)
        if size > self.left:
            return source
        self.left -= size
        report = None if self.progress is None else self.progress("decoding")
        decoded = CachedSource(source, progress=report)
        self.broken.note(decoded.broken)
        self.broken.stop_if_too_many()
        return decoded


def _images_to_keep(
    train: ImageSource | StreamSource,
    config: DataConfig,
    model: ModelConfig,
    size: tuple[int, int],
) -> Tensor:
    if isinstance(train, StreamSource):
        raise NotKeptError(
            f"{train.address} is a stream, which cannot be kept on a device: leave"
            " data.on_device out"
        )
    if not isinstance(train, CachedSource):
        taken = decoded_bytes(train) / 2**30
        raise NotKeptError(
            f"the decoded images take about {taken:.2f} GiB, more than data.cache_gib"
            f" {config.cache_gib:g} leaves room for: raise it, or leave data.on_device out"
        )
    return stacked_images(train, channels=model.channels, size=size, augment=config.augment)
