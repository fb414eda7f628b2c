"""What was learned, read off the weights: subspaces, dictionaries, output maps.

Float64 inside and out. Shapes: d token width, K subspaces U_k (d, p), p = d / K, D and A (d, d).
"""

import math

import torch
from torch import Tensor

from crate_mae.models.mssa import Attention


def subspace_bases(mssa: Attention) -> Tensor:
    """The matrices U_k of an MSSA, with w_k = x U_k: (K, d, p) float64."""
    weight: Tensor = mssa.subspaces.weight.detach().double()  # (d, d): rows U_1^T, U_2^T, ...
    return weight.view(mssa.num_heads, -1, weight.shape[1]).transpose(1, 2)


def subspace_offsets(mssa: Attention) -> Tensor | None:
    """What a bias of U adds to the coordinates w_k: (1, K, 1, p) float64; None without a bias."""
    bias = mssa.subspaces.bias
    return None if bias is None else bias.detach().double().view(1, mssa.num_heads, 1, -1)


def orthonormality_error(U: Tensor) -> Tensor:
    """|U_k^T U_k - I|_F / sqrt(p) for each U_k (K, d, p): (K,); 0 for orthonormal columns."""
    gram = U.mT @ U
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    gap: Tensor = torch.linalg.matrix_norm(gram - identity)
    return gap / math.sqrt(gram.shape[-1])


def orthogonality_error(U: Tensor) -> Tensor:
    """The same after each U_k is scaled so that its columns have mean squared length 1: (K,).

    Tells columns that are not orthogonal from columns that are only longer or shorter than 1.
    0 for orthogonal columns of one length; 0 as well for a zero matrix.
    """
    scale = U.square().sum(dim=(-2, -1), keepdim=True) / U.shape[-1]
    zero = (scale == 0).flatten()
    errors = orthonormality_error(U / torch.where(scale > 0, scale, 1.0).sqrt())
    return torch.where(zero, 0.0, errors)


def principal_cosines(U: Tensor) -> Tensor:
    """Cosines of the principal angles between the spans of all pairs of U_k: (K, K, p), falling.

    1 where two spans share a direction, 0 where they are orthogonal. Source: Bjorck and Golub,
    "Numerical methods for computing angles between linear subspaces" (1973).
    """
    Q = torch.linalg.qr(U).Q
    overlaps = torch.einsum("idp,jdq->ijpq", Q, Q)
    cosines: Tensor = torch.linalg.svdvals(overlaps)
    return cosines.clamp(0, 1)


def subspace_overlap(U: Tensor) -> Tensor:
    """Mean squared cosine of the principal angles between all pairs of spans: (K, K).

    |Q_i^T Q_j|_F^2 / p: the share of one span's directions that lies in the other. 1 on the
    diagonal, p / d on average for random spans, 0 for orthogonal ones.
    """
    return principal_cosines(U).square().mean(dim=-1)


def coherence(dictionary: Tensor) -> tuple[float, float]:
    """(largest, root mean square) |cosine| between two different columns of D (d, n d).

    Columns are the atoms, for z is coded as D z; 0 for orthogonal atoms. For random atoms the
    second is about 1 / sqrt(d). Zero atoms count as orthogonal to all. Memory for n d x d cosines.
    """
    D = dictionary.double()
    lengths = D.norm(dim=0)
    atoms = D / torch.where(lengths > 0, lengths, 1.0)
    largest = total = torch.zeros((), dtype=D.dtype, device=D.device)
    width, count = D.shape
    for start in range(0, count, width):
        part = atoms[:, start : start + width]
        cosines = part.T @ atoms
        cosines.diagonal(start).zero_()
        largest = torch.maximum(largest, cosines.abs().max())
        total = total + cosines.square_().sum()
    return float(largest), float((total / max(count * (count - 1), 1)).sqrt())


def spectral_norm(matrix: Tensor) -> float:
    """The largest singular value of a matrix."""
    return float(torch.linalg.matrix_norm(matrix.double(), ord=2))


def tied_distance(mssa: Attention) -> tuple[float, float]:
    """(cosine, distance) between the output map W of an MSSA and the paper's, U transposed.

    The cosine of the two as long vectors, and |W - c U^T|_F / |W|_F with the best factor c, which
    is 0 for a tied map and 1 for an unrelated one. The bias is left out. A single head has no W:
    then the identity stands for it.
    """
    tied = mssa.subspaces.weight.detach().double().T
    if mssa.tied:
        return 1.0, 0.0
    if mssa.output is None:
        W = torch.eye(len(tied), dtype=tied.dtype, device=tied.device)
    else:
        W = mssa.output.weight.detach().double()
    factor = (W * tied).sum() / tied.square().sum().clamp(min=torch.finfo(W.dtype).tiny)
    size = float(W.norm())
    distance = float((W - factor * tied).norm()) / size if size > 0 else 1.0
    return matrix_cosine(W, tied), distance


def matrix_cosine(first: Tensor, second: Tensor) -> float:
    """The cosine of two matrices as long vectors; 0 when one of them is zero."""
    a, b = first.double(), second.double()
    sizes = float(a.norm() * b.norm())
    return float((a * b).sum()) / sizes if sizes > 0 else 0.0
