"""Images of a source as model input, batch by batch, in order: nothing random, nothing masked.

Processes may read ahead while a batch is computed (`workers`); what comes out is the same.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crate_mae.batches.broken import listed, readable
from crate_mae.batches.transforms import fit, normalise
from crate_mae.common.progress import Progress
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import ImageSource, Source
from crate_mae.sources.images import Sample, UnreadableImage, to_channels

UNLABELLED = -1
AHEAD = 2
"""Stretches that each worker has read, or is reading, before they are asked for."""
FEW_STRETCHES = 4
"""Up to so many are read in turn: processes take longer to start than they would save."""
SHARED_MEMORY = Path("/dev/shm")
"""Where workers hand over tensors; containers often have little of it."""


@dataclass(frozen=True, kw_only=True)
class PreparedBatch:
    """Readable images of a stretch of a source."""

    images: Tensor
    """(B, C, H, W) float32, normalised."""
    labels: Tensor
    """(B,) int64, -1 for an image without a label."""
    names: list[str]
    indices: list[int]
    """The number of each image in the source."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What was read of a stretch of a source; fitted to the model's size, not yet normalised."""

    images: Tensor | None = None
    """(B, C, H, W), uint8 as long as all images are; None where none can be read."""
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of the images that cannot be read."""

    def prepared(self, preprocess: Preprocess) -> PreparedBatch | None:
        """The readable images as model input; None where there are none."""
        if self.images is None:
            return None
        whole = self.images.dtype == torch.uint8
        return PreparedBatch(
            images=normalise(self.images, preprocess) if whole else self.images,
            labels=torch.tensor(self.labels),
            names=self.names,
            indices=self.indices,
        )


Done = TypeVar("Done")
AnyStretch = TypeVar("AnyStretch", bound=Stretch)


def prepared_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    broken: list[tuple[str, str]],
    progress: Progress | None = None,
    workers: int = 0,
) -> Iterator[PreparedBatch]:
    """Batches of the readable images of a source; (name, reason) of others go into `broken`.

    `progress` hears how many of how many images are done. So many `workers` read ahead, of a source
    whose images have numbers. Raises ValueError for a batch size below 1 and, at the end, when no
    image could be read.
    """
    read = source_stretches(source, preprocess, batch_size=batch_size, workers=workers)
    for stretch in followed(read, source, broken=broken, progress=progress):
        batch = stretch.prepared(preprocess)
        if batch is not None:
            yield batch


def followed(
    read: Iterable[AnyStretch],
    source: Source,
    *,
    broken: list[tuple[str, str]],
    progress: Progress | None = None,
) -> Iterator[AnyStretch]:
    """The stretches of a source as they come; what each holds is counted, also once it is used.

    Names and reasons of images that cannot be read go into `broken`; `progress` hears how many of
    how many images are done. Raises ValueError at the end when no image could be read.
    """
    total = len(source)
    done = found = 0
    for stretch in read:
        broken += stretch.broken
        yield stretch
        done += len(stretch.names) + len(stretch.broken)
        found += len(stretch.names)
        if progress is not None:
            progress(done, total)
    if not found:
        reasons = f": {listed(broken)}" if broken else ""
        raise ValueError(f"none of the {total} images of {source.address} can be read{reasons}")


def source_stretches(
    source: Source, preprocess: Preprocess, *, batch_size: int, workers: int = 0
) -> Iterator[Stretch]:
    """A whole source, stretch by stretch; with workers, ahead, where its images have numbers.

    Raises ValueError for a batch size below 1 and for images whose channels do not fit the model.
    """
    cuts = stretches(range(len(source)), batch_size)
    if isinstance(source, ImageSource):
        return read_stretches(source, preprocess, cuts, workers=workers)
    return _in_turn(source, preprocess, batch_size)


def stretches(images: range, batch_size: int) -> list[range]:
    """A range of images cut into stretches of a batch; ValueError for a batch size below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return [images[first : first + batch_size] for first in range(0, len(images), batch_size)]


