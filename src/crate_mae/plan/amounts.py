"""What a run amounts to: steps, bytes, batches. Numbers in, numbers out; nothing is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from crate_mae.training.config import CheckpointConfig, OptimConfig

FLOAT = 4
"""Bytes of a weight: weights, gradients and moments are float32 in every precision we train in."""
SPARE = 0.9
"""Share of the free memory that a batch may fill: the rest is for what a single step never meets,
such as fragments, loaders and validation."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How often the optimiser steps, and on how much."""

    images: int
    """Training images."""
    batch: int
    """Images per optimiser step, over all devices."""
    epochs: int
    steps_per_epoch: int
    steps: int
    samples: int
    """Images seen in the whole run, each as often as it comes."""


def schedule(images: int, optim: OptimConfig) -> Schedule:
    """The schedule of so many training images; an epoch's incomplete last step is left out.

    Raises ValueError when the images do not fill one step.
    """
    per_epoch = images // optim.batch_size
    if not per_epoch:
        raise ValueError(
            f"{images} training images are fewer than one batch of {optim.batch_size}: use more"
            " images or a smaller optim.batch_size"
        )
    return Schedule(
        images=images,
        batch=optim.batch_size,
        epochs=optim.epochs,
        steps_per_epoch=per_epoch,
        steps=per_epoch * optim.epochs,
        samples=per_epoch * optim.epochs * optim.batch_size,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Bytes that a device holds between two steps, whatever the batch."""

    weights: int
    gradients: int
    moments: int
    """AdamW's two running means."""
    average: int
    """The running average of the weights, where there is one."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.moments + self.average


def training_state(
    parameters: int, *, frozen: int = 0, average: bool = False, shards: int = 1
) -> TrainingState:
    """The state of so many trainable parameters, on one of `shards` devices that share it.

    `frozen` ones are held, and averaged, beside them; they have neither gradients nor moments.
    """
    each = -(-parameters // shards) * FLOAT
    held = -(-(parameters + frozen) // shards) * FLOAT
    return TrainingState(
        weights=held, gradients=each, moments=2 * each, average=held if average else 0
    )


def exchanged_bytes(parameters: int, *, devices: int, sharded: bool = False) -> int:
    """Bytes that each device sends, and as many that it receives, in an optimiser step.

    A ring's all-reduce of float32 gradients: a share of (devices - 1) / devices of them twice. With
    sharded weights (fsdp) three times: weights gathered for both passes, gradients scattered.
    """
    times = 3 if sharded else 2
    return round(times * FLOAT * parameters * (devices - 1) / devices)


@dataclass(frozen=True, kw_only=True)
class DiskUse:
    """Bytes that a finished run leaves on disk, and the most there are while it saves."""

    checkpoint: int
    """One checkpoint: weights, moments, average."""
    checkpoints: int
    """How many stay: the last, the best and one every few epochs."""
    weights: int
    """One weights folder."""
    folders: int
    """Weights folders: of the last epoch and, with validation, of the best."""

    @property
    def total(self) -> int:
        """All that stays, and the one checkpoint that is written beside them before it moves."""
        return (self.checkpoints + 1) * self.checkpoint + self.folders * self.weights


def disk_use(
    parameters: int,
    *,
    frozen: int = 0,
    record: CheckpointConfig,
    epochs: int,
    validated: bool,
    average: bool,
) -> DiskUse:
    """What the run folder of a model of so many trainable and frozen parameters takes.

    Logs and pictures are small.
    """
    state = training_state(parameters, frozen=frozen, average=average)
    best = 1 if validated else 0
    return DiskUse(
        checkpoint=state.total - state.gradients,
        checkpoints=1 + best + epochs // record.checkpoint_epochs,
        weights=state.weights,
        folders=1 + best,
    )


@dataclass(frozen=True, kw_only=True)
class MemoryLine:
    """Peak memory in bytes as a straight line over the images that are computed at a time."""

    fixed: float
    per_image: float

    def at(self, images: int) -> int:
        """The peak of so many images."""
        return round(self.fixed + self.per_image * images)

    def largest(self, free: int) -> int:
        """The most images that fill no more than the `SPARE` share of `free` bytes; maybe 0."""
        room = SPARE * free - self.fixed
        return max(0, int(room // self.per_image)) if self.per_image > 0 else 0


def memory_line(peaks: Sequence[tuple[int, int]]) -> MemoryLine:
    """The line through the first and the last of (images, peak in bytes), which grow.

    Raises ValueError for fewer than two, or when the peak did not grow with the images: then there
    is no line to go by.
    """
    if len(peaks) < 2:
        raise ValueError("a line needs two points")
    (few, low), (many, high) = peaks[0], peaks[-1]
    if many <= few or high <= low:
        raise ValueError(f"the peak did not grow: {low} bytes of {few}, {high} of {many} images")
    slope = (high - low) / (many - few)
    return MemoryLine(fixed=low - slope * few, per_image=slope)


def accumulation(batch_size: int, *, devices: int, largest: int) -> int | None:
    """The fewest accumulated batches that bring a device down to `largest` images at a time.

    None when no number does: not even one image fits, or the batch cannot be shared evenly.
    """
    if largest < 1 or batch_size % devices:
        return None
    each = batch_size // devices
    return next(n for n in range(1, each + 1) if each % n == 0 and each // n <= largest)
