"""Linear classifiers trained by SGD on the same features, all settings of a grid at once.

Shapes: n images, d features, C classes, G settings. One product of a batch with all G * C rows of
weights does the work of G trainings.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from crate_mae.common.progress import Progress

MOMENTUM = 0.9
INITIAL_STD = 0.01
BLOCK_VALUES = 1 << 26
"""Class scores that are held at once: 256 MiB of float32."""


class LinearGrid:
    """G linear classifiers W_g x + b_g that see the same batches and differ in their settings."""

    def __init__(
        self,
        settings: Sequence[tuple[float, float]],
        *,
        dim: int,
        num_classes: int,
        batch_norm: bool,
        seed: int,
        device: str | torch.device | None = None,
    ) -> None:
        """`settings` are (learning rate, weight decay); all start from the same weights."""
        self.seed = seed
        rates, decays = torch.tensor(settings, dtype=torch.float64).T
        self.rates = rates.float().to(device)[:, None, None]
        self.decays = decays.float().to(device)[:, None, None]
        first = torch.randn(num_classes, dim, generator=Generator().manual_seed(seed))
        self.weight = (INITIAL_STD * first).to(device).repeat(len(settings), 1, 1)
        self.bias = torch.zeros(len(settings), 1, num_classes, device=device)
        # The features are the same for all, and so are their statistics.
        self.norm: nn.Module = nn.Identity()
        if batch_norm:
            self.norm = nn.BatchNorm1d(dim, eps=1e-6, affine=False).to(device)

    def train(
        self,
        X: Tensor,
        y: Tensor,
        *,
        epochs: int,
        batch_size: int,
        progress: Progress | None = None,
    ) -> None:
        """Minimise every setting's cross-entropy on features (n, d), classes (n,).

        SGD with momentum 0.9; the rate falls to zero on a half cosine, step by step; the decay is
        of weights, not of biases. Batches are drawn anew in every epoch, the same for all settings;
        what does not fill a batch is left out of that epoch.
        """
        generator = Generator().manual_seed(self.seed)
        size = min(batch_size, len(X))
        steps = len(X) // size
        weight_speed, bias_speed = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.norm.train()
        for epoch in range(epochs):
            order = torch.randperm(len(X), generator=generator).to(X.device)
            for step in range(steps):
                rows = order[step * size : (step + 1) * size]
                done = (epoch * steps + step) / (epochs * steps)
                rate = self.rates * (0.5 * (1 + math.cos(math.pi * done)))
                weight_slope, bias_slope = self._slopes(self.norm(X[rows]), y[rows])
                weight_speed.mul_(MOMENTUM).add_(weight_slope).add_(self.decays * self.weight)
                bias_speed.mul_(MOMENTUM).add_(bias_slope)
                self.weight -= rate * weight_speed
                self.bias -= rate * bias_speed
            if progress is not None:
                progress(epoch + 1, epochs)
        self.norm.eval()

    def answers(self, X: Tensor) -> Tensor:
        """The class (G, n) that each setting gives features (n, d)."""
        block = max(1, BLOCK_VALUES // self.weight[..., 0].numel())
        parts = [self._scores(self.norm(x)).argmax(dim=-1) for x in torch.split(X, block)]
        return torch.cat(parts, dim=1)

    def finite(self) -> list[bool]:
        """For every setting, whether its training stayed finite."""
        flat = torch.cat([self.weight.flatten(1), self.bias.flatten(1)], dim=1)
        return flat.isfinite().all(dim=1).tolist()

    def _scores(self, x: Tensor) -> Tensor:
        """Scores (G, b, C) of normalised features (b, d)."""
        G, C, d = self.weight.shape
        flat = F.linear(x, self.weight.view(G * C, d))
        return flat.view(len(x), G, C).transpose(0, 1) + self.bias

    def _slopes(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (G, C, d) and (G, 1, C) of the mean cross-entropy of a batch."""
        residual = self._scores(x).softmax(dim=-1)
        residual -= F.one_hot(y, residual.shape[-1])
        residual /= len(x)
        G, _, C = residual.shape
        flat = residual.transpose(0, 1).reshape(len(x), G * C)
        return (flat.T @ x).view(G, C, -1), residual.sum(dim=1, keepdim=True)
