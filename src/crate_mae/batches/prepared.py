"""Images of a source as model input, batch by batch, in order: nothing random, nothing masked."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from crate_mae.batches.transforms import prepare
from crate_mae.common.progress import Progress
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import Sample, UnreadableImage, to_channels
from crate_mae.sources.webdataset import StreamSource

UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class PreparedBatch:
    """Readable images of a stretch of a source."""

    images: Tensor
    """(B, C, H, W) float32, normalised."""
    labels: Tensor
    """(B,) int64, -1 for an image without a label."""
    names: list[str]


def prepared_batches(
    source: ImageSource | StreamSource,
    preprocess: Preprocess,
    *,
    batch_size: int,
    broken: list[tuple[str, str]],
    progress: Progress | None = None,
) -> Iterator[PreparedBatch]:
    """Batches of the readable images of a source; (name, reason) of others go into `broken`.

    `progress` hears how many of how many images are done. Raises ValueError for a batch size below
    1 and, at the end, when no image could be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    total = source.count() if isinstance(source, StreamSource) else len(source)
    done = readable = 0
    entries = _entries(source)
    while batch := list(islice(entries, batch_size)):
        samples = [entry for entry in batch if isinstance(entry, Sample)]
        broken += [(e.name, e.reason) for e in batch if isinstance(e, UnreadableImage)]
        if samples:
            images = [to_channels(sample.image, preprocess.channels) for sample in samples]
            labels = [UNLABELLED if sample.label is None else sample.label for sample in samples]
            yield PreparedBatch(
                images=prepare(images, preprocess),
                labels=torch.tensor(labels),
                names=[sample.name for sample in samples],
            )
        done, readable = done + len(batch), readable + len(samples)
        if progress is not None:
            progress(done, total)
    if not readable:
        reasons = "".join(f"; {name}: {reason}" for name, reason in broken[:3])
        raise ValueError(f"none of the {total} images of {source.address} can be read{reasons}")


def _entries(source: ImageSource | StreamSource) -> Iterator[Sample | UnreadableImage]:
    if isinstance(source, StreamSource):
        yield from source.samples(epoch=0, seed=0, shuffle=False)
        return
    for index in range(len(source)):
        try:
            yield source.load(index)
        except UnreadableImage as error:
            yield error
