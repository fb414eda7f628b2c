"""Which patches are removed. Boolean masks (B, L) in raster order, True = removed.

Every function takes its randomness as an argument and removes exactly the same number of patches
from every image: all but `int(L * (1 - ratio))`, the published rule.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

MaskKind = Literal["random", "block", "grid"]


def num_kept(num_patches: int, ratio: float) -> int:
    """How many of `num_patches` stay at a mask ratio: `int(L * (1 - ratio))`.

    Raises ValueError when nothing would stay or nothing would be removed.
    """
    kept = int(num_patches * (1 - ratio)) if 0 <= ratio <= 1 else -1
    if not 0 < kept < num_patches:
        if not 0 <= ratio <= 1:
            problem = "is not between 0 and 1"
        else:
            problem = "removes no patch" if kept else "keeps no patch"
        if num_patches < 2:
            raise ValueError(f"an image of {num_patches} patch cannot be masked in part")
        scale = 10 ** (len(str(num_patches)) + 1)
        high = (scale - scale // num_patches - 1) / scale  # rounded down: the rule must keep one
        raise ValueError(
            f"mask ratio {ratio} {problem} of {num_patches}; use one from {1 / scale} to {high}"
        )
    return kept


def draw_mask(
    kind: MaskKind,
    grid: tuple[int, int],
    ratio: float,
    generator: Generator | None,
    *,
    batch: int = 1,
) -> Tensor:
    """Masks (batch, L) of a kind on a grid (rows, columns), drawn one after another."""
    if kind not in get_args(MaskKind):
        raise ValueError(f"mask kind must be one of {', '.join(get_args(MaskKind))}, not {kind!r}")
    kept = num_kept(grid[0] * grid[1], ratio)
    draw = {"random": random_mask, "block": block_mask, "grid": grid_mask}[kind]
    return torch.stack([draw(grid, kept, generator) for _ in range(batch)])


def random_mask(grid: tuple[int, int], kept: int, generator: Generator | None) -> Tensor:
    """A mask (L,) that keeps `kept` patches, every subset equally likely (MAE, section 3)."""
    num_patches = grid[0] * grid[1]
    mask = torch.ones(num_patches, dtype=torch.bool)
    mask[torch.randperm(num_patches, generator=generator)[:kept]] = False
    return mask


def block_mask(grid: tuple[int, int], kept: int, generator: Generator | None) -> Tensor:
    """A mask (L,) of overlapping rectangles, trimmed so that exactly `kept` patches stay.

    Rectangles cover 1/16 to 1/4 of the image with aspect ratios 0.3 to 3.3, as in BEiT.
    """
    rows, columns = grid
    remove = rows * columns - kept
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    while (missing := remove - int(mask.sum())) > 0:
        area, aspect, top, left = torch.rand(4, generator=generator).tolist()
        area = rows * columns * (1 + 3 * area) / 16
        aspect = 0.3 * (3.3 / 0.3) ** aspect
        height = min(rows, max(1, round((area * aspect) ** 0.5)))
        width = min(columns, max(1, round((area / aspect) ** 0.5)))
        top, left = int(top * (rows - height + 1)), int(left * (columns - width + 1))
        block = torch.zeros_like(mask)
        block[top : top + height, left : left + width] = True
        fresh = (block & ~mask).flatten().nonzero().flatten()
        mask.view(-1)[fresh[:missing]] = True
    return mask.flatten()


def grid_mask(grid: tuple[int, int], kept: int, generator: Generator | None) -> Tensor:
    """A mask (L,) whose `kept` patches are spread evenly: one of every 2 x 2 cell at ratio 0.75.

    Patches are ranked by an ordered-dither (Bayer) matrix at a random offset; the lowest stay.
    """
    rows, columns = grid
    order = 1
    while order < max(rows, columns):
        order *= 2
    shift_rows, shift_columns = torch.randint(order, (2,), generator=generator).tolist()
    ranks = _bayer(order).roll((shift_rows, shift_columns), dims=(0, 1))[:rows, :columns]
    mask = torch.ones(rows * columns, dtype=torch.bool)
    mask[ranks.flatten().argsort(stable=True)[:kept]] = False
    return mask


def spread(masks: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Masks (B, L side^2) of a grid in which every cell of masks (B, L) is a square of patches."""
    if side == 1:
        return masks
    cells = masks.view(-1, *grid)
    return cells.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2).flatten(1)


def mask_from_pixels(pixels: Tensor, patch_hw: tuple[int, int], *, covered: float = 0.5) -> Tensor:
    """A mask (1, L) that removes the patches of which at least the share `covered` is marked.

    `pixels` (H, W): non-zero or True marks a pixel as removed; `covered` in (0, 1].
    Raises ValueError for sizes that are no multiple of the patch and for masks that remove nothing
    or everything.
    """
    height, width = patch_hw
    if pixels.ndim != 2 or pixels.shape[0] % height or pixels.shape[1] % width:
        raise ValueError(
            f"a pixel mask is (H, W) with multiples of patch {height}x{width},"
            f" not {tuple(pixels.shape)}"
        )
    if not 0 < covered <= 1:
        raise ValueError(f"covered must be above 0 and at most 1, not {covered}")
    share = F.avg_pool2d((pixels != 0).double()[None, None], patch_hw, patch_hw)
    mask = (share >= covered - 1e-12).flatten()[None]
    removed = int(mask.sum())
    if removed in (0, mask.numel()):
        raise ValueError(
            f"this mask removes {removed} of {mask.numel()} patches; mark some pixels but not all,"
            f" or change covered={covered}"
        )
    return mask


def _bayer(order: int) -> Tensor:
    matrix = torch.zeros(1, 1, dtype=torch.long)
    while matrix.shape[0] < order:
        matrix = torch.cat(
            [
                torch.cat([4 * matrix, 4 * matrix + 2], dim=1),
                torch.cat([4 * matrix + 3, 4 * matrix + 1], dim=1),
            ]
        )
    return matrix


def place_visible(visible: Tensor, mask: Tensor, filler: Tensor) -> Tensor:
    """Patch tokens (B, L, d) with `visible` (B, V, d) where the mask (B, L) is False, else filler.

    `filler` (1, 1, d) is the mask token. Each image must keep V patches, in raster order.
    """
    slot = (~mask).long().cumsum(dim=1).sub_(1).clamp_(min=0)
    spread = visible.gather(1, slot[..., None].expand(-1, -1, visible.shape[-1]))
    return torch.where(mask[..., None], filler.to(visible.dtype), spread)


def take_visible(tokens: Tensor, mask: Tensor, kept: int | None = None) -> Tensor:
    """The tokens (B, V, d) of `tokens` (B, L, d) where the mask (B, L) is False, in raster order.

    `kept` says what V is, so that an accelerator's queue need not be waited for; without it the
    mask is counted. Raises ValueError when the images that were counted do not keep the same number
    of patches V, at least one.
    """
    kept = visible_count(mask) if kept is None else kept
    # The lowest keys are the visible patches in raster order. A stable sort would give the same
    # order, slower, and exporters have no operator for it.
    patches = mask.shape[1]
    keys = mask.int() * patches + torch.arange(patches, dtype=torch.int32, device=mask.device)
    order = keys.topk(kept, dim=1, largest=False, sorted=True).indices
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))


def visible_count(mask: Tensor) -> int:
    """How many patches V every image of a mask (B, L) keeps; ValueError where they differ or 0."""
    counts = set((~mask).sum(dim=1).tolist())
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            "visible-only encoding needs the same number of kept patches in every image,"
            f" at least one, not {sorted(counts)}; use one mask ratio per batch"
        )
    return int(counts.pop())
