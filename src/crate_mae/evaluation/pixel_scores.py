"""How well classes of pixels are told: counts summed over a whole set, and what follows from them.

Shapes: C classes; counts (C, C) of pixels by true class (rows) and predicted class (columns).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crate_mae.models.mask_classes import VOID


def pixel_counts(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixels by true and predicted class (C, C), int64, on the CPU.

    Class numbers of any one shape; pixels whose truth is `VOID` are not counted.
    """
    counts = truth != VOID
    pairs = truth[counts].long() * num_classes + predicted[counts].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, -1).cpu()


@dataclass(frozen=True, kw_only=True)
class PixelScore:
    """What counts over a whole set say."""

    counts: Tensor
    """(C, C) int64."""

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union of each class; None for one that is neither there nor told."""
        both = self.counts.diagonal().double()
        either = (self.counts.sum(dim=0) + self.counts.sum(dim=1)).double() - both
        return [
            b / e if e > 0 else None for b, e in zip(both.tolist(), either.tolist(), strict=True)
        ]

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union of the classes that are there or told; 0 without pixels."""
        known = [value for value in self.iou if value is not None]
        return sum(known) / len(known) if known else 0.0

    @property
    def recall(self) -> list[float | None]:
        """The share of each class's pixels that are told as it; None for one that is not there."""
        right, there = self.counts.diagonal().tolist(), self.counts.sum(dim=1).tolist()
        return [r / t if t else None for r, t in zip(right, there, strict=True)]

    @property
    def accuracy(self) -> float:
        """The share of counted pixels whose class is told right; 0 without pixels."""
        return int(self.counts.diagonal().sum()) / max(1, int(self.counts.sum()))

    @property
    def majority(self) -> int:
        """The number of the class with the most true pixels."""
        return int(self.counts.sum(dim=1).argmax())

    def always(self, number: int) -> "PixelScore":
        """The score of telling every pixel to be of one class."""
        counts = torch.zeros_like(self.counts)
        counts[:, number] = self.counts.sum(dim=1)
        return PixelScore(counts=counts)

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Plain values for JSON, classes by name."""
        trivial = self.always(self.majority)
        return {
            "mean_iou": self.mean_iou,
            "pixel_accuracy": self.accuracy,
            "iou": dict(zip(names, self.iou, strict=True)),
            "recall": dict(zip(names, self.recall, strict=True)),
            "majority": names[self.majority],
            "majority_mean_iou": trivial.mean_iou,
            "majority_pixel_accuracy": trivial.accuracy,
            "pixels": int(self.counts.sum()),
            "pixel_counts": {"classes": list(names), "counts": self.counts.tolist()},
        }
