"""Random numbers that whole numbers fix, and the state of the generators that libraries share.

What a sample undergoes is drawn from a key such as (stream, seed, epoch, sample), so that it is the
same on every machine, worker and rank, and after every restart.
"""

import hashlib
import random
import struct
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor

ORDER, AUGMENT, MASK, ERASE, MIX, DEPTH, RATIO, VIEW = 1, 2, 3, 4, 5, 6, 7, 8
"""Streams of random numbers, the first part of a key: using more of one leaves the others."""


# -- numbers by key -----------------------------------------------------------------------------


def keyed_generator(*key: int) -> Generator:
    """A CPU generator that depends on whole numbers alone, such as (seed, epoch, sample).

    The same key gives the same draws on every machine, worker and rank.
    """
    packed = struct.pack(f"<{len(key)}q", *key)
    seed = int.from_bytes(hashlib.blake2b(packed, digest_size=4).digest(), "little")
    return Generator().manual_seed(seed)


def seed_globally(*key: int) -> None:
    """Start torch's global CPU generator at a point that the key alone fixes."""
    torch.default_generator.manual_seed(keyed_generator(*key).initial_seed())


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


# -- the state of shared generators -------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's generators, in tensors and plain values."""
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([item.cpu() for item in state["cuda"]])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
