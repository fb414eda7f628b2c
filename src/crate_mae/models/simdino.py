"""SimDINO: the head and the losses by which a student learns from a teacher that follows it.

Two views of an image should have the same features (compression), and the features of different
images should fill the space (expansion, a coding rate); nothing else keeps them from collapsing.
Source: SimDINO and SimDINOv2 (Wu et al., ICML 2025, arXiv 2502.10385), as their code computes it.
Shapes: V views of each of m images, the first two of them global; features of p values.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.coding_rate import (
    half_logdet,
    half_logdet_of_gram,
    largest_rate,
    rate_dtype,
)

GLOBAL_VIEWS = 2
"""Large crops of each image: the teacher sees these alone."""


class ProjectionHead(nn.Module):
    """Features for the losses, from tokens: an MLP, then division by the length.

    No prototypes, centring or temperature. `layers` linear maps with GELU between them.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: int = 2048,
        out: int = 256,
        layers: int = 3,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if min(width, hidden, out, layers) < 1:
            raise ValueError(
                "a head needs at least one layer and positive widths,"
                f" not {layers} layers of {width} -> {hidden} -> {out}"
            )
        self.normalise = normalise
        """Whether features get length 1."""
        widths = [width, *[hidden] * (layers - 1), out]
        maps: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            linear = nn.Linear(before, after)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            maps += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*maps[:-1])

    def forward(self, tokens: Tensor) -> Tensor:
        """Features (..., p) of tokens (..., d)."""
        features: Tensor = self.mlp(tokens)
        return F.normalize(features, dim=-1) if self.normalise else features


class SimDINOTerms(NamedTuple):
    """A loss and what it is made of, scalar tensors."""

    loss: Tensor
    """-coefficient x compression - expansion."""
    compression: Tensor
    """Mean agreement of a teacher's and a student's view: a cosine similarity, at most 1."""
    expansion: Tensor
    """gamma x the coding rate of the global views, at most `largest_expansion`."""


def simdino_loss(
    student: Tensor, teacher: Tensor, *, eps: float, expa_type: int = 1, coefficient: float = 1.0
) -> SimDINOTerms:
    """The loss of SimDINO of features (V, m, p) of a student and (2, m, p) of a teacher.

    `eps` is what the paper calls eps squared. Raises ValueError as `compression` and `expansion`.
    """
    agreed = compression(student, teacher)
    spread = expansion(expanded_features(student, teacher, expa_type=expa_type), eps=eps)
    return SimDINOTerms(-coefficient * agreed - spread, agreed, spread)


def simdinov2_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    eps: float,
    expa_type: int = 1,
    coefficient: float = 1.0,
    normalised: bool = True,
    same_crop: bool = False,
) -> SimDINOTerms:
    """The class-token loss of SimDINOv2, of features shaped as for `simdino_loss`.

    It takes dot products as they are; features that are not `normalised` are scaled to length 1
    first. With features of length 1 and without `same_crop` pairs it is `simdino_loss`.
    """
    if not normalised:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    agreed = compression(student, teacher, cosine=False, same_crop=same_crop)
    spread = expansion(expanded_features(student, teacher, expa_type=expa_type), eps=eps)
    return SimDINOTerms(-coefficient * agreed - spread, agreed, spread)


def compression(
    student: Tensor, teacher: Tensor, *, cosine: bool = True, same_crop: bool = False
) -> Tensor:
    """How far views agree (scalar): the mean over images of the products of pairs of views.

    Pairs are a teacher's global view and a student's view, of another crop unless `same_crop`; the
    sum over them is divided by 2 V - 2, the number of pairs of different crops. Cosine similarities
    or, without `cosine`, dot products. Computed in float32 or wider. The teacher gets no gradient.
    Raises ValueError for features of other shapes than (V, m, p) with V > 1 and (2, m, p).
    """
    pairs = _pairs(student, teacher, cosine=cosine)
    if not same_crop:
        pairs = pairs * (1 - torch.eye(*pairs.shape, dtype=pairs.dtype, device=pairs.device))
    return pairs.sum() / (GLOBAL_VIEWS * (len(student) - 1))