def read_stretches(
    source: ImageSource, preprocess: Preprocess, cuts: Sequence[range], *, workers: int = 0
) -> Iterator[Stretch]:
    """Each stretch of a source, read, in order; with workers, ahead of being asked for.

    Raises ValueError for images whose channels do not fit the model.
    """
    return each_cut(partial(read_stretch, source, preprocess), cuts, workers=workers)


def each_cut(
    work: Callable[[range], Done], cuts: Sequence[range], *, workers: int = 0, forked: bool = False
) -> Iterator[Done]:
    """What `work` gives for each stretch, in order; with workers, ahead, on one thread each.

    `forked` workers share what this process holds, so that `work` need not be sent to them. What
    goes wrong in a worker is raised here, as it would be without; RuntimeError where one is lost.
    """
    if workers < 1:
        yield from map(work, cuts)
        return
    loader = DataLoader(
        _Cuts(work, cuts),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=cast("Any", _as_it_is),
        generator=torch.Generator(),  # the global one stays as it was
        multiprocessing_context="fork" if forked else None,
    )
    try:
        for done in loader:
            if isinstance(done, Exception):
                raise done
            yield done
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            "a process that reads images was ended from outside, as systems do when memory runs"
            " out: smaller batches need less, and --workers 0 (workers=0) is one process alone"
        ) from error


def read_stretch(source: ImageSource, preprocess: Preprocess, cut: range) -> Stretch:
    """The images of a stretch; ValueError for channels that do not fit the model."""
    return _fitted(map(source.read, cut), cut.start, preprocess)


def reading_workers(source: Source, preprocess: Preprocess, cuts: Sequence[range]) -> int:
    """How many processes should read ahead of a model: none where reading is little work.

    Images have to be decoded, and be many. On a GPU's machine it is a worker a core, up to 8, else
    one for every two cores, which the model needs too. Fewer where shared memory is too small.
    """
    if not (isinstance(source, ImageSource) and source.decodes) or len(cuts) <= FEW_STRETCHES:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = min(8, cores or 1) if torch.cuda.is_available() else max(1, min(8, (cores or 1) // 2))
    height, width = preprocess.size
    stretch = 4 * preprocess.channels * height * width * max(map(len, cuts))
    return min(wanted, shared_memory() // (2 * stretch * (AHEAD + 1)))


class _Cuts(Dataset[Any]):
    """What work gives for stretches by their place; what goes wrong as a value.

    A loader would add the traceback of its worker to the message.
    """

    def __init__(self, work: Callable[[range], Any], cuts: Sequence[range]) -> None:
        self.work, self.cuts = work, cuts

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, place: int) -> Any:
        try:
            return self.work(self.cuts[place])
        except (ValueError, OSError, RuntimeError) as error:
            return error


def _in_turn(source: Source, preprocess: Preprocess, batch_size: int) -> Iterator[Stretch]:
    """Stretches of a source that can only be read one image after the other."""
    entries, first = source.samples(), 0
    while batch := list(islice(entries, batch_size)):
        yield _fitted(batch, first, preprocess)
        first += len(batch)


def _fitted(
    entries: Iterable[Sample | UnreadableImage], first: int, preprocess: Preprocess
) -> Stretch:
    """What was read of a stretch that begins with that image."""
    found = Stretch()
    images = []
    for index, entry in enumerate(entries, start=first):
        for sample in readable([entry], found.broken):
            images.append(fit(to_channels(sample.image, preprocess.channels), preprocess.size))
            found.labels.append(UNLABELLED if sample.label is None else sample.label)
            found.names.append(sample.name)
            found.indices.append(index)
    if not images:
        return found
    if any(image.dtype != torch.uint8 for image in images):
        # Stacking would turn bytes into floats without scaling them.
        images = [normalise(image, preprocess) for image in images]
    return Stretch(
        images=torch.stack(images),
        labels=found.labels,
        names=found.names,
        indices=found.indices,
        broken=found.broken,
    )


def shared_memory() -> int:
    """Bytes that workers may hand over at a time; plenty where the system has no such place."""
    try:
        room = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return 1 << 40
    return room.f_bavail * room.f_frsize


def _as_it_is(stretch: Any) -> Any:
    """The stretch itself, where a loader would make tensors of its lists."""
    return stretch
