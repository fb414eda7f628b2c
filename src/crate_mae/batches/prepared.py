"""Images of a source as model input, batch by batch, in order: nothing random, nothing masked."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from crate_mae.batches.broken import listed, readable
from crate_mae.batches.transforms import prepare
from crate_mae.common.progress import Progress
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import Source
from crate_mae.sources.images import to_channels

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
    source: Source,
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
    total = len(source)
    done = found = 0
    entries = source.samples()
    while batch := list(islice(entries, batch_size)):
        samples = list(readable(batch, broken))
        if samples:
            images = [to_channels(sample.image, preprocess.channels) for sample in samples]
            labels = [UNLABELLED if sample.label is None else sample.label for sample in samples]
            yield PreparedBatch(
                images=prepare(images, preprocess),
                labels=torch.tensor(labels),
                names=[sample.name for sample in samples],
            )
        done, found = done + len(batch), found + len(samples)
        if progress is not None:
            progress(done, total)
    if not found:
        reasons = f": {listed(broken)}" if broken else ""
        raise ValueError(f"none of the {total} images of {source.address} can be read{reasons}")
