"""Foreground of one image as one of two Gaussians of its tokens, begun from a centred ellipse.

Shapes: tokens (B, R, S, d) of B images on a grid R x S; n = R*S of them; k components.
"""

import torch
from torch import Tensor

from crate_mae.dense.layout import Layout, to_pixels

COMPONENTS = 16
"""Principal components of an image's tokens that are looked at, at most."""
TOKENS_A_COMPONENT = 16
"""So many tokens for each, so that two covariances can be told."""
STEPS = 15
SHRINKAGE = 0.1
"""Of a covariance toward a multiple of the identity: this share of its mean variance is added."""
CERTAINTY = 0.9
"""How far the place alone decides, from 0 (not at all) to 1 (corners are never foreground)."""
SHARPNESS = 10.0
"""Of the ellipse's edge, per unit of squared distance in shares of the sides."""

RULE = (
    "Foreground: one of two Gaussians of each image's tokens, begun from a centred ellipse"
    " that covers half of it"
)


def foreground_shares(tokens: Tensor) -> Tensor:
    """How likely each token of (B, R, S, d) is foreground: (B, R, S) float64 from 0 to 1.

    In each image by itself expectation maximisation fits two Gaussians to the leading principal
    components of its tokens. The prior of each token depends on its place (`place_prior`), and is
    what the fit begins with: foreground is what looks alike in the middle and unlike the margin.
    Rotating or scaling all tokens changes nothing. An image whose tokens are all equal keeps the
    prior. Raises ValueError for tokens that are not finite.
    """
    if not bool(tokens.isfinite().all()):
        raise ValueError("some tokens are not finite: the weights are damaged, see crate-mae info")
    prior = place_prior((tokens.shape[1], tokens.shape[2])).flatten()
    found = [_fitted(image.flatten(0, 1).double(), prior) for image in tokens]
    return torch.stack(found).view(tokens.shape[:3])


def place_prior(grid: tuple[int, int]) -> Tensor:
    """The prior (R, S) of foreground by place, float64: half on an ellipse over half of the image.

    From 0.5 + CERTAINTY / 2 toward the middle to 0.5 - CERTAINTY / 2 far from it, at most.
    """
    rows, columns = (
        (torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5 for count in grid
    )
    inside = 0.5 / torch.pi - (rows[:, None].square() + columns.square())
    return 0.5 + CERTAINTY * (torch.sigmoid(SHARPNESS * inside) - 0.5)


def cut_shares(tokens: Tensor, layout: Layout) -> Tensor:
    """Scores (B, H, W) float32, above 0 where pixels are foreground, of tokens (B, R, S, d)."""
    return to_pixels(foreground_shares(tokens) - 0.5, layout, smooth=True)


def _fitted(rows: Tensor, prior: Tensor) -> Tensor:
    count = max(1, min(COMPONENTS, len(rows) // TOKENS_A_COMPONENT, rows.shape[1]))
    left, lengths, _ = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    if float(lengths[0]) <= 1e-9 * max(1.0, float(rows.abs().max())):
        return prior
    scores = left[:, :count] * lengths[:count]
    share = prior
    for _ in range(STEPS):
        inside, outside = (_log_density(scores, weights) for weights in (share, 1 - share))
        share = torch.sigmoid(inside - outside + torch.logit(prior))
    return share


def _log_density(rows: Tensor, weights: Tensor) -> Tensor:
    """Of the Gaussian of weighted rows (n, k), at each: (n,), up to a constant."""
    shares = weights / weights.sum().clamp(min=1e-9)
    centred = rows - shares @ rows
    spread = (shares[:, None] * centred).mT @ centred
    # One cluster may have shrunk to a point; the spread of all rows keeps a scale.
    floor = 1e-6 * rows.square().mean()
    added = SHRINKAGE * spread.diagonal().mean() + floor
    lower = torch.linalg.cholesky(spread + added * torch.eye(len(spread), dtype=rows.dtype))
    white = torch.linalg.solve_triangular(lower, centred.mT, upper=False)
    density: Tensor = -0.5 * white.square().sum(dim=0) - lower.diagonal().log().sum()
    return density
