"""Compression beside denoising, where the truth is known: tokens on known subspaces, white noise.

Each layer of the model is said to denoise its tokens towards a union of subspaces by compressing
them. Here both sides of that sentence are written down: the denoiser that no other can beat, and
the compression steps. All arithmetic is float64.

The tokens (rows) are those of the `Mixture` below: z = U_k a, a ~ N(0, s^2 I_p), one of K subspaces
with probability 1/K; observed is x = z + sigma g. Displacements are f(x) - x; a step against the
gradient of R^c has a minus sign. With P_k = U_k U_k^T and w_k = U_k^T x:

- **Exact.** E[z | x] = x + sigma^2 grad log q(x) (Miyasawa, Tweedie), and for this mixture
  = s^2 / (s^2 + sigma^2) sum_k r_k(x) P_k x: choose by the posterior r_k, project, shrink.
- **A step on R^c.** N dR^c/dx_i = sum_k U_k (C_k + eps^2/p I)^-1 U_k^T x_i with C_k = 1/N sum_j
  w_kj w_kj^T, an identity. That is minus the score of another density: a *product* over heads of
  Gaussians N(0, C_k + eps^2/p I), each fitted to all N tokens, where the data are a *mixture*. So
  x - N sigma^2 dR^c/dx is Tweedie's formula for that product: one linear filter for all tokens of a
  set. It cannot choose a subspace token by token; it shrinks directions in which the set has little
  energy by more than directions in which it has much.
- **MSSA.** With many tokens a softmax head tends to the mean of the tokens' coordinates tilted by
  exp(<w, w_k>/tau). For orthogonal subspaces that is w_k times
  [q_k (s^2 + sigma^2) + (1 - q_k) sigma^2] / tau, with a gate q_k(x) that opens as
  exp(s^2 |w_k|^2 / (2 tau^2)): the shape of the exact denoiser, whose posterior opens as
  exp(s^2 |w_k|^2 / (2 sigma^2 (s^2 + sigma^2))). The choice that the gradient cannot make sits in
  the softmax. `matched_temperature` makes an open gate shrink as the exact denoiser does.

Sources: "Masked Completion via Structured Diffusion with White-Box Transformers" (ICLR 2024, arXiv
2404.02446) for R^c and MSSA; Miyasawa (1961) and Robbins (1956, who credits Tweedie) for the exact
denoiser. The other two identities are derived in docs/theory.md.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.whitebox.measures import compression_gradient


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Equally likely Gaussians on K subspaces, seen in white noise.

    Raises ValueError for bases that are not (K, d, p) or not orthonormal, and for a variance or a
    noise level that is not a finite number above 0.
    """

    bases: Tensor
    """U (K, d, p), each with orthonormal columns; kept in float64."""
    variance: float
    """s^2 of every coordinate within a subspace, so that E|z|^2 = p s^2."""
    noise: float
    """sigma, the standard deviation of the noise in every one of the d coordinates."""

    def __post_init__(self) -> None:
        for name in ("variance", "noise"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"the {name} must be a finite number above 0, not {value}")
        U = self.bases.double()
        if U.ndim != 3 or 0 in U.shape:
            raise ValueError(f"bases must be (K, d, p), not {tuple(self.bases.shape)}")
        gram = U.mT @ U
        if not torch.allclose(gram, torch.eye(U.shape[-1], dtype=gram.dtype).expand_as(gram)):
            raise ValueError("the columns of every basis must be orthonormal; use torch.linalg.qr")
        object.__setattr__(self, "bases", U)

    @property
    def gain(self) -> float:
        """s^2 / (s^2 + sigma^2): how much of a coordinate within the right subspace is signal."""
        return self.variance / (self.variance + self.noise**2)


class Tokens(NamedTuple):
    """B sets of N tokens of a mixture."""

    clean: Tensor
    """z (B, N, d)."""
    noisy: Tensor
    """x = z + sigma g (B, N, d)."""
    labels: Tensor
    """The subspace of each token (B, N), 0 to K - 1."""


