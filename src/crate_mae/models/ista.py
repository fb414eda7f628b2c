"""Sparse steps: the interface, the published ISTA, and the decoder's linear map in its place.

Shapes: d token width. Tokens are rows, and `F.linear(x, D)` is the paper's D x for a token x.
Source: "Masked Completion via Structured Diffusion with White-Box Transformers" (ICLR 2024,
arXiv 2404.02446); docs/model.md lists every equation with its file and line.
"""

import math
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.constraints import limit_norm


class SparseStep(nn.Module):
    """What a layer sparsifies tokens with: an operator on normalised tokens that a layer is given.

    A subclass says what codes are sparse, in which dictionary, and which tokens they stand for.
    """

    skip: ClassVar[bool]
    """Whether the tokens that entered the half step are added to what the operator returns."""
    returns_codes: ClassVar[bool]
    """Whether it returns the codes themselves, and not the tokens that they stand for."""
    starts_at_zero: ClassVar[bool]
    """Whether its iteration starts from the code 0, and not from the tokens."""
    step_size: float
    """eta."""
    sparsity: float
    """lambda."""
    dictionary: nn.Parameter
    """D, an atom a column: (d, atoms)."""
    returning: nn.Parameter | None
    """D1 (d, atoms), where codes return to tokens by another matrix than D; None elsewhere."""
    bounded: bool = False
    """Whether training keeps eta |D|^2 up to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("returning", None)

    def constrain(self, *, frozen: bool = False) -> None:
        """Put D back to where training is to keep it: to the nearest one of the bound, if any.

        One that does not train is left alone, unless `frozen` is set.
        """
        D = self.dictionary
        if self.bounded and self.step_size > 0 and (frozen or D.requires_grad):
            limit_norm(D, 1 / math.sqrt(self.step_size))

    @property
    def sparse_step(self) -> "SparseStep | None":
        """The operator itself: it has codes to be measured."""
        return self

    def codes(self, x: Tensor) -> Tensor:
        """Sparse codes >= 0 of tokens x (..., d): (..., atoms)."""
        raise NotImplementedError


class ISTA(SparseStep):
    """One proximal gradient step on a non-negative LASSO with dictionary D.

        ISTA(x) = ReLU( x + eta (x - x D^T) D - eta lambda )

    Two equal ways to compute it, chosen by the number of tokens T = B N. Folded, `x M` with
    `M = I + eta (D - D^T D)`, takes one product per token and d^3 to make M; two products,
    `r = x - x D^T` and `x + eta r D`, need no M. Folded is cheaper once T > d.

    Where neither D nor M needs a gradient on a CPU, M is kept between calls together with a copy
    of the D and eta it was made from, and used only after comparing that copy with D value by value
    (d^2 of work beside T d^2), so no load, step, move, copy or write through `.data` can make it
    stale. On accelerators that comparison would stall the device's queue for longer than making
    M takes, so M is made anew there.
    """

    skip, returns_codes, starts_at_zero = False, True, False

    def __init__(self, *, dim: int, step_size: float, sparsity: float) -> None:
        super().__init__()
        self.step_size = step_size
        self.sparsity = sparsity
        self.dictionary = nn.Parameter(torch.empty(dim, dim))  # D
        nn.init.kaiming_uniform_(self.dictionary)
        self._kept: tuple[Tensor, float, Tensor] | None = None  # (copy of D, eta, M)

    def codes(self, x: Tensor) -> Tensor:
        """Sparse non-negative codes of tokens x (..., d): (..., d); what the step returns."""
        codes: Tensor = self(x)
        return codes

    def forward(self, x: Tensor) -> Tensor:
        """Sparse non-negative codes of tokens x (..., d): (..., d)."""
        kept = None if self.training else self._kept_map()
        if kept is not None:
            gradient_step = x @ kept
        elif is_recorded() or x.numel() // x.shape[-1] > x.shape[-1]:
            gradient_step = x @ self.folded_map()
        else:
            residual = x - F.linear(x, self.dictionary)
            gradient_step = x + self.step_size * F.linear(residual, self.dictionary.mT)
        # In place: no backward pass looks at the values before.
        return gradient_step.sub_(self.step_size * self.sparsity).relu_()

    def folded_map(self) -> Tensor:
        """M = I + eta (D - D^T D) in the precision of D: (d, d)."""
        with torch.autocast(self.dictionary.device.type, enabled=False):
            if torch.compiler.is_compiling() or tracing():  # they differentiate by themselves
                return _Folded.forward(self.dictionary, self.step_size)
            folded: Tensor = _Folded.apply(self.dictionary, self.step_size)
            return folded

    def _kept_map(self) -> Tensor | None:
        """M that needs no gradient, remembered for an unchanged D; None where it must not be."""
        D = self.dictionary
        needs_gradient = torch.is_grad_enabled() and D.requires_grad
        ordinary = type(D) is nn.Parameter and D.device.type == "cpu"
        if needs_gradient or not ordinary or torch.compiler.is_compiling():
            return None
        kept = self._kept
        if (
            kept is None
            or kept[0].dtype != D.dtype
            or kept[1] != self.step_size
            or not torch.equal(kept[0], D)
        ):
            # Not inference tensors, or a later call that differentiates in x could not use them.
            with torch.inference_mode(False), torch.no_grad():
                kept = (D.detach().clone(), self.step_size, self.folded_map())
            self._kept = kept
        return kept[2]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}


def is_recorded() -> bool:
    """Whether the computation is written down, to be run on other numbers of tokens."""
    return torch.compiler.is_exporting() or tracing()


def tracing() -> bool:
    """Whether torch.jit traces."""
    return bool(cast("Any", torch.jit).is_tracing())


class _Folded(torch.autograd.Function):
    """M = I + eta (D - D^T D), whose gradient takes one product where autograd would take two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(D: Tensor, step_size: float) -> Tensor:
        identity = torch.eye(D.shape[0], dtype=D.dtype, device=D.device)
        return identity + step_size * (D - D.mT @ D)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        D, ctx.step_size = inputs
        ctx.save_for_backward(D)
        ctx.save_for_forward(D)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (D,) = ctx.saved_tensors
        return ctx.step_size * (gradient - D @ (gradient + gradient.mT)), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (D,) = ctx.saved_tensors
        change: Tensor = ctx.step_size * (tangent - tangent.mT @ D - D.mT @ tangent)
        return change