def global_compression(
    student: Tensor, teacher: Tensor, *, cosine: bool = True, same_crop: bool = False
) -> Tensor:
    """What global views of the student alone contribute: the sum over their pairs over 2."""
    return compression(student[:GLOBAL_VIEWS], teacher, cosine=cosine, same_crop=same_crop)


def _pairs(student: Tensor, teacher: Tensor, *, cosine: bool) -> Tensor:
    """Products (2, V) of each teacher's with each student's view, mean over images."""
    _check(student, teacher)
    wide, taught = _wide(student), _wide(teacher.detach())
    with torch.autocast(student.device.type, enabled=False):
        if cosine:
            wide, taught = F.normalize(wide, dim=-1), F.normalize(taught, dim=-1)
        return torch.einsum("gmp,vmp->gv", taught, wide) / student.shape[1]


def expanded_features(student: Tensor, teacher: Tensor, *, expa_type: int) -> Tensor:
    """The features (2, m, p) whose coding rate is raised.

    Type 0: the student's of the global views; 1: the mean of the student's and the teacher's, which
    halves the gradient. Raises ValueError for another type.
    """
    _check(student, teacher)
    if expa_type not in (0, 1):
        raise ValueError(f"expa_type must be 0 or 1, not {expa_type!r}")
    of_student = student[:GLOBAL_VIEWS]
    return of_student if expa_type == 0 else (of_student + teacher.detach()) / 2


def expansion(
    features: Tensor, *, eps: float, images: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """gamma x the mean coding rate in nats (scalar) of each view's features (2, m, p), uncentred.

    1/2 logdet(I + p / (n eps) F^T F), with gamma = (p + n) / (p n) and n = `images`: m, unless the
    features are some of a larger batch whose size the published code reckons with. Computed in
    `dtype` or wider, outside autocast.
    """
    m, p = features.shape[-2:]
    n = m if images is None else images
    with torch.autocast(features.device.type, enabled=False):
        wide = features.to(rate_dtype(features, dtype, eps))
        return _gamma(n, p) * half_logdet(wide, p / (n * eps)).mean()


def expansion_of_covariances(covariances: Tensor, *, images: int, eps: float) -> Tensor:
    """`expansion` of the features of so many images, from F^T F of each view (2, p, p)."""
    p = covariances.shape[-1]
    return _gamma(images, p) * half_logdet_of_gram(covariances, p / (images * eps)).mean()


def largest_expansion(m: int, p: int, *, eps: float, images: int | None = None) -> float:
    """The largest `expansion` that m features of p values and length 1 can have."""
    n = m if images is None else images
    return _gamma(n, p) * largest_rate(m, p, eps_squared=eps * n / m)


def patch_compression(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean cosine similarity (scalar) at masked patches, the patch term of SimDINOv2, negated.

    Features (B, L, p) of student and teacher, `mask` (B, L) True where the student saw no patch.
    The mean over an image's masked patches, then over all images; those without any count as 0.
    """
    with torch.autocast(student.device.type, enabled=False):
        alike = F.cosine_similarity(_wide(student), _wide(teacher.detach()), dim=-1)
    inside = mask.to(alike.dtype)
    weights = inside / inside.sum(dim=1, keepdim=True).clamp(min=1)
    return (alike * weights).sum() / len(mask)


def _gamma(n: int, p: int) -> float:
    return (p + n) / (p * n)


def _wide(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _check(student: Tensor, teacher: Tensor) -> None:
    good = student.ndim == 3 and len(student) > 1 and 0 not in student.shape
    if not good or teacher.shape != (GLOBAL_VIEWS, *student.shape[1:]):
        raise ValueError(
            "features must be (views, images, values) of at least 2 views, with 2 of the teacher,"
            f" not {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
