"""Loaders of a run's batches, and the position in them that a checkpoint keeps."""

import os
from functools import partial
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from crate_mae.batches.assembly import (
    MakeBatch,
    SourceBatches,
    StreamBatches,
    TimedLoader,
    Waiting,
    whole_batch,
)
from crate_mae.batches.broken import BrokenImages
from crate_mae.batches.config import DataConfig
from crate_mae.batches.on_device import DeviceBatches, DeviceMaker, FixedDeviceBatches
from crate_mae.batches.opening import OpenedData, open_data
from crate_mae.batches.samplers import EpochBatches, FixedBatches
from crate_mae.common.progress import StartProgress
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.sources.base import ImageSource, Share
from crate_mae.sources.webdataset import StreamSource


class BatchKind(Protocol):
    """What is made of the samples: masked or labelled batches, or crops."""

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
    `broken` are the images that could not be read so far. `whole_steps` hands out the batches of an
    optimiser step together, for losses that need them all at once. Everything else is there once
    `open` has been called.
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
        whole_steps: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.model_config, self.kind = config, model, kind
        self.size = model.image_hw if size is None else size
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed
        # Fewer validation images than devices leave some of them with none: nothing to warn about.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.batches_seen = 0
        self.whole_steps = whole_steps
        self.broken = BrokenImages(allowed=config.max_broken)
        self._open = partial(
            open_data,
            config,
            model=model,
            size=self.size,
            step_images=batch_size * accumulate * world_size,
            seed=seed,
            broken=self.broken,
            dataset=dataset,
            val_dataset=val_dataset,
            preprocess=preprocess,
            progress=progress,
        )
        self._opened: OpenedData | None = None
        self._waiting = Waiting()

    # -- images -------------------------------------------------------------------------------

    def open(self) -> None:
        """Open and check the sources, measure mean and std, fill the cache.

        Safe to call again. Raises ValueError for data that cannot train this model and
        TooManyBrokenImagesError.
        """
        if self._opened is None:
            self.kind.check(self.model_config)
            self._opened = self._open()

    @property
    def opened(self) -> OpenedData:
        """The images; RuntimeError before they were opened."""
        if self._opened is None:
            raise RuntimeError("the images are not open yet: call open() first")
        return self._opened

    @property
    def train_source(self) -> ImageSource | StreamSource:
        """The training images."""
        return self.opened.train

    @property
    def val_source(self) -> ImageSource | None:
        """The validation images, if there are any."""
        return self.opened.val

    @property
    def preprocess(self) -> Preprocess:
        """How images become model input."""
        return self.opened.preprocess

    @property
    def num_samples(self) -> int:
        """Training images that take part: without those found unreadable while decoding."""
        return len(self.opened.train)

    def keep_on(self, device: torch.device) -> Tensor | None:
        """The training images (n, C, H, W) on a device, or None where data.on_device is off.

        Safe to call again. Raises ValueError when they cannot be kept there.
        """
        kept = self.opened.kept
        return None if kept is None else kept.on(device)

    def facts(self) -> dict[str, Any]:
        """What the data are, in plain values, for the run folder."""
        train, val = self.train_source, self.val_source
        return {
            "source": train.address,
            "split": train.split,
            "images": len(train),
            "validation_images": len(val) if val is not None else 0,
            "validation_split": val.split if val is not None else None,
            "fingerprint": train.fingerprint(),
            "preprocess": self.preprocess.to_dict(),
            "unreadable": dict(self.broken),
        }

    @property
    def common_validation_batches(self) -> int:
        """Validation batches that every device has; some may have one more."""
        if self.val_source is None:
            return 0
        return -(-(len(self.val_source) // self._share().world_size) // self.batch_size)

    # -- loaders ------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch; the incomplete last one is left out."""
        return self.num_samples // (self.batch_size * self.accumulate * self._share().world_size)

    def train_dataloader(self) -> TimedLoader:
        """Batches of the training images, from `batches_seen` on.

        With `whole_steps` the first batch of each optimiser step holds all of the step's.
        """
        loader = self._training_loader()
        # The loader itself is not kept: it knows this module, and what knows each other ends late,
        # worker processes as well.
        loader.waiting = self._waiting
        if self.whole_steps:
            loader.batches_per_step = self.accumulate
        return loader

    def _training_loader(self) -> TimedLoader:
        if isinstance(self.train_source, StreamSource):
            return self._stream_loader(self.train_source)
        sampler = EpochBatches(
            num_samples=self.num_samples,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            share=self._share(),
            position=lambda: self.batches_seen,
        )
        kept = self.keep_on(self._device())
        if kept is not None:
            batches = DeviceBatches(self.train_source, kept, self.kind.device_maker(self))
            return _loader_on_device(batches, sampler)
        images = SourceBatches(self.train_source, self.kind.training_maker(self))
        cached = self.opened.train_cached
        return self._loader(images, cached=cached, persistent=True, batch_sampler=sampler)

    def val_dataloader(self) -> TimedLoader | list[TimedLoader]:
        """Every validation image once, not augmented."""
        if self.val_source is None:
            return []
        sampler = FixedBatches(
            num_samples=len(self.val_source), batch_size=self.batch_size, share=self._share()
        )
        images = SourceBatches(self.val_source, self.kind.validation_maker(self))
        kept, device = self.opened.kept, self._device()
        if kept is not None:
            kept.on(device)  # only then is it known how much room is left beside them
            return _loader_on_device(FixedDeviceBatches(images, device, room=kept.room), sampler)
        cached = self.opened.val_cached
        return self._loader(images, cached=cached, persistent=False, batch_sampler=sampler)

    @property
    def waited(self) -> float:
        """Seconds that training has waited for batches so far."""
        return self._waiting.seconds

    def _stream_loader(self, source: StreamSource) -> TimedLoader:
        share = self._share()
        stream = StreamBatches(
            source,
            self.kind.training_maker(self),
            share=share,
            batch_size=self.batch_size,
            batches_per_epoch=self.steps_per_epoch * self.accumulate,
            accumulate=self.accumulate,
        )
        most = max(1, len(source.shards) // share.world_size)  # a worker needs a shard
        loader = self._loader(stream, most=most, persistent=False, batch_size=None)
        loader.before_iteration = partial(self._place, stream)
        return loader

    def _place(self, stream: StreamBatches) -> None:
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

    def _share(self) -> Share:
        """What this device takes of the images."""
        if self.trainer is None:
            return Share(seed=self.seed)
        trainer = self.trainer
        return Share(seed=self.seed, rank=trainer.global_rank, world_size=trainer.world_size)

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
        self.broken.restore(state_dict["broken"])


def default_workers(*, cached: bool) -> int:
    """Loader processes that suit this machine: none for images in memory on a CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = max(1, torch.cuda.device_count())
    if cached and not torch.cuda.is_available():
        return 0
    return max(1, min(8, (cores or 1) // devices))


def _loader_on_device(
    batches: Dataset[Any], sampler: Sampler[list[tuple[int, int]]]
) -> TimedLoader:
    return TimedLoader(batches, batch_sampler=sampler, collate_fn=cast("Any", whole_batch))