def subspaces(
    dim: int, size: int, count: int, *, coherence: float | None = 0.0, generator: torch.Generator
) -> Tensor:
    """Bases (K, d, p) of `count` subspaces of dimension `size` in `dim` dimensions, float64.

    Any two of them meet at p equal principal angles, whose cosine is `coherence`, 0 (orthogonal) up
    to but not 1; up to a rotation of space and of each basis this is
    U_j^T U_k = coherence I. With coherence None each is drawn by itself, uniformly among all.
    Raises ValueError for sizes that do not fit: stated angles need K p <= d.
    """
    if min(dim, size, count) < 1 or size > dim:
        raise ValueError(
            f"{count} subspaces of dimension {size} in {dim} dimensions: all must be at least 1,"
            " and a subspace no larger than the space"
        )
    if coherence is None:
        drawn = torch.randn(count, dim, size, generator=generator, dtype=torch.float64)
        random: Tensor = torch.linalg.qr(drawn)[0]
        return random
    if not 0 <= coherence < 1:
        raise ValueError(f"the coherence must be from 0 up to but not 1, not {coherence}")
    if count * size > dim:
        raise ValueError(
            f"{count} subspaces of dimension {size} with a stated angle need {count * size}"
            f" dimensions, not {dim}; take fewer, or random ones"
        )
    frame, _ = torch.linalg.qr(
        torch.randn(dim, count * size, generator=generator, dtype=torch.float64)
    )
    # Mixing K orthonormal blocks by a square root of the wanted Gram matrix (1 - c) I + c 1 1^T,
    # the same way in each of the p coordinates, gives that Gram matrix times I_p.
    inner, outer = math.sqrt(1 - coherence), math.sqrt(1 + (count - 1) * coherence)
    root = inner * torch.eye(count, dtype=frame.dtype) + (outer - inner) / count
    return torch.einsum("dkp,jk->jdp", frame.view(dim, count, size), root)


def sample_tokens(
    mixture: Mixture, num_sets: int, num_tokens: int, *, generator: torch.Generator
) -> Tokens:
    """`num_sets` sets of `num_tokens` tokens of a mixture: clean, noisy, their subspaces."""
    U = mixture.bases
    count, dim, size = U.shape
    shape = (num_sets, num_tokens)
    labels = torch.randint(count, shape, generator=generator)
    a = torch.randn(*shape, size, generator=generator, dtype=U.dtype)
    clean = within(U, math.sqrt(mixture.variance) * a, labels)
    noise = torch.randn(*shape, dim, generator=generator, dtype=U.dtype)
    return Tokens(clean, clean + mixture.noise * noise, labels)


def within(bases: Tensor, coordinates: Tensor, labels: Tensor) -> Tensor:
    """Tokens U_k a (B, N, d) from coordinates a (B, N, p) and the subspace of each token (B, N)."""
    tokens = coordinates.new_empty(*labels.shape, bases.shape[1])
    for k, basis in enumerate(bases):
        tokens[labels == k] = coordinates[labels == k] @ basis.mT
    return tokens


def project(tokens: Tensor, bases: Tensor) -> Tensor:
    """Coordinates w_k = U_k^T x (B, K, N, p) of tokens (B, N, d) in all subspaces (K, d, p)."""
    return torch.einsum("bnd,kdp->bknp", tokens.double(), bases)


def lift(coordinates: Tensor, bases: Tensor) -> Tensor:
    """sum_k U_k w_k (B, N, d) of coordinates (B, K, N, p): the transpose of `project`."""
    return torch.einsum("bknp,kdp->bnd", coordinates, bases)


