"""Random numbers by key, for whole batches: each sample's depend on its key alone, on any device.

Shapes: B samples, L patches.
"""

import torch
from torch import Tensor

from crate_mae.data.batches import MASK, Masking
from crate_mae.models.masks import keyed_generator, num_kept


def numbers(index: Tensor, count: int, *key: int) -> Tensor:
    """Random 64-bit whole numbers (B, count), fixed by each index (B,) and by whole numbers `key`.

    The same on every device. Source: the finaliser and the counter of SplitMix64 (Steele, Lea,
    Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
    """
    first = _scrambled(index.long() * _GAMMA + keyed_generator(*key).initial_seed())
    counter = torch.arange(1, count + 1, device=index.device)
    return _scrambled(first[:, None] + counter * _GAMMA)


def uniform(index: Tensor, count: int, *key: int) -> Tensor:
    """Random numbers (B, count) in [0, 1), float32, fixed by each index (B,) and by `key`."""
    return (numbers(index, count, *key) >> 40 & 0xFFFFFF).float() / 2**24


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _scrambled(x: Tensor) -> Tensor:
    # int64 wraps around; the masks turn its arithmetic shifts into logical ones.
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _FACTORS[0]
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _FACTORS[1]
    return x ^ (x >> 31 & (1 << 33) - 1)


def masks_of(masking: Masking, grid: tuple[int, int], index: Tensor, *key: int) -> Tensor:
    """Masks (B, L), True = removed, each fixed by its index (B,) and `key`, on the index' device.

    Random masks are drawn there; the other kinds, which are built step by step, on the CPU.
    """
    patches = grid[0] * grid[1]
    if masking.kind != "random":
        drawn = [masking.draw(grid, *key, i) for i in index.tolist()]
        return torch.stack(drawn).to(index.device, non_blocking=True)
    # The first number of each sample is for its ratio.
    ranks = numbers(index, patches + 1, MASK, *key)[:, 1:].argsort(dim=1).argsort(dim=1)
    if masking.ratio_max is None:
        return ranks >= num_kept(patches, masking.ratio)
    share = uniform(index, 1, MASK, *key).double()
    ratio = masking.ratio + (masking.ratio_max - masking.ratio) * share
    return ranks >= (patches * (1 - ratio)).long()
