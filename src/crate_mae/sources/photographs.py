"""Two natural photographs that scikit-learn brings along, and squares cut out of them."""

import torch
from torch import Tensor

from crate_mae.sources.arrays import ArraySource
from crate_mae.sources.base import ImageSource

PHOTOGRAPHS = ("china", "flower")


def photograph(name: str) -> Tensor:
    """A photograph (3, 427, 640) uint8: "china" (a temple) or "flower"."""
    from sklearn.datasets import load_sample_image

    return torch.from_numpy(load_sample_image(f"{name}.jpg").copy()).permute(2, 0, 1)


def square(photograph: Tensor, share: float, centre: tuple[float, float]) -> Tensor:
    """A square (C, S, S) of a photograph (C, H, W) whose side is a share of its height.

    `centre` (down, across) is a share of height and width; the square is moved inside where it
    would reach over an edge.
    """
    side = int(photograph.shape[1] * share)
    top, left = (
        min(max(int(at * length - side / 2), 0), length - side)
        for at, length in zip(centre, photograph.shape[1:], strict=True)
    )
    return photograph[:, top : top + side, left : left + side]


def photograph_squares() -> ImageSource:
    """Twelve squares (3, 213, 213) that do not overlap, six of each photograph."""
    squares = [
        square(photograph(name), 0.5, (down, across))
        for name in PHOTOGRAPHS
        for down in (1 / 4, 3 / 4)
        for across in (1 / 6, 1 / 2, 5 / 6)
    ]
    return ArraySource("photographs", torch.stack(squares).numpy(), prefix="square")
