"""Principal components of tokens: one basis for all images, a fixed sign, kept in a file.

Shapes: tokens (B, R, S, d) of B images on a grid R x S; n = B*R*S of them; k components.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from crate_mae.dense.thresholds import otsu_threshold
from crate_mae.dense.token_maps import TokenKind, TokenMap

MAX_COMPONENTS = 64


@dataclass(frozen=True, kw_only=True)
class Foreground:
    """Which tokens are foreground: those on one side of a threshold on the first component."""

    mean: Tensor
    """(d,) float64"""
    axis: Tensor
    """(d,) float64, the first component of all tokens."""
    threshold: float
    above: bool
    """Whether foreground lies above the threshold."""
    rule: str
    """How threshold and side were chosen, in words."""

    def margin(self, tokens: Tensor) -> Tensor:
        """How far tokens (..., d) lie on the foreground's side: above 0 in it; (...) float64."""
        beyond = (tokens.double() - self.mean) @ self.axis - self.threshold
        return beyond if self.above else -beyond

    def mask(self, tokens: Tensor) -> Tensor:
        """Boolean (...): True for the tokens (..., d) that are foreground."""
        return self.margin(tokens) > 0


@dataclass(frozen=True, kw_only=True)
class TokenBasis:
    """A mean, principal axes and colour scales, fitted once and used for any images."""

    mean: Tensor
    """(d,) float64"""
    axes: Tensor
    """(k, d) float64, orthonormal rows; in each the coefficient of largest magnitude is > 0."""
    explained: Tensor
    """(k,) share of the variance of the tokens it was fitted on."""
    low: Tensor
    """(k,) scores drawn darkest: the `quantile` of the fitted tokens' scores."""
    high: Tensor
    """(k,) scores drawn brightest: the 1 - `quantile`."""
    quantile: float
    tokens: int
    """How many tokens it was fitted on."""
    foreground: Foreground | None
    """The step that chose these tokens, if there was one."""
    images: int
    """Of how many images."""
    layer: int | None = None
    """Layer and kind of the tokens, as in `TokenMap`."""
    kind: TokenKind = "tokens"

    def scores(self, tokens: Tensor) -> Tensor:
        """Coordinates (..., k), float64, of tokens (..., d); ValueError for another width."""
        if tokens.shape[-1] != len(self.mean):
            raise ValueError(
                f"this basis is of tokens {len(self.mean)} wide, not {tokens.shape[-1]}: it belongs"
                " to another model"
            )
        return (tokens.double() - self.mean) @ self.axes.mT

    def levels(self, tokens: Tensor) -> Tensor:
        """Scores (..., k), float32, scaled to [0, 1] between `low` and `high` and clipped."""
        spread = (self.high - self.low).clamp(min=torch.finfo(torch.float64).tiny)
        return ((self.scores(tokens) - self.low) / spread).clamp(0, 1).float()


def fit_basis(
    tokens: Tensor,
    *,
    components: int = 3,
    quantile: float = 0.01,
    foreground: Foreground | None = None,
) -> TokenBasis:
    """The principal axes of all tokens (B, R, S, d) of all images together.

    With a `foreground` they are those of its tokens only. The order of images does not matter: the
    axes come from a covariance in float64, and in each the coefficient of largest magnitude is
    positive. Colour scales run from the `quantile` to the 1 - `quantile` of the fitted scores.
    Raises ValueError for tokens that are not finite, too few or all the same, and for a quantile
    outside [0, 0.5).
    """
    if not 0 <= quantile < 0.5:
        raise ValueError(f"the quantile must be at least 0 and below 0.5, not {quantile}")
    rows = tokens if foreground is None else tokens[foreground.mask(tokens)]
    rows = rows.reshape(-1, tokens.shape[-1])
    mean, axes, explained = principal_axes(rows, components)
    scores = ((rows.double() - mean) @ axes.mT).numpy()
    low, high = np.quantile(scores, [quantile, 1 - quantile], axis=0)
    return TokenBasis(
        mean=mean,
        axes=axes,
        explained=explained,
        low=torch.from_numpy(low),
        high=torch.from_numpy(high),
        quantile=quantile,
        tokens=len(rows),
        foreground=foreground,
        images=len(tokens),
    )


