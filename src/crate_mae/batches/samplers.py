"""The order of samples: which (epoch, index) pairs a batch holds, by arithmetic alone."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler

from crate_mae.common.randomness import ORDER, keyed_generator
from crate_mae.sources.base import WHOLE, Share


class StepKeys(list[tuple[int, int]]):
    """The (epoch, sample index) pairs of a batch, and the optimiser step it belongs to."""

    step = 0


def step_of(keys: list[tuple[int, int]]) -> int:
    """The optimiser step, from 0, that keys belong to; 0 for batches that never change."""
    return keys.step if isinstance(keys, StepKeys) else 0


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Lists of (epoch, sample index) for the rank of a share, in an order (seed, epoch) fixes.

    Optimiser step s of an epoch always sees the same samples, however many devices and
    accumulation steps share them. Iterating goes on from `position()`, the number of batches that
    this device has already trained on, in any epoch; the incomplete last step is left out.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        accumulate: int = 1,
        share: Share = WHOLE,
        position: Callable[[], int] = lambda: 0,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.share = share
        self.position = position
        steps = num_samples // (batch_size * accumulate * share.world_size)
        self.batches_per_epoch = steps * accumulate
        if not steps:
            raise ValueError(
                f"{num_samples} images do not fill one step of {batch_size} x {accumulate}"
                f" accumulated x {share.world_size} devices"
            )

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self.position(), self.batches_per_epoch)
        generator = keyed_generator(ORDER, self.share.seed, epoch)
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        for batch in range(first, self.batches_per_epoch):
            start = (batch * self.share.world_size + self.share.rank) * self.batch_size
            keys = StepKeys((epoch, index) for index in order[start : start + self.batch_size])
            keys.step = (epoch * self.batches_per_epoch + batch) // self.accumulate
            yield keys


class FixedBatches(Sampler[list[tuple[int, int]]]):
    """Lists of (0, sample index) that cover every sample exactly once over all ranks, in order."""

    def __init__(self, *, num_samples: int, batch_size: int, share: Share = WHOLE) -> None:
        mine = list(range(share.rank, num_samples, share.world_size))
        self.batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(0, index) for index in batch]
