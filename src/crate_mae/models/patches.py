"""Images to patches and back, and the fixed two-dimensional positions.

Shapes: B images of C channels, H x W pixels; patches of h x w pixels on a grid of rows x columns;
L = rows * columns in raster order. Inside a patch the pixel order is row, column, channel.
"""

import torch
from torch import Tensor


def patchify(images: Tensor, patch_hw: tuple[int, int]) -> Tensor:
    """Patches (B, L, h*w*C) of images (B, C, H, W); the image size must be a multiple of h x w."""
    height, width = patch_hw
    batch, channels, rows, columns = *images.shape[:2], *grid_of(images, patch_hw)
    x = images.reshape(batch, channels, rows, height, columns, width)
    x = x.permute(0, 2, 4, 3, 5, 1)  # rows, columns, h, w, C
    return x.reshape(batch, rows * columns, height * width * channels)


def unpatchify(
    patches: Tensor, patch_hw: tuple[int, int], grid: tuple[int, int], channels: int
) -> Tensor:
    """Images (B, C, H, W) from patches (B, L, h*w*C): the inverse of `patchify`.

    Raises ValueError when the shape of the patches does not fit the grid, patch and channels.
    """
    (height, width), (rows, columns) = patch_hw, grid
    expected = (rows * columns, height * width * channels)
    if tuple(patches.shape[1:]) != expected:
        raise ValueError(
            f"patches of shape {tuple(patches.shape)} do not fit a {rows}x{columns} grid of"
            f" {height}x{width} patches with {channels} channels; expected (B, {expected[0]},"
            f" {expected[1]})"
        )
    x = patches.reshape(-1, rows, columns, height, width, channels)
    x = x.permute(0, 5, 1, 3, 2, 4)  # C, rows, h, columns, w
    return x.reshape(-1, channels, rows * height, columns * width)


def grid_of(images: Tensor, patch_hw: tuple[int, int]) -> tuple[int, int]:
    """Patches down and across for images (..., H, W)."""
    return images.shape[-2] // patch_hw[0], images.shape[-1] // patch_hw[1]


def sincos_positions(
    dim: int, grid: tuple[int, int], *, reference_grid: tuple[int, int] | None = None
) -> Tensor:
    """Fixed position table (1 + rows*columns, dim), float32; the class token's row is zero.

    The first half of the channels encodes the column, the second the row, each as sines then
    cosines at frequencies 10000^(-i / (dim/4)). With a `reference_grid` the positions of `grid`
    are spread over that grid's extent (centres aligned), so that a model meets the coordinates it
    was trained on when it is fed another image size; for equal grids nothing changes.
    """
    rows, columns = (
        patch_centres(n, n if reference_grid is None else reference_grid[axis])
        for axis, n in enumerate(grid)
    )
    return positions_at(dim, rows, columns)


def positions_at(dim: int, rows: Tensor, columns: Tensor) -> Tensor:
    """The position table (1 + R*C, dim) of patches at any row (R,) and column (C,) coordinates.

    In units of patches, float64, 0 for the centre of the first patch; entries as
    `sincos_positions` has them.
    """
    quarter = dim // 4
    steps = torch.arange(quarter, dtype=torch.float64, device=rows.device)
    frequencies = 10_000.0 ** (-steps / quarter)

    def encode(positions: Tensor) -> Tensor:
        angles = positions[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()

    by_column = encode(columns).repeat(len(rows), 1)
    by_row = encode(rows).repeat_interleave(len(columns), dim=0)
    table = torch.cat([by_column, by_row], dim=1)
    return torch.cat([table.new_zeros(1, dim), table])


def resampled_positions(
    table: Tensor, grid: tuple[int, int], rows: Tensor, columns: Tensor
) -> Tensor:
    """The table (1 + R*C, d) at any coordinates of a learned one (1 + rows*columns, d) of a grid.

    Bilinear between the centres of patches, constant beyond the outermost; coordinates as in
    `positions_at`. The class token's row is kept.
    """
    down, across = (
        _interpolation(places, count).to(table)
        for places, count in zip((rows, columns), grid, strict=True)
    )
    patches = table[1:].view(*grid, -1)
    found = torch.einsum("ry,cx,yxd->rcd", down, across, patches)
    return torch.cat([table[:1], found.flatten(0, 1)])


def _interpolation(places: Tensor, count: int) -> Tensor:
    """Weights (places, count) of a linear interpolation between the values at 0 to count - 1."""
    inside = places.double().clamp(0, count - 1)
    at = torch.arange(count, dtype=torch.float64, device=inside.device)
    return (1 - (inside[:, None] - at).abs()).clamp(min=0)


def patch_centres(count: int, reference: int) -> Tensor:
    """The centres (count,) of so many patches in the extent of `reference` ones, from 0, float64.

    Equal counts give whole numbers.
    """
    # On the CPU even where modules are made on the meta device: the table is known beforehand.
    steps = torch.arange(count, dtype=torch.float64, device="cpu")
    return steps if count == reference else (steps + 0.5) * (reference / count) - 0.5
