"""Batches for training: what a batch holds depends on (seed, epoch, sample) alone.

Not on the number of workers, devices or restarts. Order, augmentation and mask each have their own
stream of random numbers, so that changing one leaves the others as they were.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from time import perf_counter
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchvision.transforms import v2

from crate_mae.batches.broken import listed, readable
from crate_mae.batches.config import Masking
from crate_mae.batches.samplers import step_of
from crate_mae.batches.transforms import normalised_batch
from crate_mae.common.randomness import AUGMENT, keyed_generator, seed_globally
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import ImageSource, Share
from crate_mae.sources.images import Sample, UnreadableImage, to_channels
from crate_mae.sources.webdataset import StreamSource, decode_record

LAP = 1_000_003
"""What a second lap over a stream adds to the epoch: more epochs than any run has."""


class SampleBatch(TypedDict):
    """What every batch holds."""

    index: Tensor
    """(B,) int64, position of each sample in its source (a stable hash for streams)."""
    names: list[str]
    broken: list[tuple[str, str]]
    """(name, reason) of images that could not be read and were passed over."""


class ImageBatch(SampleBatch):
    """A batch of one image a sample."""

    images: Tensor
    """(B, C, H, W) float32, normalised."""


class Batch(ImageBatch):
    """A batch for masked training; `mask` is True where a patch is removed."""

    mask: Tensor
    """(B, L) boolean."""


Numbered = tuple[int, int, Sample]
"""A sample with its epoch and its index."""


class MakeBatch(Protocol):
    """What makes a batch."""

    def __call__(
        self, samples: list[Numbered], broken: list[tuple[str, str]], step: int = 0, /
    ) -> Any:
        """A batch of numbered samples, what could not be read, and the optimiser step."""


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """Turns samples into masked batches: channels, transform, normalisation, mask."""

    transform: v2.Transform | Callable[[Tensor], Tensor]
    preprocess: Preprocess
    masking: Masking
    grid: tuple[int, int]
    seed: int

    def __call__(
        self, samples: list[Numbered], broken: list[tuple[str, str]], step: int = 0
    ) -> Batch:
        """The batch of (epoch, index, sample) triples; global random state is left as it was."""
        ratio = self.masking.step_ratio(self.seed, step)
        masks = [
            self.masking.draw(self.grid, self.seed, epoch, index, ratio=ratio)
            for epoch, index, _ in samples
        ]
        return Batch(
            images=transformed_images(samples, self.transform, self.preprocess, self.seed),
            mask=torch.stack(masks),
            index=torch.tensor([index for _, index, _ in samples]),
            names=[sample.name for _, _, sample in samples],
            broken=broken,
        )


def transformed_images(
    samples: list[Numbered],
    transform: v2.Transform | Callable[[Tensor], Tensor],
    preprocess: Preprocess,
    seed: int,
) -> Tensor:
    """The transformed, normalised images (B, C, H, W) of samples.

    The transform draws from torch's global generator, which is seeded for each sample and put back
    afterwards. Raises ValueError naming an image whose channels do not fit.
    """
    images = []
    with torch.random.fork_rng(devices=[]):
        for epoch, index, sample in samples:
            try:
                image = to_channels(sample.image, preprocess.channels)
            except ValueError as error:
                raise ValueError(f"{sample.name}: {error}") from error
            seed_globally(AUGMENT, seed, epoch, index)
            images.append(transform(image))
    return normalised_batch(images, preprocess)


class SourceBatches(Dataset[Any]):
    """Whole batches from a map-style source, by lists of (epoch, index).

    An unreadable image is replaced by the next readable one and named in `broken`.
    """

    def __init__(self, source: ImageSource, make: MakeBatch) -> None:
        self.source = source
        self.make = make

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Any:
        broken: list[tuple[str, str]] = []
        samples = [(epoch, index, self._readable(index, broken)) for epoch, index in keys]
        return self.make(samples, broken, step_of(keys))

    def _readable(self, index: int, broken: list[tuple[str, str]]) -> Sample:
        size = len(self.source)
        entries = (self.source.read((index + step) % size) for step in range(size))
        sample = next(readable(entries, broken), None)
        if sample is None:
            raise ValueError(f"no readable image in {self.source.address}: {listed(broken)}")
        return sample


class StreamBatches(IterableDataset[Any]):
    """Whole batches from a stream of shards, continued after `position` batches.

    Batches are dealt to workers in turn. A worker whose shards run out begins a share of the next
    order, so with shards of unequal length some images come twice in an epoch and others not at
    all; which ones depends on the number of workers and devices.

    To continue, each worker passes over the images it has already given without decoding them.
    That is exact for the same workers and devices if `known_broken` names the unreadable images
    met so far; one that is missing there counts as an image given, and moves the rest by one.
    """

    def __init__(
        self,
        source: StreamSource,
        make: MakeBatch,
        *,
        share: Share,
        batch_size: int,
        batches_per_epoch: int,
        accumulate: int = 1,
    ) -> None:
        self.accumulate = accumulate
        self.source, self.make = source, make
        self.share = replace(share, shuffle=True)
        self.batch_size, self.batches_per_epoch = batch_size, batches_per_epoch
        self.position = 0
        self.known_broken: frozenset[str] = frozenset()
        if batches_per_epoch < 1:
            raise ValueError(f"the images of {source.address} do not fill one step")

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, done = divmod(self.position, self.batches_per_epoch)
        worker = (worker + done) % workers  # the loader asks its first worker first
        mine = range(worker, self.batches_per_epoch, workers)
        taken = sum(batch < done for batch in mine)
        share = replace(self.share, epoch=epoch, worker=worker, num_workers=workers)
        entries = self._endless(share, skip=taken * self.batch_size)
        for batch in mine[taken:]:
            broken: list[tuple[str, str]] = []
            samples = islice(readable(entries, broken), self.batch_size)
            numbered = [(epoch, stable_index(sample.name), sample) for sample in samples]
            step = (epoch * self.batches_per_epoch + batch) // self.accumulate
            yield self.make(numbered, broken, step)

    def _endless(self, share: Share, *, skip: int) -> Iterator[Sample | UnreadableImage]:
        """Entries without end, after passing over `skip` readable ones."""
        for lap in count():
            any_readable = False
            for record in self.source.records(replace(share, epoch=share.epoch + lap * LAP)):
                if skip:
                    counts = record.name not in self.known_broken
                    skip -= counts
                    any_readable = any_readable or counts
                    continue
                entry = decode_record(record)
                any_readable = any_readable or isinstance(entry, Sample)
                yield entry
            if not any_readable:
                raise ValueError(
                    f"no readable image for worker {share.worker} in {self.source.address}"
                )


@dataclass
class Waiting:
    """How long batches have been waited for."""

    seconds: float = 0.0


class TimedLoader(DataLoader[Any]):
    """A DataLoader that adds up in `waiting` how long its consumer has waited for batches.

    With `batches_per_step` above 1 it loads the batches of an optimiser step together: the first
    one then holds all of them under `whole_step`, in their order and itself included.
    """

    waiting: Waiting | None = None
    batches_per_step = 1
    before_iteration: Callable[[], None] | None = None

    def __iter__(self) -> Any:
        if self.before_iteration is not None:
            self.before_iteration()
        return self._timed(super().__iter__())

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = perf_counter()
            step = list(islice(batches, self.batches_per_step))
            if self.waiting is not None:
                self.waiting.seconds += perf_counter() - start
            if not step:
                return
            if self.batches_per_step > 1:
                step[0] = {**step[0], "whole_step": step.copy()}
            yield from step


def whole_batch(batch: Any) -> Any:
    """The batch itself: data sets here hand out batches, not samples."""
    return batch


def stable_index(name: str) -> int:
    """A number below 2^31 that depends on a sample's name alone."""
    data = name.encode("utf-8", "surrogateescape")  # names of files need not be UTF-8
    words = [int.from_bytes(data[i : i + 7], "little") for i in range(0, len(data), 7)]
    return keyed_generator(len(data), *words).initial_seed() & 0x7FFF_FFFF
