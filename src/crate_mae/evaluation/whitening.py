"""Whitening: features brought to like spread in every direction, by images without labels.

Shapes: n and m images, d features.
"""

import torch
from torch import Tensor

from crate_mae.evaluation.regression import standardising

RESOLUTION = 1e-12
"""Of fewer images than features: directions that extend by less than this share of the largest
variance are left as they are."""


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
        self.eigenvalues: Tensor
        self.directions: Tensor
        n, d = values.shape
        if n < d:  # all in which they differ lies among n directions: a matrix n x n tells them
            standard = self._standardised(values.cpu()).double()
            found, left = torch.linalg.eigh(standard @ standard.mT / n)
            kept = found > RESOLUTION * found.max()
            self.eigenvalues = found[kept]
            self.directions = standard.mT @ (left[:, kept] / (n * self.eigenvalues).sqrt())
            return
        covariance = torch.zeros(d, d, dtype=torch.float64)
        for block in torch.split(values.cpu(), 4096):  # float64 copies of pieces
            standard = self._standardised(block).double()
            covariance += standard.mT @ standard / n
        self.eigenvalues, self.directions = torch.linalg.eigh(covariance)

    def map(self, strength: float) -> Tensor:
        """W (d, d) in float32, for a strength s above 0."""
        Q, roots = self.directions, self._roots(strength)
        if self._few:  # other directions are left as they are
            whole = torch.eye(len(Q), dtype=Q.dtype) + (Q * (roots - 1)) @ Q.mT
        else:
            whole = (Q * roots) @ Q.mT
        W: Tensor = (self.scale[:, None].double() * whole).float()
        return W

    def __call__(self, values: Tensor, strength: float) -> Tensor:
        """The features (m, d) of any images, whitened: (z - mean) W, on their device."""
        if not self._few:
            mean, W = self.mean.to(values.device), self.map(strength).to(values.device)
            return (values - mean) @ W
        Q, change = self.directions.float(), (self._roots(strength) - 1).float()
        Q, change = Q.to(values.device), change.to(values.device)
        standard = self._standardised(values)
        return standard + (standard @ Q * change) @ Q.mT

    @property
    def _few(self) -> bool:
        """Whether there are fewer directions than features."""
        return self.directions.shape[1] < len(self.directions)

    def _standardised(self, values: Tensor) -> Tensor:
        return (values - self.mean.to(values.device)) * self.scale.to(values.device)

    def _roots(self, strength: float) -> Tensor:
        """What W stretches each direction by, standardised features taken."""
        return (1 + strength * self.eigenvalues.clamp_min(0)).rsqrt()
