"""The paper's two operations, MSSA and ISTA, and the encoder and decoder layers made of them.

Shapes: B images, N tokens (class token first), d token width, K heads (subspaces), p = d / K.
Tokens are rows: Z is (B, N, d), and `F.linear(x, D)` is the paper's D x for a token x.
Source: "Masked Completion via Structured Diffusion with White-Box Transformers" (ICLR 2024,
arXiv 2404.02446); docs/model.md lists every equation with its file and line.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crate_mae.models.config import OutputProjection

Side = Literal["encoder", "decoder"]


class Attention(nn.Module):
    """What a layer compresses tokens with: an operator on normalised tokens that a layer is given.

    A subclass has heads with coordinates of their own, and gives the direction to move in.
    """

    num_heads: int
    """K."""
    tied: bool
    """Whether the output map is the transpose of U."""
    subspaces: nn.Linear
    """U, the subspaces U_k side by side: w = x U."""
    output: nn.Linear | None
    """W, the learned output map; None where there is none."""

    def project(self, x: Tensor) -> Tensor:
        """The coordinates w_k of tokens x (B, N, d) in every head: (B, K, N, p)."""
        raise NotImplementedError

    def attention(self, x: Tensor) -> Tensor:
        """How much each token attends to each other one, for tokens x (B, N, d): (B, K, N, N)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The compression direction for tokens x (B, N, d): (B, N, d)."""
        raise NotImplementedError


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

    @property
    def sparse_step(self) -> "SparseStep | None":
        """The operator itself: it has codes to be measured."""
        return self

    def codes(self, x: Tensor) -> Tensor:
        """Sparse codes >= 0 of tokens x (..., d): (..., atoms)."""
        raise NotImplementedError


class MSSA(Attention):
    """Multi-head subspace self-attention: one approximate gradient step on the coding rate R^c.

        MSSA(x) = W( concat_k softmax(w_k w_k^T / sqrt(p)) w_k ),    w_k = x U_k

    Query, key and value are the same projection, so a head needs one matrix where a transformer
    has three. `output_projection="free"` learns W with a bias (published code; with a single head
    there is no W), "tied" uses the transpose of U (paper, up to the scale p / (N eps^2)).
    """

    def __init__(self, *, dim: int, num_heads: int, output_projection: OutputProjection) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.tied = output_projection == "tied"
        self.subspaces = nn.Linear(dim, dim, bias=False)  # U
        has_output = not self.tied and num_heads > 1
        self.output = nn.Linear(dim, dim) if has_output else None  # W
        for linear in (self.subspaces, self.output):
            if linear is not None:
                init_linear(linear)

    def project(self, x: Tensor) -> Tensor:
        """The coordinates w_k of tokens x (B, N, d) in every subspace: (B, K, N, p)."""
        w: Tensor = self.subspaces(x)
        return w.view(*w.shape[:2], self.num_heads, -1).transpose(1, 2)

    def attention(self, x: Tensor) -> Tensor:
        """The weights softmax(w_k w_k^T / sqrt(p)) for tokens x (B, N, d): (B, K, N, N)."""
        w = self.project(x)
        return (w @ w.mT / math.sqrt(w.shape[-1])).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """The compression direction for tokens x (B, N, d): (B, N, d). No N x N tensor is made."""
        return self.recombine(self.attend(self.project(x)).transpose(1, 2).flatten(-2))

    def attend(self, w: Tensor) -> Tensor:
        """What the tokens' coordinates w (B, K, N, p) become in each subspace: (B, K, N, p)."""
        return attend(w)

    def recombine(self, tokens: Tensor) -> Tensor:
        """The direction (B, N, d) that the subspaces' coordinates side by side (B, N, d) mean."""
        if self.tied:
            return F.linear(tokens, self.subspaces.weight.mT)
        return tokens if self.output is None else self.output(tokens)


def attend(w: Tensor) -> Tensor:
    """softmax(w w^T / sqrt(p)) w for subspace coordinates w (B, K, N, p): (B, K, N, p).

    Half precision is widened on CPUs, where the fused kernel's backward pass is slower in it.
    """
    if w.device.type != "cpu" or w.dtype not in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(w, w, w)
    with torch.autocast("cpu", enabled=False):
        wide = w.float()
        return F.scaled_dot_product_attention(wide, wide, wide).to(w.dtype)


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
        elif _is_recorded() or x.numel() // x.shape[-1] > x.shape[-1]:
            gradient_step = x @ self.folded_map()
        else:
            residual = x - F.linear(x, self.dictionary)
            gradient_step = x + self.step_size * F.linear(residual, self.dictionary.mT)
        # In place: no backward pass looks at the values before.
        return gradient_step.sub_(self.step_size * self.sparsity).relu_()

    def folded_map(self) -> Tensor:
        """M = I + eta (D - D^T D) in the precision of D: (d, d)."""
        with torch.autocast(self.dictionary.device.type, enabled=False):
            if torch.compiler.is_compiling() or torch.jit.is_tracing():  # they differentiate it
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


