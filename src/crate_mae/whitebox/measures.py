"""White-box measures of tokens: rates, sparsity, rank, the objectives a layer steps on.

Pure functions: tensors in, numbers out, float64 inside and out, whatever the precision of the
input. Shapes: B images, N tokens (rows), d token width, K subspaces (heads), p = d / K. Source of
the rates: "Masked Completion via Structured Diffusion with White-Box Transformers" (ICLR 2024,
arXiv 2404.02446), the sparse rate reduction; docs/whitebox.md explains each in plain words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.models.coding_rate import half_logdet, half_logdet_of_gram, shifted_cholesky

EPS_SQUARED = 0.01
"""The published quantisation error eps^2, for tokens of length 1."""


def coding_rate(
    tokens: Tensor, *, eps_squared: float = EPS_SQUARED, normalize: bool = True
) -> Tensor:
    """The rate R in nats of all tokens (B, N, d): (B,), at least 0.

    R = 1/2 logdet(I + d / (N eps^2) Z Z^T): how much it takes to code the tokens up to an error of
    eps each. With `normalize` every token is first scaled to length 1 (zero tokens stay zero).
    Raises ValueError for tokens that are not finite or not (B, N, d), and for eps^2 not above 0.
    """
    Z = _checked(tokens, 3, "(B, N, d)", eps_squared)
    Z = unit_rows(Z) if normalize else Z
    return half_logdet(Z, Z.shape[-1] / (Z.shape[-2] * eps_squared))


def subspace_coding_rate(
    projections: Tensor, *, eps_squared: float = EPS_SQUARED, normalize: bool = True
) -> Tensor:
    """The rate R^c in nats of tokens within subspaces, from w_k = x U_k (B, K, N, p): (B,).

    R^c = 1/2 sum_k logdet(I + p / (N eps^2) w_k w_k^T). With `normalize` every w_k of every token
    is first scaled to length 1. Raises as `coding_rate`.
    """
    return head_coding_rates(projections, eps_squared=eps_squared, normalize=normalize).sum(dim=-1)


def head_coding_rates(
    projections: Tensor, *, eps_squared: float = EPS_SQUARED, normalize: bool = True
) -> Tensor:
    """The terms (B, K) of the sum over subspaces that `subspace_coding_rate` is."""
    w = _checked(projections, 4, "(B, K, N, p)", eps_squared)
    w = unit_rows(w) if normalize else w
    return half_logdet(w, w.shape[-1] / (w.shape[-2] * eps_squared))


def compression_gradient(
    tokens: Tensor, subspaces: Tensor, *, eps_squared: float, offsets: Tensor | None = None
) -> Tensor:
    """The gradient dR^c/dZ (B, N, d) at tokens Z (B, N, d) for subspaces U_k (K, d, p).

    sum_k a (I + a w_k w_k^T)^-1 w_k U_k^T, w_k = Z U_k, with a = p / (N eps^2), of the rate without
    normalisation. MSSA stands for a step against it. `offsets` (B or 1, K, 1, p) are added to w_k
    where U has a bias. Raises as `coding_rate`.
    """
    Z = _checked(tokens, 3, "(B, N, d)", eps_squared)
    U = subspaces.double()
    w = torch.einsum("bnd,kdp->bknp", Z, U)
    if offsets is not None:
        w = w + offsets.double()
    a = w.shape[-1] / (w.shape[-2] * eps_squared)
    # (I + a w w^T)^-1 w = w (I + a w^T w)^-1: the smaller of the two systems is solved.
    if w.shape[-1] <= w.shape[-2]:
        inner = torch.cholesky_solve(w.mT, shifted_cholesky(w.mT @ w, a)).mT
    else:
        inner = torch.cholesky_solve(w, shifted_cholesky(w @ w.mT, a))
    return a * torch.einsum("bknp,kdp->bnd", inner, U)


def class_rate_reduction(
    second_moments: Tensor, counts: Tensor, *, eps_squared: float = EPS_SQUARED
) -> tuple[float, float, float]:
    """(Delta R, R, R_classes) in nats of features with labels, from their sums by class.

    `second_moments` (C, d, d) are sums of f f^T over the features f of each class, `counts` (C,)
    their numbers; features are meant to have length 1. MCR^2: R = 1/2 logdet(I + d / (n eps^2) F^T
    F) of all, R_classes the mean of the same over classes weighted by n_c / n, and Delta R = R -
    R_classes: 0 when classes do not differ, larger the more the classes spread apart and the less
    room each takes. Source: Yu et al., "Learning Diverse and Discriminative Representations via the
    Principle of Maximal Coding Rate Reduction" (2020). Raises ValueError without any feature.
    """
    S, n = second_moments.double(), counts.double()
    total, width = float(n.sum()), S.shape[-1]
    if total <= 0:
        raise ValueError("no features have been counted, so there is no rate")
    present = n > 0
    whole = half_logdet_of_gram(S.sum(dim=0), width / (total * eps_squared))
    rates = torch.stack(
        [
            half_logdet_of_gram(moment, width / (float(count) * eps_squared))
            for moment, count in zip(S[present], n[present], strict=True)
        ]
    )
    within = float((rates * n[present]).sum() / total)
    return float(whole) - within, float(whole), within


def effective_rank(matrices: Tensor) -> Tensor:
    """exp of the entropy of the singular values' shares, for matrices (..., N, p): (...).

    From 1 (rank one) to min(N, p) (all singular values equal); 0 for a zero matrix. Source: Roy and
    Vetterli, "The effective rank" (2007). Singular values come from the smaller Gram matrix, so
    those below 1e-8 of the largest are not told from 0.
    """
    X = _checked(matrices, None, "(..., N, p)", 1.0)
    gram = X.mT @ X if X.shape[-1] <= X.shape[-2] else X @ X.mT
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = values.sum(dim=-1, keepdim=True)
    shares = values / torch.where(total > 0, total, 1.0)
    entropy = -torch.xlogy(shares, shares).sum(dim=-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), 0.0)


def zero_fraction(tokens: Tensor) -> Tensor:
    """The share of exact zeros of tokens (B, N, d): (B,)."""
    return (tokens == 0).double().mean(dim=(-2, -1))


def small_fraction(tokens: Tensor, *, share: float = 0.01) -> Tensor:
    """The share of entries of tokens (B, N, d) that are at most `share` of their token's largest.

    Absolute values are meant; all entries of a zero token count. Result (B,).
    """
    magnitude = tokens.double().abs()
    small = magnitude <= share * magnitude.amax(dim=-1, keepdim=True)
    return small.double().mean(dim=(-2, -1))


def hoyer_sparsity(vectors: Tensor) -> Tensor:
    """Hoyer's sparsity of vectors (..., d), d > 1: (...), from 0 to 1.

    (sqrt(d) - |x|_1 / |x|_2) / (sqrt(d) - 1): 0 when all |x_i| are equal, 1 for a single entry.
    A zero vector counts as 1. Source: Hoyer,
    "Non-negative matrix factorization with sparseness constraints" (2004).
    """
    magnitude = vectors.double().abs()
    # Scaling by the largest keeps squares of tiny numbers from vanishing.
    largest = magnitude.amax(dim=-1, keepdim=True)
    x = magnitude / torch.where(largest > 0, largest, 1.0)
    root = x.shape[-1] ** 0.5
    norm = x.square().sum(dim=-1).sqrt()
    ratio = x.sum(dim=-1) / torch.where(norm > 0, norm, 1.0)
    return torch.where(norm > 0, (root - ratio) / (root - 1), 1.0)


def gini_sparsity(vectors: Tensor) -> Tensor:
    """The Gini index of the entries' sizes |x_i| for vectors (..., d): (...), 0 to 1 - 1/d.

    1 - 2 sum_i (|x|_(i) / |x|_1) (d - i + 1/2) / d over sizes in rising order: 0 when all are
    equal, 1 - 1/d for a single entry, which is also what a zero vector counts as. Source: Hurley
    and Rickard, "Comparing measures of sparsity" (2009).
    """
    sizes = vectors.double().abs().sort(dim=-1).values
    d = sizes.shape[-1]
    places = (d - torch.arange(1, d + 1, dtype=torch.float64, device=sizes.device) + 0.5) / d
    total = sizes.sum(dim=-1)
    weighted = (sizes / torch.where(total > 0, total, 1.0)[..., None]) @ places
    return torch.where(total > 0, 1 - 2 * weighted, 1 - 1 / d)


def lasso_objective(codes: Tensor, tokens: Tensor, dictionary: Tensor, sparsity: float) -> Tensor:
    """The LASSO objective of codes z (B, N, n d) for tokens x (B, N, d), mean over tokens: (B,).

    1/2 |x - D z|^2 + lambda |z|_1 with D (d, n d); ISTA takes proximal gradient steps on it, with
    z held non-negative, the published layers one, with n = 1. Codes with negative entries are none
    of the non-negative problem's, and their value is that of the problem without the constraint.
    """
    z, x = codes.double(), tokens.double()
    residual = x - F.linear(z, dictionary.double())
    values = residual.square().sum(dim=-1) / 2 + sparsity * z.abs().sum(dim=-1)
    return values.mean(dim=-1)


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """|found - expected| / |expected| over all but the first dimension, (B, ...): (B,).

    0 when both are zero; infinite when only `expected` is.
    """
    gap = (found.double() - expected.double()).flatten(1).norm(dim=1)
    size = expected.double().flatten(1).norm(dim=1)
    return torch.where(gap == 0, 0.0, gap / size)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """The cosine between tensors (B, ...) as long vectors: (B,), -1 to 1; 0 where one is zero."""
    a, b = first.double().flatten(1), second.double().flatten(1)
    sizes = a.norm(dim=1) * b.norm(dim=1)
    return (a * b).sum(dim=1) / torch.where(sizes > 0, sizes, 1.0)


def unit_rows(vectors: Tensor) -> Tensor:
    """Vectors (..., d) in float64, scaled to length 1; zero vectors stay zero."""
    wide = vectors.double()
    lengths = wide.norm(dim=-1, keepdim=True)
    return wide / torch.where(lengths > 0, lengths, 1.0)


def _checked(values: Tensor, ndim: int | None, shape: str, eps_squared: float) -> Tensor:
    """The values in float64, once they can be measured."""
    if (values.ndim != ndim) if ndim is not None else values.ndim < 2:
        raise ValueError(f"expected a tensor {shape}, not {tuple(values.shape)}")
    if 0 in values.shape[-2:]:
        raise ValueError(f"there is nothing to measure in a tensor {tuple(values.shape)}")
    if not 0 < eps_squared < float("inf"):
        raise ValueError(f"eps_squared must be a finite number above 0, not {eps_squared}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the tokens hold values that are not finite; check the weights and images")
    return values.double()
