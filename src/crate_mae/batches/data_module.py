"""From a data configuration to loaders, with everything checked before training starts."""

import logging
import os
from functools import partial
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from crate_mae.batches.assembly import (
    BatchMaker,
    MakeBatch,
    MaskedStream,
    SourceBatches,
    TimedLoader,
    whole_batch,
)
from crate_mae.batches.cache import CachedSource, decoded_bytes
from crate_mae.batches.config import VALIDATION_SEED, DataConfig
from crate_mae.batches.on_device import (
    DeviceBatches,
    DeviceMaker,
    FixedDeviceBatches,
    NotKeptError,
    check_room,
    kept_images,
)
from crate_mae.batches.samplers import EpochBatches, FixedBatches
from crate_mae.common.progress import StartProgress
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource, random_subset
from crate_mae.sources.describe import measure_statistics
from crate_mae.sources.images import UnreadableImage, to_channels
from crate_mae.sources.splits import split_off
from crate_mae.sources.torch_datasets import wrap_dataset
from crate_mae.sources.webdataset import StreamSource

logger = logging.getLogger(__name__)

STATISTICS_SAMPLES = 10_000


class TooManyBrokenImagesError(RuntimeError):
    """Raised when a larger share of images is unreadable than the configuration allows."""


class BatchKind(Protocol):
    """What is made of the samples: masked or labelled batches."""

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError when such batches do not suit the model."""

    def training_maker(self, data: "ImageDataModule") -> MakeBatch:
        """What turns training samples into batches: random, but fixed by the sample."""
        ...

    def device_maker(self, data: "ImageDataModule") -> DeviceMaker:
        """What turns images on a device into training batches there."""
        ...

    def validation_maker(self, data: "ImageDataModule") -> MakeBatch:
        """What turns validation samples into batches: always the same ones."""
        ...


class ImageDataModule(LightningDataModule):
    """Batches of any source, the same whatever the workers, devices and restarts.

    `kind` says what is made of the samples; `size` (height, width) is the model's unless given.
    `batches_seen` is the position in the data: how many batches this device has trained on.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        model: ModelConfig,
        kind: BatchKind,
        size: tuple[int, int] | None = None,
        batch_size: int,
        accumulate: int = 1,
        world_size: int = 1,
        seed: int = 0,
        dataset: Dataset[Any] | ImageSource | None = None,
        val_dataset: Dataset[Any] | ImageSource | None = None,
        preprocess: Preprocess | None = None,
        progress: StartProgress | None = None,
    ) -> None:
        super().__init__()
        self.config, self.model_config, self.kind = config, model, kind
        self.size = model.image_hw if size is None else size
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed
        self.effective_batch = batch_size * accumulate * world_size
        self.cache_left = config.cache_gib * 2**30
        # Fewer validation images than devices leave some of them with none: nothing to warn about.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.batches_seen = 0
        self.broken: dict[str, str] = {}
        self._given = (dataset, val_dataset)
        self._preprocess = preprocess
        self._progress = progress
        self._train_loader: TimedLoader | None = None
        self._kept: Tensor | None = None
        self._room = int(self.cache_left)
        self._opened = False

    # -- opening: checks first, then statistics, then the cache -------------------------------

    def open(self) -> None:
        """Open and check the sources, measure mean and std, fill the cache.

        Safe to call again. Raises ValueError for data that cannot train this model and
        TooManyBrokenImagesError.
        """
        if self._opened:
            return
        self.kind.check(self.model_config)
        train, val = self._open_sources()
        self.num_images = train.count() if isinstance(train, StreamSource) else len(train)
        self.num_images += 0 if val is None else len(val)
        if isinstance(train, ImageSource):
            self._check_first_image(train)
        if val is not None:
            self._check_first_image(val)
        if isinstance(train, ImageSource):
            train = self._cache(train)
        if self.config.on_device:
            self._kept = self._images_to_keep(train)
        if val is not None and isinstance(train, ImageSource):
            val = self._cache(val)
        self.num_samples = train.count() if isinstance(train, StreamSource) else len(train)
        if self.num_samples < self.effective_batch:
            raise ValueError(
                f"{self.num_samples} training images are fewer than one batch of"
                f" {self.effective_batch}; use more images or"
                f" optim.batch_size={_below(self.num_samples)}"
            )
        self.preprocess = self._preprocess or self._facts(train)
        self._check_preprocess()
        self.train_source, self.val_source = train, val
        self._opened = True

    def keep_on(self, device: torch.device) -> Tensor | None:
        """The training images (n, C, H, W) on a device, or None where data.on_device is off.

        Safe to call again. Raises ValueError when they cannot be kept there.
        """
        if self._kept is not None and self._kept.device != device:
            self._room = check_room(self._kept, device)
            self._kept = self._kept.to(device)
        return self._kept

    def facts(self) -> dict[str, Any]:
        """What the data are, in plain values, for the run folder."""
        return {
            "source": self.train_source.address,
            "split": self.train_source.split,
            "images": self.num_samples,
            "validation_images": len(self.val_source) if self.val_source is not None else 0,
            "fingerprint": self.train_source.fingerprint(),
            "preprocess": self.preprocess.to_dict(),
            "unreadable": self.broken,
        }

    def _open_sources(self) -> tuple[ImageSource | StreamSource, ImageSource | None]:
        config = self.config
        given, given_val = self._given
        train: ImageSource | StreamSource
        if given is not None:
            train = as_source(given, config.limit, self.seed)
        else:
            train = open_source(
                config.source, split=config.split, limit=config.limit, seed=self.seed
            )
        val: ImageSource | StreamSource | None = None
        if given_val is not None:
            val = as_source(given_val, config.val_limit)
        elif config.val_source is not None or config.val_split is not None:
            address = config.val_source or config.source
            if address.startswith("wds:"):
                raise ValueError(
                    f"validation needs a source of known size, not {address}: name data.val_source"
                )
            val = open_source(address, split=config.val_split, limit=config.val_limit)
            same = val.split == train.split or "all" in (val.split, train.split)
            if val.address == train.address and same:
                logger.warning("validation images are training images: name data.val_split")
        elif config.val_share and isinstance(train, ImageSource):
            train, val = split_off(train, config.val_share, VALIDATION_SEED, config.val_limit)
        elif config.val_share:
            logger.warning("a stream has no held-out share: name data.val_source for validation")
        assert not isinstance(val, StreamSource)
        return train, val

    def _check_first_image(self, source: ImageSource) -> None:
        height, width = self.size
        patch_height, patch_width = self.model_config.patch_hw
        for index in range(min(len(source), 16)):
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
            try:
                to_channels(source.load(index).image, self.model_config.channels)
            except ValueError as error:
                raise ValueError(f"{source.name(index)}: {error}") from error
            except UnreadableImage:
                continue
            if facts.height * 2 <= height and facts.width * 2 <= width:
                logger.warning(
                    "%s is %dx%d and is enlarged to model.image_size %dx%d",
                    source.name(index), facts.height, facts.width, height, width,
                )  # fmt: skip
            return

    def _cache(self, source: ImageSource) -> ImageSource:
        if isinstance(source, CachedSource) or not len(source):
            return source
        size = decoded_bytes(source)
        if size > self.cache_left:
            return source
        self.cache_left -= size
        cached = CachedSource(
            source, progress=None if self._progress is None else self._progress("decoding")
        )
        self.note_broken(cached.broken)
        self.stop_if_broken()
        return cached

    def _images_to_keep(self, train: ImageSource | StreamSource) -> Tensor:
        if isinstance(train, StreamSource):
            raise NotKeptError(
                f"{train.address} is a stream, which cannot be kept on a device: leave"
                " data.on_device out"
            )
        if not isinstance(train, CachedSource):
            size = decoded_bytes(train) / 2**30
            raise NotKeptError(
                f"the decoded images take about {size:.2f} GiB, more than data.cache_gib"
                f" {self.config.cache_gib:g} leaves room for: raise it, or leave data.on_device out"
            )
        return kept_images(
            train,
            channels=self.model_config.channels,
            size=self.size,
            augment=self.config.augment,
        )

    def _facts(self, train: ImageSource | StreamSource) -> Preprocess:
        model, config = self.model_config, self.config
        if config.mean is not None and config.std is not None:
            mean, std = tuple(config.mean), tuple(config.std)
        elif isinstance(train, StreamSource):
            raise ValueError(
                "a stream cannot be measured before training: give data.mean and data.std"
            )
        else:
            mean, std = measure_statistics(
                train, channels=model.channels, limit=STATISTICS_SAMPLES, seed=self.seed
            )
        return Preprocess(size=self.size, channels=model.channels, mean=mean, std=std)

    def _check_preprocess(self) -> None:
        model, given = self.model_config, self.preprocess
        if (given.size, given.channels) != (self.size, model.channels):
            raise ValueError(
                f"preprocessing for {given.channels} channels of {given.size[0]}x{given.size[1]}"
                f" does not fit a model for {model.channels} channels of"
                f" {self.size[0]}x{self.size[1]}"
            )

    # -- broken images ------------------------------------------------------------------------

    def note_broken(self, broken: list[tuple[str, str]]) -> None:
        """Name unreadable images in the log, each once."""
        for name, reason in broken:
            if name not in self.broken:
                self.broken[name] = reason
                logger.warning("unreadable image passed over: %s (%s)", name, reason)

    @property
    def too_many_broken(self) -> bool:
        """Whether more images are unreadable than the configuration allows."""
        return len(self.broken) > self.config.max_broken * self.num_images

    def stop_if_broken(self) -> None:
        """Raise TooManyBrokenImagesError above the allowed share, with the list."""
        if not self.too_many_broken:
            return
        allowed, total = self.config.max_broken, self.num_images
        listed = "\n".join(f"  {name}: {reason}" for name, reason in self.broken.items())
        raise TooManyBrokenImagesError(
            f"{len(self.broken)} of {total} images cannot be read, more than the allowed share of"
            f" {allowed:g} (data.max_broken):\n{listed}"
        )

    # -- loaders ------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch; the incomplete last one is left out."""
        world = self.trainer.world_size if self.trainer is not None else 1
        return self.num_samples // (self.batch_size * self.accumulate * world)

    def train_dataloader(self) -> TimedLoader:
        """Batches of the training images, from `batches_seen` on."""
        rank, world = self._rank_and_world()
        make = self.kind.training_maker(self)
        if isinstance(self.train_source, StreamSource):
            assert isinstance(make, BatchMaker)
            stream = MaskedStream(
                self.train_source,
                make,
                batch_size=self.batch_size,
                batches_per_epoch=self.steps_per_epoch * self.accumulate,
                rank=rank,
                world_size=world,
            )
            most = max(1, len(self.train_source.shards) // world)  # a worker needs a shard
            loader = self._loader(stream, most=most, persistent=False, batch_size=None)
            loader.before_iteration = partial(self._place, stream)
        else:
            sampler = EpochBatches(
                num_samples=self.num_samples,
                batch_size=self.batch_size,
                accumulate=self.accumulate,
                rank=rank,
                world_size=world,
                seed=self.seed,
                position=lambda: self.batches_seen,
            )
            if self.config.on_device:
                kept = self.keep_on(self._device())
                assert kept is not None
                batches = DeviceBatches(self.train_source, kept, self.kind.device_maker(self))
                loader = _loader_on_device(batches, sampler)
            else:
                images = SourceBatches(self.train_source, make)
                cached = isinstance(self.train_source, CachedSource)
                loader = self._loader(images, cached=cached, persistent=True, batch_sampler=sampler)
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> TimedLoader | list[TimedLoader]:
        """Every validation image once, not augmented."""
        if self.val_source is None:
            return []
        rank, world = self._rank_and_world()
        sampler = FixedBatches(
            num_samples=len(self.val_source),
            batch_size=self.batch_size,
            rank=rank,
            world_size=world,
        )
        images = SourceBatches(self.val_source, self.kind.validation_maker(self))
        if self.config.on_device:
            self.keep_on(self._device())
            fixed = FixedDeviceBatches(images, self._device(), room=self._room)
            return _loader_on_device(fixed, sampler)
        cached = isinstance(self.val_source, CachedSource)
        return self._loader(images, cached=cached, persistent=False, batch_sampler=sampler)

    @property
    def waited(self) -> float:
        """Seconds that training has waited for batches so far."""
        return self._train_loader.waited if self._train_loader is not None else 0.0

    def _place(self, stream: MaskedStream) -> None:
        stream.position, stream.known_broken = self.batches_seen, frozenset(self.broken)

    def _loader(
        self,
        dataset: Any,
        *,
        persistent: bool,
        cached: bool = False,
        most: int | None = None,
        **batching: Any,
    ) -> TimedLoader:
        workers = self.config.workers
        if workers is None:
            workers = default_workers(cached=cached)
            workers = workers if most is None else min(workers, most)
        return TimedLoader(
            dataset,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=cast("Any", whole_batch),
            **batching,
        )

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _device(self) -> torch.device:
        if self.trainer is None:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    # -- position in the data, in the training checkpoint ---------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values that fix the position in the data."""
        return {"batches_seen": self.batches_seen, "broken": dict(self.broken)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the position that `state_dict` gave."""
        self.batches_seen = int(state_dict["batches_seen"])
        self.broken = dict(state_dict["broken"])


def _loader_on_device(batches: Dataset[Any], sampler: Any) -> TimedLoader:
    return TimedLoader(batches, batch_sampler=sampler, collate_fn=cast("Any", whole_batch))


def as_source(dataset: Dataset[Any] | ImageSource, limit: int | None, seed: int = 0) -> ImageSource:
    """The source of a Python dataset; at most `limit` images, drawn by the seed."""
    source = dataset if isinstance(dataset, ImageSource) else wrap_dataset(dataset)
    return source if limit is None else random_subset(source, limit, seed)


def default_workers(*, cached: bool) -> int:
    """Loader processes that suit this machine: none for images in memory on a CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = max(1, torch.cuda.device_count())
    if cached and not torch.cuda.is_available():
        return 0
    return max(1, min(8, (cores or 1) // devices))


def _below(count: int) -> int:
    """The largest power of two that is at most `count`, or 1."""
    return 1 << max(0, count.bit_length() - 1)
