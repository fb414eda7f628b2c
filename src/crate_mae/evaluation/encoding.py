"""Rows of features stretch by stretch: which processes read images, and which compute."""

import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from crate_mae.batches.prepared import (
    AHEAD,
    FEW_STRETCHES,
    Stretch,
    each_cut,
    read_stretch,
    read_stretches,
    reading_workers,
    shared_memory,
)
from crate_mae.common.budgets import free_memory
from crate_mae.models.backbone import Backbone
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import ImageSource

Key = tuple[int | None, str]
"""Layer and pool."""
Encode = Callable[[Tensor], dict[Key, Tensor]]
"""Gives rows {(layer, pool): (B, ...)} of prepared images (B, C, H, W)."""
HELD_AT_ONCE = 16
"""Tensors of all tokens that an encoder holds at once, at most: four times as many atoms as the
width of a token, their codes, and copies."""
MEMORY_SHARE = 4
"""All processes together may take one part in so many of the free memory."""


@dataclass(frozen=True, kw_only=True)
class Encoded(Stretch):
    """What one stretch of a source gave: rows of features, in place of its images."""

    rows: dict[Key, Tensor]
    """One row for each name; empty where no image could be read."""


def encoded(stretch: Stretch, preprocess: Preprocess, encode: Encode) -> Encoded:
    """The rows of a stretch that was read."""
    batch = stretch.prepared(preprocess)
    rows = {} if batch is None else encode(batch.images)
    return Encoded(
        rows=rows,
        labels=stretch.labels,
        names=stretch.names,
        indices=stretch.indices,
        broken=stretch.broken,
    )


def encoded_stretches(
    model: Backbone,
    source: ImageSource,
    encode: Encode,
    cuts: Sequence[range],
    *,
    workers: int | None = None,
) -> Iterator[Encoded]:
    """The rows of each stretch of a source, in order; `encode` computes with the model.

    On a CPU whole stretches are read and computed by a process a core, where `computing_processes`
    finds that right; else this process computes and others read ahead. So many `workers`, when they
    are given, read ahead and compute nothing. What comes out is the same.
    """
    preprocess = model.preprocess
    if workers is None and (processes := computing_processes(model, source, encode, cuts)):

        def both(cut: range) -> Encoded:
            return encoded(read_stretch(source, preprocess, cut), preprocess, encode)

        yield from each_cut(both, cuts, workers=processes, forked=True)
        return
    if workers is None:
        workers = reading_workers(source, preprocess, cuts)
    for stretch in read_stretches(source, preprocess, cuts, workers=workers):
        yield encoded(stretch, preprocess, encode)


def computing_processes(
    model: Backbone, source: ImageSource, encode: Encode, cuts: Sequence[range]
) -> int:
    """How many processes should each read and compute; 0 where one process should compute.

    As many as this one has threads to compute with, but two stretches for each. Threads share every
    operation and wait for each other, and while one process reads, the cores it computes on are
    idle or fought over; processes that do both have nothing to wait for. Not with a GPU, for arrays
    that lie in memory, for few images, in a process that may not be copied as it is, nor where
    memory is short, or shared memory, through which rows are handed over.
    """
    threads = torch.get_num_threads()
    if threads < 2 or len(cuts) <= FEW_STRETCHES or not source.decodes:
        return 0
    if not _computes_alone(model) or not _may_be_copied():
        return 0
    largest = max(map(len, cuts))
    room, needed = free_memory(), _bytes_of(model, largest)
    if room is None:
        return 0
    blank = torch.zeros(1, model.preprocess.channels, *model.preprocess.size)
    rows = largest * sum(row.nbytes for row in encode(blank).values())
    handed_over = shared_memory() // (2 * rows * (AHEAD + 1))
    found = min(threads, len(cuts) // 2, room // (MEMORY_SHARE * needed), handed_over)
    return found if found > 1 else 0


def _computes_alone(model: Backbone) -> bool:
    """Whether a copy of the model in another process does all that this one does: no runtime of
    its own behind it, no hook that tells this process something, all on the CPU."""
    if getattr(model, "runs_elsewhere", False):
        return False
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return False
    modules = cast("nn.Module", model).modules()
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def _may_be_copied() -> bool:
    """Whether this process can be forked: elsewhere than on Linux that is unsafe, and a thread
    beside the main one may hold what its copy would wait for."""
    return (
        sys.platform == "linux"
        and "fork" in multiprocessing.get_all_start_methods()
        and not multiprocessing.current_process().daemon
        and threading.current_thread() is threading.main_thread()
    )


def _bytes_of(model: Backbone, batch: int) -> int:
    """What encoding a batch may take, in bytes: tokens at every place, and one layer's maps."""
    config, (height, width) = model.config, model.preprocess.size
    patch_height, patch_width = config.patch_hw
    tokens = 1 + (height // patch_height) * (width // patch_width)
    values = tokens * (HELD_AT_ONCE * config.dim + config.num_heads * tokens)
    return 4 * batch * values
