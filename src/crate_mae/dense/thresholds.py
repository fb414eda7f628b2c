"""Where to cut: Otsu's threshold of one set of values, and the part that holds most of a mass."""

import torch
from torch import Tensor


def otsu_threshold(values: Tensor) -> float:
    """The threshold that splits values (any shape) into the two groups farthest apart.

    It maximises the variance between the groups, n0 n1 (m0 - m1)^2, over every possible split, so
    that no histogram has to be chosen, and lies half-way between the two values beside the split.
    Source: Otsu, "A threshold selection method from gray-level histograms" (1979).
    Raises ValueError when the values are not finite or all the same.
    """
    ordered = values.detach().flatten().double().cpu().sort().values
    if not len(ordered) or not bool(ordered.isfinite().all()):
        raise ValueError("there is no threshold for values that are missing or not finite")
    if ordered[0] == ordered[-1]:
        raise ValueError(f"there is no threshold between {len(ordered)} equal values")
    centred = ordered - ordered.mean()
    below = torch.arange(1, len(ordered), dtype=torch.float64)
    above = len(ordered) - below
    # About their mean all values sum to 0, so that the sum above is minus the sum below.
    sums = centred.cumsum(0)[:-1]
    between = below * above * (sums / below + sums / above).square()
    between[ordered[1:] == ordered[:-1]] = -1
    split = int(between.argmax())
    low, high = float(ordered[split]), float(ordered[split + 1])
    middle = low + (high - low) / 2
    return middle if middle < high else low


def mass_mask(weights: Tensor, mass: float) -> Tensor:
    """The fewest entries of weights (..., L) that together hold at least `mass` of each row's sum.

    Boolean (..., L), the largest entries first, of equal ones the first; nothing of a row of
    zeros. `weights` >= 0 and `mass` in (0, 1]. Raises ValueError for other values.
    """
    checked_mass(mass)
    wide = weights.detach().double()
    if not bool((wide >= 0).all()):
        raise ValueError("only weights of at least 0 have a mass to keep")
    ordered, places = wide.sort(dim=-1, descending=True, stable=True)
    # An entry is needed as long as those before it do not hold enough; the slack is for rounding.
    before = ordered.cumsum(dim=-1) - ordered
    needed = before < mass * wide.sum(dim=-1, keepdim=True) * (1 - 1e-6)
    return torch.zeros_like(needed).scatter(-1, places, needed)


def checked_mass(mass: float) -> float:
    """The mass itself; ValueError when it is not above 0 and at most 1."""
    if not 0 < mass <= 1:
        raise ValueError(f"the mass to keep must be above 0 and at most 1, not {mass}")
    return mass
