"""The walk through layers, half step by half step: what each took in and gave out.

Everything that looks inside a layer goes this way: attention, the search for the first number that
is not finite, the white-box analysis. Nothing is computed before it is asked for: `after` of a half
step is computed when it is read, or when the walk goes on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from crate_mae.models.layers import Layer, Side
from crate_mae.models.mssa import Attention


@dataclass(frozen=True, kw_only=True, eq=False)
class HalfStep:
    """One half step on a batch of tokens (B, N, d)."""

    index: int
    """Of the layer, from 0."""
    layer: Layer
    name: str
    """The method of the layer: "compress", "sparsify", "expand" or "decompress"."""
    before: Tensor

    @cached_property
    def after(self) -> Tensor:
        """The tokens (B, N, d) that it gives out."""
        tokens: Tensor = getattr(self.layer, self.name)(self.before)
        return tokens

    @property
    def side(self) -> Side:
        """Whether the layer is of the encoder or of the decoder."""
        return self.layer.side

    @property
    def is_first(self) -> bool:
        """Whether the tokens before it are those that enter the layer."""
        return self.name == self.layer.half_steps[0]

    @property
    def attends(self) -> bool:
        """Whether MSSA is the operator of this half step."""
        return self.name == self.layer.attention_step

    @property
    def mssa(self) -> Attention:
        """The layer's MSSA, whose subspaces both of its half steps are measured against."""
        return self.layer.mssa

    @property
    def mssa_norm(self) -> nn.LayerNorm:
        """The norm in front of that MSSA: LN1 in the encoder, LN2 in the decoder."""
        return self.layer.mssa_norm

    def attention(self) -> Tensor:
        """The attention (B, K, N, N) of this half step, which must attend."""
        return self.mssa.attention(self.mssa_norm(self.before))

    def membership(self) -> Tensor:
        """The memberships (B, K, N) of tokens in heads of this half step, which must attend."""
        return self.mssa.membership(self.mssa_norm(self.before))

    def coordinates(self) -> Tensor:
        """The subspace coordinates (B, K, N, p) of this half step, which must attend."""
        return self.mssa.project(self.mssa_norm(self.before))


def half_steps(layers: Iterable[Layer], tokens: Tensor) -> Iterator[HalfStep]:
    """The half steps of layers in the order of computation, for tokens (B, N, d)."""
    for index, layer in enumerate(layers):
        for name in layer.half_steps:
            step = HalfStep(index=index, layer=layer, name=name, before=tokens)
            yield step
            tokens = step.after
