"""Whitening: features brought to equal spread in every direction, by images without labels.

Shapes: n images, d features.
"""

import torch
from torch import Tensor

from crate_mae.evaluation.regression import standardising


def whitening(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and map W (d, d), float32 on the CPU: (z - mean) W has the unit covariance.

        W = S C^(-1/2),    S = diag(1 / standard deviation),    C = covariance of (z - mean) S

    of features `values` (n, d). C is estimated as Ledoit and Wolf do ("A well-conditioned estimator
    for large-dimensional covariance matrices", 2004): drawn toward the identity as much as so few
    images call for, so that directions in which they hardly differ are not blown up. With fewer
    images than features it is far from the unit covariance, and with two it is standardising.
    Features that never change are taken out. No labels are used.
    """
    from sklearn.covariance import ledoit_wolf

    mean, scale = standardising(values.cpu())
    changing = scale > 0
    maps = torch.zeros(len(mean), len(mean))
    if not bool(changing.any()):
        return mean, maps
    standard = ((values.cpu() - mean) * scale)[:, changing].double()
    covariance, _ = ledoit_wolf(standard.numpy(), assume_centered=True)
    eigenvalues, V = torch.linalg.eigh(torch.from_numpy(covariance))
    # The estimate is positive, but for rounding where all images are equal in some direction.
    roots = eigenvalues.clamp_min(eigenvalues[-1] * 1e-12).rsqrt()
    whole = (V * roots) @ V.T
    kept = changing.nonzero().flatten()
    maps[kept[:, None], kept] = (scale[changing, None].double() * whole).float()
    return mean, maps
