"""Where the tokens of an image lie: the grid of patches, also overlapping ones, and its pixels.

Shapes: images H x W, patches of h x w pixels, R x S tokens (rows, columns).
"""

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.models.config import MAX_TOKENS, ModelConfig, size_fault

logger = logging.getLogger(__name__)

Pair = tuple[int, int]

MANY_TOKENS = 1 << 14
"""Tokens an image above which a pass over the layers takes minutes on a CPU: worth a warning."""

MAX_VALUES = 1 << 29
"""The most float32 values of images or tokens held at once: 2 GiB."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where tokens lie on an image."""

    image_hw: Pair
    """Height and width in pixels of what the model was given."""
    patch_hw: Pair
    stride: Pair
    """Pixels from one patch to the next, down and across; the patch size unless they overlap."""
    trained_hw: Pair
    """Height and width the model was trained at."""

    @property
    def grid(self) -> Pair:
        """Tokens down and across."""
        down, across = (
            (size - patch) // step + 1
            for size, patch, step in zip(self.image_hw, self.patch_hw, self.stride, strict=True)
        )
        return down, across

    @property
    def overlapping(self) -> bool:
        """Whether patches are cut closer together than they are wide."""
        return self.stride != self.patch_hw

    def words(self) -> str:
        """Resolution, as a caption says it."""
        text = f"{_x(self.grid)} tokens of {_x(self.image_hw)} pixels, patch {_x(self.patch_hw)}"
        if self.overlapping:
            text += f" every {_x(self.stride)} pixels (overlapping)"
        if self.overlapping or self.image_hw != self.trained_hw:
            text += f"; trained at {_x(self.trained_hw)}, positions recomputed"
        return text


def layout_of(config: ModelConfig, image_hw: Pair, stride: int | Pair | None = None) -> Layout:
    """Where the tokens of images of a size (H, W) lie, without or with overlapping patches.

    Raises ValueError for a size that is no multiple of the patch, a stride below 1 or above the
    patch, and for more tokens than a model may have.
    """
    patch_hw = config.patch_hw
    steps = patch_hw if stride is None else (stride, stride) if isinstance(stride, int) else stride
    fault = size_fault(image_hw, patch_hw)
    if fault:
        raise ValueError(f"{fault}: choose another size")
    if any(not 1 <= step <= patch for step, patch in zip(steps, patch_hw, strict=True)):
        raise ValueError(
            f"stride {_x(steps)} must be from 1 to the patch size {_x(patch_hw)}; a larger one"
            " would leave pixels out"
        )
    layout = Layout(image_hw=image_hw, patch_hw=patch_hw, stride=steps, trained_hw=config.image_hw)
    count = layout.grid[0] * layout.grid[1]
    if count > MAX_TOKENS:
        raise ValueError(f"{count} tokens an image are above the limit of {MAX_TOKENS}")
    return layout


def warn_of_many(layout: Layout) -> None:
    """Say in the log that so many tokens take long, and what would take less."""
    count = layout.grid[0] * layout.grid[1]
    if count > MANY_TOKENS:
        logger.warning(
            "%d tokens an image: the time of each layer grows with their square, here %.0f billion"
            " pairs a head; a smaller size or a larger stride takes less",
            count, count**2 / 1e9,
        )  # fmt: skip


def to_pixels(values: Tensor, layout: Layout, *, smooth: bool) -> Tensor:
    """Values of tokens (..., R, S) at every pixel: (..., H, W).

    Each value stands at the centre of its patch; between centres they are interpolated linearly
    (`smooth`) or the nearest counts, and beyond the outermost they stay as they are.
    """
    axes = []
    for size, patch, step, count in zip(
        layout.image_hw, layout.patch_hw, layout.stride, layout.grid, strict=True
    ):
        index = (torch.arange(size, dtype=torch.float64) + 0.5 - patch / 2) / step
        axes.append((2 * index + 1) / count - 1)
    height, width = layout.image_hw
    places = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), dim=-1)
    planes = values.double().reshape(1, -1, *layout.grid)
    pixels = F.grid_sample(
        planes,
        places[None],
        mode="bilinear" if smooth else "nearest",
        padding_mode="border",
        align_corners=False,
    )
    return pixels.reshape(*values.shape[:-2], height, width).float()


def check_room(values: int, what: str) -> None:
    """Raise ValueError when so many float32 values would not fit in 2 GiB."""
    if values > MAX_VALUES:
        raise ValueError(
            f"the {what} would take {values * 4 / 2**30:.1f} GiB at once, more than"
            f" {MAX_VALUES * 4 >> 30} GiB: use fewer images, a smaller size or a larger stride"
        )


def _x(pair: Pair) -> str:
    return f"{pair[0]}x{pair[1]}"