def project_own(tokens: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    """Tokens (B, N, d) projected onto the subspace that each came from, told by labels (B, N)."""
    w = project(tokens, bases)
    index = labels[:, None, :, None].expand(-1, 1, -1, w.shape[-1])
    return within(bases, w.gather(1, index)[:, 0], labels)


def responsibilities(tokens: Tensor, mixture: Mixture) -> Tensor:
    """The posterior P(subspace | noisy token) for tokens (B, N, d): (B, N, K), rows sum to 1.

    Subspaces of one dimension and one variance differ only in the energy that they explain:
    r_k is proportional to exp(s^2 |U_k^T x|^2 / (2 sigma^2 (s^2 + sigma^2))).
    """
    energy = project(tokens, mixture.bases).square().sum(dim=-1).mT
    return (mixture.gain / (2 * mixture.noise**2) * energy).softmax(dim=-1)


def mixture_score(tokens: Tensor, mixture: Mixture) -> Tensor:
    """grad log q(x) (B, N, d), q the density of noisy tokens (B, N, d), in closed form.

    By Woodbury's identity (s^2 P_k + sigma^2 I)^-1 = (I - gain P_k) / sigma^2, so
    the score is -(x - gain sum_k r_k P_k x) / sigma^2.
    """
    r = responsibilities(tokens, mixture)
    chosen = lift(r.mT[..., None] * project(tokens, mixture.bases), mixture.bases)
    return -(tokens.double() - mixture.gain * chosen) / mixture.noise**2


def denoise_exact(tokens: Tensor, mixture: Mixture) -> Tensor:
    """E[z | x] (B, N, d) for noisy tokens (B, N, d): nothing has a smaller mean squared error."""
    return tokens.double() + mixture.noise**2 * mixture_score(tokens, mixture)


def compression_step(
    tokens: Tensor, bases: Tensor, *, eps_squared: float, step: float | None = None
) -> Tensor:
    """x - kappa dR^c/dx (B, N, d) of tokens (B, N, d) for subspaces (K, d, p).

    The default step is kappa = N eps^2 / p, the inverse of the gradient's Lipschitz constant for
    orthogonal subspaces: no longer one is safe for all tokens. In every head it then applies
    C_k (C_k + eps^2/p I)^-1, a Wiener filter that takes C_k for the signal and eps^2/p for the
    noise; what lies outside all subspaces stays. With eps^2 = p sigma^2 it equals the N sigma^2 of
    Tweedie's formula. Where subspaces overlap the sum over heads can overshoot.
    """
    if step is None:
        step = tokens.shape[-2] * eps_squared / bases.shape[-1]
    return tokens.double() - step * compression_gradient(tokens, bases, eps_squared=eps_squared)


def subspace_attention(tokens: Tensor, bases: Tensor, *, temperature: float) -> Tensor:
    """sum_k U_k softmax(w_k w_k^T / tau) w_k (B, N, d) of tokens (B, N, d): the paper's tied MSSA.

    With temperature sqrt(p) and K p = d this is `MSSA(..., output_projection="tied")` (tested).
    Written here for any K and p: that module, with its d x d matrix, cannot hold K p > d.
    The paper's step is (1 - beta) x + beta MSSA(x), beta = 1 for the step of `compression_step`
    with its first-order expansion and sum_k P_k = I; the published layers add MSSA(x) to x.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature must be a finite number above 0, not {temperature}")
    w = project(tokens, bases)
    return lift(F.scaled_dot_product_attention(w, w, w, scale=1 / temperature), bases)


def attention_limit(tokens: Tensor, mixture: Mixture, *, temperature: float) -> Tensor:
    """What `subspace_attention` of noisy tokens (B, N, d) tends to as N grows: (B, N, d).

    In head k the coordinates of a token from subspace l are N(0, V_kl) with
    V_kl = s^2 (U_k^T U_l)(U_l^T U_k) + sigma^2 I. Their mean under the tilt exp(<u, w>) with
    u = w_k / tau is sum_l q_l V_kl u, q_l proportional to exp(u^T V_kl u / 2).
    """
    U = mixture.bases
    eye = torch.eye(U.shape[-1], dtype=U.dtype)
    u = project(tokens, U) / temperature
    means = torch.empty_like(u)
    for k, basis in enumerate(U):  # head by head: all at once would hold K^2 p numbers a token
        cross = basis.mT @ U
        moments = mixture.variance * cross @ cross.mT + mixture.noise**2 * eye
        tilted = torch.einsum("lpq,bnq->bnlp", moments, u[:, k])
        weights = (torch.einsum("bnlp,bnp->bnl", tilted, u[:, k]) / 2).softmax(dim=-1)
        means[:, k] = torch.einsum("bnl,bnlp->bnp", weights, tilted)
    return lift(means, U)


def matched_temperature(mixture: Mixture) -> float:
    """(s^2 + sigma^2)^2 / s^2: where an open gate of MSSA shrinks exactly as E[z | x] does.

    For orthogonal subspaces and many tokens an open head multiplies w_k by (s^2 + sigma^2) / tau,
    and the exact denoiser by s^2 / (s^2 + sigma^2). A token's own gate then stands at
    exp(p s^6 / (2 (s^2 + sigma^2)^3)) against K - 1: at low noise it opens when p / 2 > log(K - 1).
    Tokens of squared length d with K p = d have s^2 = K, beside the published temperature sqrt(p).
    """
    return (mixture.variance + mixture.noise**2) ** 2 / mixture.variance
