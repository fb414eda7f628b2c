"""The encoder and decoder layers: how two operators are joined, and how layers are stacked.

Shapes: B images, N tokens (class token first), d token width. Tokens are rows: Z is (B, N, d).
Source: "Masked Completion via Structured Diffusion with White-Box Transformers" (ICLR 2024,
arXiv 2404.02446); docs/model.md lists every equation with its file and line.
"""

from collections.abc import Iterator
from typing import ClassVar, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crate_mae.models.config import AttentionSkip
from crate_mae.models.ista import MirroredSynthesis, SparseStep, Synthesis
from crate_mae.models.mssa import Attention

Side = Literal["encoder", "decoder"]


class AttendingLayer(nn.Module):
    """What layers of both sides share: an attention operator, its norm, its skip and its step."""

    mssa: Attention

    def __init__(self, *, skip: AttentionSkip, step: float | None) -> None:
        super().__init__()
        self.skip_from_norm = skip == "normalised"
        self.step = step

    def attended(self, tokens: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(where the skip starts, what attention adds to it) for tokens and their norm x (B, N, d).

        Without a step size the operator's output itself is added. With a step size c it is
        c (output - x), the step of the derivation: (1 - c) x + c output where the skip starts at x.
        An operator that returns a direction is multiplied by c alone.
        """
        output: Tensor = self.mssa(x)
        if self.step is not None:
            output = self.step * (output if self.mssa.returns_direction else output - x)
        return (x if self.skip_from_norm else tokens), output


class EncoderLayer(AttendingLayer):
    """One step of sparse rate reduction: compress toward the subspaces, then sparsify.

    h  = z + MSSA(LN1(z))        compress
    z' = ISTA(LN2(h))            sparsify (its skip starts at LN2(h), not at h)

    The layer is given its two operators. Where the sparse step has `skip` set (not of the paper),
    the second line is z' = h + step(LN2(h)); where there is none (attention alone), z' = h.
    `skip="normalised"` starts the first line at LN1(z), and `step` gives it a step size.

    `keep` (B,) multiplies the MSSA step of each image: stochastic depth, where 0 leaves the step
    out. The published sparse step has no skip around it that could stand in for it, so it always
    runs; so do all others.
    """

    side: ClassVar[Side] = "encoder"
    half_steps: ClassVar[tuple[str, str]] = ("compress", "sparsify")
    """Its half steps, methods of the layer, in the order of computation."""
    attention_step: ClassVar[str] = "compress"
    """The one of them that attends."""

    def __init__(
        self,
        *,
        dim: int,
        mssa: Attention,
        ista: SparseStep | None,
        skip: AttentionSkip = "tokens",
        step: float | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(skip=skip, step=step)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.mssa = mssa
        self.sparsifies = ista is not None
        """Whether there is a sparse step; `norm2` and `ista` are there with it alone."""
        self.norm2 = cast("nn.LayerNorm", nn.LayerNorm(dim, eps=eps) if ista is not None else None)
        self.ista = cast("SparseStep", ista)

    @property
    def mssa_norm(self) -> nn.LayerNorm:
        """The norm in front of MSSA."""
        return self.norm1

    @property
    def sparse_step(self) -> SparseStep | None:
        """The operator whose codes can be measured, in the half step that does not attend."""
        return self.ista.sparse_step if self.sparsifies else None

    @property
    def sparse_norm(self) -> nn.LayerNorm:
        """The norm in front of that operator, which there must be."""
        return self.norm2

    @property
    def dictionary(self) -> Tensor:
        """D: (d, atoms), an atom a column; of a layer that `sparsifies`."""
        return self.ista.dictionary

    def compress(self, z: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens h moved toward the subspaces U_k: (B, N, d) to (B, N, d)."""
        start, step = self.attended(z, self.norm1(z))
        return start + (step if keep is None else keep.to(step.dtype).view(-1, 1, 1) * step)

    def sparsify(self, h: Tensor) -> Tensor:
        """Tokens z' made of sparse codes of tokens h in D: (B, N, d) to (B, N, d).

        They are the codes themselves, all >= 0, in the published layer, and h where the layer has
        no sparse step.
        """
        if not self.sparsifies:
            return h
        step: Tensor = self.ista(self.norm2(h))
        return h + step if self.ista.skip else step

    def codes(self, h: Tensor) -> Tensor:
        """Sparse codes >= 0 of tokens h (B, N, d) in the dictionary D: (B, N, atoms).

        Raises ValueError where the layer has no sparse step.
        """
        if not self.sparsifies:
            raise ValueError("the layers of this model have no sparse step, so there are no codes")
        return self.ista.codes(self.norm2(h))

    def forward(self, z: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens after both half steps: (B, N, d) to (B, N, d)."""
        return self.sparsify(self.compress(z, keep))


class DecoderLayer(AttendingLayer):
    """The encoder's two operations undone, in the other order and with the other sign.

    y  = LN1(z) A^T              expand (partly inverts ISTA)
    z' = y - MSSA(LN2(y))        decompress

    The layer is given its two operators. A sparse step may stand in the place of A (not of the
    paper): then the first line is y = z + step(LN1(z)), which takes sparse steps and undoes none;
    where there is none, y = z. `skip` and `step` are those of the encoder, with the other sign.

    With `mirrored`, `mssa` belongs to an encoder layer: its parameters are listed, saved and moved
    there alone.
    """

    side: ClassVar[Side] = "decoder"
    half_steps: ClassVar[tuple[str, str]] = ("expand", "decompress")
    """Its half steps, methods of the layer, in the order of computation."""
    attention_step: ClassVar[str] = "decompress"
    """The one of them that attends."""

    def __init__(
        self,
        *,
        dim: int,
        synthesis: Synthesis | MirroredSynthesis | SparseStep | None,
        mssa: Attention,
        mirrored: bool = False,
        skip: AttentionSkip = "tokens",
        step: float | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(skip=skip, step=step)
        self.sparsifies = synthesis is not None
        """Whether there is an A or a sparse step; `norm1` and `synthesis` come with it alone."""
        self.norm1 = cast("nn.LayerNorm", nn.LayerNorm(dim, eps=eps) if self.sparsifies else None)
        self.synthesis = cast("Synthesis | MirroredSynthesis | SparseStep", synthesis)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        if mirrored:
            object.__setattr__(self, "mssa", mssa)  # past nn.Module, which would list it
        else:
            self.mssa = mssa

    @property
    def mssa_norm(self) -> nn.LayerNorm:
        """The norm in front of MSSA."""
        return self.norm2

    @property
    def sparse_step(self) -> SparseStep | None:
        """The operator whose codes can be measured, in the half step that does not attend.

        None for the published layer, whose A is a linear map, and where there is none.
        """
        return self.synthesis.sparse_step if self.sparsifies else None

    @property
    def sparse_norm(self) -> nn.LayerNorm:
        """The norm in front of that operator, which there must be."""
        return self.norm1

    @property
    def dictionary(self) -> Tensor:
        """The matrix A that synthesises tokens: (d, atoms), an atom a column, if there is one."""
        return self.synthesis.dictionary

    def expand(self, z: Tensor) -> Tensor:
        """Tokens y synthesised from tokens z: (B, N, d) to (B, N, d)."""
        if not self.sparsifies:
            return z
        step: Tensor = self.synthesis(self.norm1(z))
        return z + step if self.synthesis.skip else step

    def decompress(self, y: Tensor) -> Tensor:
        """Tokens moved away from the subspaces: (B, N, d) to (B, N, d)."""
        start, step = self.attended(y, self.norm2(y))
        return start - step

    def forward(self, z: Tensor) -> Tensor:
        """Tokens after both half steps: (B, N, d) to (B, N, d)."""
        return self.decompress(self.expand(z))


Layer = EncoderLayer | DecoderLayer


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