class Synthesis(nn.Linear):
    """The published decoder's linear map A in the place of the inverse of ISTA: x A^T."""

    skip: ClassVar[bool] = False

    def __init__(self, *, dim: int) -> None:
        super().__init__(dim, dim, bias=False)  # A
        nn.init.kaiming_uniform_(self.weight)

    @property
    def dictionary(self) -> Tensor:
        """A, an atom a column: (d, d)."""
        return self.weight

    @property
    def sparse_step(self) -> SparseStep | None:
        """None: a linear map has no codes to be measured."""
        return None


class MirroredSynthesis(nn.Module):
    """The linear map of a decoder layer by the dictionary of its mirror: x D^T, with D not its own.

    What codes stand for in D is what the encoder's sparse step found them for. D is a parameter of
    the encoder alone: here it is neither listed, saved nor moved.
    """

    skip: ClassVar[bool] = False

    def __init__(self, mirror: SparseStep) -> None:
        super().__init__()
        object.__setattr__(self, "mirror", mirror)  # past nn.Module, which would list it

    @property
    def dictionary(self) -> Tensor:
        """D of the mirror, an atom a column: (d, d)."""
        mirror: SparseStep = self.__dict__["mirror"]
        return mirror.dictionary

    @property
    def sparse_step(self) -> SparseStep | None:
        """None: a linear map has no codes to be measured."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Tokens x D^T of codes x (..., d): (..., d)."""
        return F.linear(x, self.dictionary)
