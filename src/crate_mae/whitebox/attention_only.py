"""Layers of attention alone, where the truth is known: signal and noise on known subspaces.

Float64 inside and out. Shapes: B images, N tokens (rows), d token width, K subspaces U_k (K, d, p)
with orthonormal columns. Source: "Attention-Only Transformers via Unrolled Subspace Denoising"
(ICML 2025, arXiv 2506.03790).
"""

import torch
from torch import Tensor

from crate_mae.whitebox.denoising import lift, project


def thresholded_step(tokens: Tensor, bases: Tensor, *, step: float, threshold: float) -> Tensor:
    """z + eta sum_k phi(w_k w_k^T) w_k U_k^T (B, N, d) of tokens (B, N, d), w_k = z U_k.

    phi is tau where a softmax over the last index lies above tau and 0 elsewhere: the layer that
    the paper's theorem is of. There is no division by sqrt(p). With tau in (1/2, 1) a token attends
    to one token at most, itself as a rule. Raises ValueError for a tau outside 0 to 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"the threshold tau must lie between 0 and 1, not {threshold}")
    z = tokens.double()
    w = project(z, bases)
    weights = threshold * ((w @ w.mT).softmax(dim=-1) > threshold).double()
    return z + step * lift(weights @ w, bases)


def signal_to_noise(tokens: Tensor, labels: Tensor, bases: Tensor) -> Tensor:
    """|U_k U_k^T Z_k|_F / |(I - U_k U_k^T) Z_k|_F (K,) of tokens (N, d) with subspaces (N,).

    Z_k are the tokens whose label is k: how far they lie in their own subspace, over how far they
    lie outside. By the theorem every `thresholded_step` multiplies it by exactly 1 + eta tau, with
    high probability and as long as noise stays below the threshold; that ends after a few layers,
    as the signal grows with it.
    """
    z, found = tokens.double(), []
    for k, basis in enumerate(bases.double()):
        own = z[labels == k]
        inside = own @ basis @ basis.mT
        found.append(inside.norm() / (own - inside).norm())
    return torch.stack(found)