def fit_token_map(
    tokens: TokenMap,
    *,
    each: bool = False,
    quantile: float = 0.01,
    foreground: bool = False,
    threshold: float | None = None,
    flip: bool = False,
) -> list[TokenBasis]:
    """The basis of up to three components of a token map: one for all images or, `each`, for each.

    With `foreground`, that step comes first, and `threshold` and `flip` are its quantile and side
    (see `find_foreground`). Raises ValueError for either without it, and as `fit_basis` and
    `find_foreground`.
    """
    if not foreground and (flip or threshold is not None):
        raise ValueError(
            "flip and threshold are of the foreground: find it (foreground=True), or leave them out"
        )
    bases = []
    groups = [image[None] for image in tokens.values] if each else [tokens.values]
    for values in groups:
        step = find_foreground(values, quantile=threshold, flip=flip) if foreground else None
        components = min(3, values.shape[-1])
        basis = fit_basis(values, components=components, quantile=quantile, foreground=step)
        bases.append(replace(basis, layer=tokens.layer, kind=tokens.kind))
    return bases


def principal_axes(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean (d,), `count` principal axes (count, d) and their shares of variance, of (n, d).

    Float64; in each axis the coefficient of largest magnitude is positive.
    Raises ValueError as `fit_basis`.
    """
    from sklearn.decomposition import PCA

    width = rows.shape[-1]
    limit = min(MAX_COMPONENTS, width, len(rows) - 1)
    if not 1 <= count <= limit:
        raise ValueError(
            f"{count} components of {len(rows)} tokens, {width} wide, do not exist; from 1 to"
            f" {max(limit, 0)} do"
        )
    values = rows.detach().double().numpy()
    if not np.isfinite(values).all():
        raise ValueError("some tokens are not finite: the weights are damaged, see crate-mae info")
    if (values == values[0]).all():
        raise ValueError(f"all {len(rows)} tokens are equal, so that no direction stands out")
    fitted = PCA(count, svd_solver="covariance_eigh").fit(values)
    axes = torch.from_numpy(fitted.components_.astype(np.float64))
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = axes * largest.sign()
    explained = torch.from_numpy(fitted.explained_variance_ratio_.astype(np.float64))
    return torch.from_numpy(fitted.mean_.astype(np.float64)), axes, explained


def find_foreground(
    tokens: Tensor, *, quantile: float | None = None, flip: bool = False
) -> Foreground:
    """The foreground of tokens (B, R, S, d): one side of a threshold on their first component.

    The threshold is Otsu's over the tokens of all images or, if given, a `quantile` of them. The
    foreground is the side that tokens on the border of the images are on less often than tokens
    inside (above the threshold where it makes no difference); `flip` takes the other one. No truth
    is looked at.
    Raises ValueError as `fit_basis`, and for a quantile that is not between 0 and 1.
    """
    if quantile is not None and not 0 < quantile < 1:
        raise ValueError(f"the quantile must be between 0 and 1, not {quantile}")
    mean, axes, _ = principal_axes(tokens.reshape(-1, tokens.shape[-1]), 1)
    scores = (tokens.double() - mean) @ axes[0]
    if quantile is None:
        threshold, cut = otsu_threshold(scores), "Otsu's threshold"
    else:
        threshold, cut = float(np.quantile(scores.numpy(), quantile)), f"{quantile:g} quantile"
    above = inside_more_often(scores > threshold)
    side = "the side found less often on the border"
    if flip:
        above, side = not above, f"the opposite of {side}"
    rule = f"{cut} of the first component, {side}"
    return Foreground(mean=mean, axis=axes[0], threshold=threshold, above=above, rule=rule)


def inside_more_often(mask: Tensor) -> bool:
    """Whether a mask (B, R, S) holds inside at least as often as on the outermost rows and columns.

    True as well where the grid has no inside.
    """
    inside = torch.zeros(mask.shape[-2:], dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    if not bool(inside.any()):
        return True
    return bool(mask[:, inside].double().mean() >= mask[:, ~inside].double().mean())
