"""The coding rate R as a term to train on: how far apart features lie, differentiable.

The sparse rate reduction R(Z) - R^c(Z | U) - lambda |Z| that the layers are derived from asks for a
large R. The layers are derived to lower R^c and |Z|; none is derived to raise R, and the masked
loss does not ask for it. The term here does: it is 0 where features fill all the room there is and
grows as they collapse.

With rows of F scaled to length 1 and a = d / (n eps^2), dR/dF = a (I + a F F^T)^-1 F: each feature
is pushed away from the directions that are full. Relatives: the pairwise term of U-MAE (Zhang et
al., 2022), the mean of (f_i . f_j)^2, is the second order of -R in a; SimDINO (Wu et al., 2025)
maximises R of a head's output. docs/model.md compares them.

Shapes: n features (or tokens) of d values, B images.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHORTEST = 1e-6
"""Features shorter than this are not scaled up to length 1: their direction is rounding."""
FLOAT32_UP_TO = 1e5
"""The largest d / eps^2 for float32: of equal features it is the condition number of what is
factored, and rounding would be counted as room that they fill."""


def rate_share(
    features: Tensor, *, eps_squared: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The coding rate R in nats of features (..., n, d), and R over the largest possible: (...).

    R = 1/2 logdet(I + d / (n eps^2) F^T F) of features scaled to length 1 (zero features stay
    zero), so that the share lies from 0, all features zero, to 1: `largest_rate`, reached where
    min(n, d) directions hold equally much; nan for features that are not finite. Computed in
    `dtype` or wider (`rate_dtype`), outside autocast, with the smaller of both Gram matrices.
    Maximal coding rate reduction, Yu et al. (2020), equation 1; here without the classes. Raises
    ValueError for features without rows and eps^2 not above 0.
    """
    if features.ndim < 2 or 0 in features.shape[-2:]:
        raise ValueError(f"features must be (..., n, d), not {tuple(features.shape)}")
    n, d = features.shape[-2:]
    limit = largest_rate(n, d, eps_squared=eps_squared)
    with torch.autocast(features.device.type, enabled=False):
        wide = features.to(rate_dtype(features, dtype, eps_squared))
        rate = half_logdet(F.normalize(wide, dim=-1, eps=SHORTEST), d / (n * eps_squared))
    return rate, rate / limit


def rate_dtype(features: Tensor, dtype: torch.dtype, eps_squared: float) -> torch.dtype:
    """What the rate of features (..., d) is computed in: `dtype` or wider, float64 for small eps^2.

    Float32 where a device has nothing wider.
    """
    wide = torch.promote_types(features.dtype, dtype)
    small = features.shape[-1] > FLOAT32_UP_TO * eps_squared
    return torch.float64 if small and features.device.type != "mps" else wide


def largest_rate(n: int, d: int, *, eps_squared: float) -> float:
    """The largest rate in nats that n features of d values and length 1 can have.

    r / 2 log(1 + d / (r eps^2)) with r = min(n, d): F^T F has the trace n, and a determinant of
    given trace and rank is largest where all eigenvalues are equal. Raises ValueError for eps^2
    that is no finite number above 0.
    """
    if not 0 < eps_squared < math.inf:
        raise ValueError(f"eps_squared must be a finite number above 0, not {eps_squared}")
    r = min(n, d)
    return r / 2 * math.log1p(d / (r * eps_squared))


def half_logdet(X: Tensor, scale: float) -> Tensor:
    """1/2 logdet(I + scale X X^T) for X (..., n, d): (...), by the smaller Gram matrix."""
    gram = X.mT @ X if X.shape[-1] <= X.shape[-2] else X @ X.mT
    return half_logdet_of_gram(gram, scale)


def half_logdet_of_gram(gram: Tensor, scale: float) -> Tensor:
    """1/2 logdet(I + scale G) for symmetric G (..., m, m) without negative eigenvalues: (...).

    nan for a G that is not finite.
    """
    # The log of half a determinant is the sum of the logs of its Cholesky factor's diagonal.
    return shifted_cholesky(gram, scale).diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)


def shifted_cholesky(gram: Tensor, scale: float) -> Tensor:
    """The Cholesky factor of I + scale G for G as in `half_logdet_of_gram`; nan where none is."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(identity + scale * gram)
    # Not an error: every process of a run has to come to where it looks for what is not finite.
    return torch.where((failed > 0)[..., None, None], math.nan, factor)