def _is_recorded() -> bool:
    """Whether the computation is written down to be run on other numbers of tokens."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


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


class EncoderLayer(nn.Module):
    """One step of sparse rate reduction: compress toward the subspaces, then sparsify.

    h  = z + MSSA(LN1(z))        compress
    z' = ISTA(LN2(h))            sparsify (its skip starts at LN2(h), not at h)

    The layer is given its two operators. Where the sparse step has `skip` set (not of the paper),
    the second line is z' = h + step(LN2(h)).

    `keep` (B,) multiplies the MSSA step of each image: stochastic depth, where 0 leaves the step
    out. The published sparse step has no skip around it that could stand in for it, so it always
    runs; so do all others.
    """

    side: ClassVar[Side] = "encoder"
    half_steps: ClassVar[tuple[str, str]] = ("compress", "sparsify")
    """Its half steps, methods of the layer, in the order of computation."""
    attention_step: ClassVar[str] = "compress"
    """The one of them that attends."""

    def __init__(self, *, dim: int, mssa: Attention, ista: SparseStep) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.mssa = mssa
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.ista = ista

    @property
    def mssa_norm(self) -> nn.LayerNorm:
        """The norm in front of MSSA."""
        return self.norm1

    @property
    def sparse_step(self) -> SparseStep | None:
        """The operator whose codes can be measured, in the half step that does not attend."""
        return self.ista.sparse_step

    @property
    def sparse_norm(self) -> nn.LayerNorm:
        """The norm in front of that operator."""
        return self.norm2

    @property
    def dictionary(self) -> Tensor:
        """D: (d, atoms), an atom a column."""
        return self.ista.dictionary

    def compress(self, z: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens h moved toward the subspaces U_k: (B, N, d) to (B, N, d)."""
        step: Tensor = self.mssa(self.norm1(z))
        return z + (step if keep is None else keep.to(step.dtype).view(-1, 1, 1) * step)

    def sparsify(self, h: Tensor) -> Tensor:
        """Tokens z' made of sparse codes of tokens h in D: (B, N, d) to (B, N, d).

        They are the codes themselves, all >= 0, in the published layer.
        """
        step: Tensor = self.ista(self.norm2(h))
        return h + step if self.ista.skip else step

    def codes(self, h: Tensor) -> Tensor:
        """Sparse codes >= 0 of tokens h (B, N, d) in the dictionary D: (B, N, atoms)."""
        return self.ista.codes(self.norm2(h))

    def forward(self, z: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens after both half steps: (B, N, d) to (B, N, d)."""
        return self.sparsify(self.compress(z, keep))


class DecoderLayer(nn.Module):
    """The encoder's two operations undone, in the other order and with the other sign.

    y  = LN1(z) A^T              expand (partly inverts ISTA)
    z' = y - MSSA(LN2(y))        decompress

    The layer is given its two operators. A sparse step may stand in the place of A (not of the
    paper): then the first line is y = z + step(LN1(z)), which takes sparse steps and undoes none.
    """

    side: ClassVar[Side] = "decoder"
    half_steps: ClassVar[tuple[str, str]] = ("expand", "decompress")
    """Its half steps, methods of the layer, in the order of computation."""
    attention_step: ClassVar[str] = "decompress"
    """The one of them that attends."""

    def __init__(self, *, dim: int, synthesis: Synthesis | SparseStep, mssa: Attention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.synthesis = synthesis
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mssa = mssa

    @property
    def mssa_norm(self) -> nn.LayerNorm:
        """The norm in front of MSSA."""
        return self.norm2

    @property
    def sparse_step(self) -> SparseStep | None:
        """The operator whose codes can be measured, in the half step that does not attend.

        None for the published layer, whose A is a linear map.
        """
        return self.synthesis.sparse_step

    @property
    def sparse_norm(self) -> nn.LayerNorm:
        """The norm in front of that operator."""
        return self.norm1

    @property
    def dictionary(self) -> Tensor:
        """The matrix A that synthesises tokens: (d, atoms), an atom a column."""
        return self.synthesis.dictionary

    def expand(self, z: Tensor) -> Tensor:
        """Tokens y synthesised from tokens z: (B, N, d) to (B, N, d)."""
        step: Tensor = self.synthesis(self.norm1(z))
        return z + step if self.synthesis.skip else step

    def decompress(self, y: Tensor) -> Tensor:
        """Tokens moved away from the subspaces: (B, N, d) to (B, N, d)."""
        z: Tensor = y - self.mssa(self.norm2(y))
        return z

    def forward(self, z: Tensor) -> Tensor:
        """Tokens after both half steps: (B, N, d) to (B, N, d)."""
        return self.decompress(self.expand(z))


Layer = EncoderLayer | DecoderLayer


def init_linear(linear: nn.Linear) -> None:
    """Set Xavier uniform weights and a zero bias, the published initial values."""
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


LayerT = TypeVar("LayerT", bound=nn.Module)


class Stack(nn.ModuleList, Generic[LayerT]):
    """A ModuleList whose layers keep their type, and which can trade time for memory.

    With `recompute` set, `run` keeps only what enters a layer and computes the layer once more in
    the backward pass: the numbers stay the same.
    """

    recompute: bool = False

    def run(self, layer: LayerT, *tensors: Tensor | None) -> Tensor:
        """What a layer of this stack makes of tensors."""
        if self.recompute and torch.is_grad_enabled():
            # Nothing in a layer is random: there is no generator to put back.
            again: Tensor = checkpoint(
                layer, *tensors, use_reentrant=False, preserve_rng_state=False
            )
            return again
        output: Tensor = layer(*tensors)
        return output

    def __iter__(self) -> Iterator[LayerT]:
        return cast("Iterator[LayerT]", super().__iter__())
