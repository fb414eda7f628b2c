"""Which operators the layers of a configuration are made of: the one place that chooses.

Layers know only how operators are joined. A variant is a class with an operator's interface
(`Attention`, `SparseStep`), and a line here or an `Operators` that `CrateMAE` is given.
"""

from collections.abc import Callable
from dataclasses import dataclass

from crate_mae.models.config import ModelConfig
from crate_mae.models.layers import (
    ISTA,
    MSSA,
    Attention,
    DecoderLayer,
    EncoderLayer,
    SparseStep,
    Stack,
    Synthesis,
)
from crate_mae.models.overcomplete import OvercompleteISTA


@dataclass(frozen=True, kw_only=True)
class Operators:
    """How each operator is made, from the configuration; attention also from its number of heads.

    Initial values are drawn in the order of the half steps.
    """

    attention: Callable[[ModelConfig, int], Attention]
    """Of encoder (compress) and decoder (decompress)."""
    sparse: Callable[[ModelConfig], SparseStep]
    """Of the encoder: sparsify."""
    synthesis: Callable[[ModelConfig], Synthesis | SparseStep]
    """Of the decoder: expand."""

    def encoder_layers(self, config: ModelConfig) -> Stack[EncoderLayer]:
        """The encoder's layers, with fresh weights."""
        return Stack(
            EncoderLayer(
                dim=config.dim,
                mssa=self.attention(config, config.num_heads),
                ista=self.sparse(config),
            )
            for _ in range(config.depth)
        )

    def decoder_layers(self, config: ModelConfig) -> Stack[DecoderLayer]:
        """The decoder's layers, with fresh weights."""
        return Stack(
            DecoderLayer(
                dim=config.dim,
                synthesis=self.synthesis(config),
                mssa=self.attention(config, config.decoder_num_heads),
            )
            for _ in range(config.decoder_depth)
        )


def operators_of(config: ModelConfig) -> Operators:
    """The operators that a configuration names: published ones, or overcomplete dictionaries."""
    return PUBLISHED if config.overcomplete == 1 else OVERCOMPLETE


def _mssa(config: ModelConfig, num_heads: int) -> MSSA:
    return MSSA(dim=config.dim, num_heads=num_heads, output_projection=config.output_projection)


def _ista(config: ModelConfig) -> ISTA:
    return ISTA(dim=config.dim, step_size=config.step_size, sparsity=config.sparsity)


def _overcomplete(config: ModelConfig) -> OvercompleteISTA:
    return OvercompleteISTA(
        dim=config.dim,
        overcomplete=config.overcomplete,
        step_size=config.step_size,
        sparsity=config.sparsity,
    )


def _synthesis(config: ModelConfig) -> Synthesis:
    return Synthesis(dim=config.dim)


PUBLISHED = Operators(attention=_mssa, sparse=_ista, synthesis=_synthesis)
"""The paper's layers."""
OVERCOMPLETE = Operators(attention=_mssa, sparse=_overcomplete, synthesis=_overcomplete)
"""More atoms than dimensions, not of the paper: `config.overcomplete` of them a dimension."""
