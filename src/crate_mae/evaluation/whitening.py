"""Whitening: features brought to like spread in every direction, by images without labels.

Shapes: n and m images, d features.
"""

import torch
from torch import Tensor

from crate_mae.evaluation.regression import standardising


class Whitening:
    """The directions in which some images differ, and by how much; no labels are used.

        W = S (I + s C)^(-1/2),    S = diag(1 / deviation),    C = covariance of (z - mean) S

    At strength s -> 0 features are standardised; the larger s, the more alike all directions count,
    up to the unit covariance. Few images do not tell the spread of many directions, and a large s
    then blows up what is chance in them. Features that never change are taken out.
    """

    def __init__(self, values: Tensor) -> None:
        """Take the features (n, d) of the images that directions are learned from."""
        self.mean, self.scale = standardising(values.cpu())
        covariance = torch.zeros(len(self.mean), len(self.mean), dtype=torch.float64)
        for block in torch.split(values.cpu(), 4096):  # float64 copies of pieces
            standard = ((block - self.mean) * self.scale).double()
            covariance += standard.mT @ standard / len(values)
        self.eigenvalues, self.directions = torch.linalg.eigh(covariance)

    def map(self, strength: float) -> Tensor:
        """W (d, d) in float32, for a strength s above 0."""
        roots = (1 + strength * self.eigenvalues.clamp_min(0)).rsqrt()
        whole = (self.directions * roots) @ self.directions.mT
        W: Tensor = (self.scale[:, None].double() * whole).float()
        return W

    def __call__(self, values: Tensor, strength: float) -> Tensor:
        """The features (m, d) of any images, whitened: (z - mean) W, on their device."""
        mean, W = self.mean.to(values.device), self.map(strength).to(values.device)
        return (values - mean) @ W
