"""Which operators the layers of a configuration are made of: the one place that chooses.

Layers know only how operators are joined. A variant is a class with an operator's interface
(`Attention`, `SparseStep`), and a line here or an `Operators` that `CrateMAE` is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crate_mae.models.config import AttentionKind, ModelConfig, SparseStepKind
from crate_mae.models.exact import ExactCompression
from crate_mae.models.initial_values import INITIAL_VALUES
from crate_mae.models.ista import ISTA, MirroredSynthesis, SparseStep, Synthesis
from crate_mae.models.layers import DecoderLayer, EncoderLayer, Stack
from crate_mae.models.mssa import MSSA, Attention
from crate_mae.models.overcomplete import DecoupledISTA, OvercompleteISTA
from crate_mae.models.tssa import TSSA


@dataclass(frozen=True, kw_only=True)
class Operators:
    """How each operator is made, from the configuration; attention also from its number of heads.

    Initial values are drawn in the order of the half steps.
    """

    attention: Callable[[ModelConfig, int], Attention]
    """Of encoder (compress) and decoder (decompress)."""
    sparse: Callable[[ModelConfig], SparseStep | None]
    """Of the encoder: sparsify; None where attention is alone."""
    synthesis: Callable[[ModelConfig], Synthesis | SparseStep | None]
    """Of the decoder: expand; None where attention is alone."""

    def encoder_layers(self, config: ModelConfig) -> Stack[EncoderLayer]:
        """The encoder's layers, with fresh weights."""
        return Stack(
            EncoderLayer(
                dim=config.dim,
                mssa=self.attention(config, config.num_heads),
                ista=self.sparse(config),
                **_joined(config),
            )
            for _ in range(config.depth)
        )

    def decoder_layers(
        self, config: ModelConfig, encoder: Stack[EncoderLayer]
    ) -> Stack[DecoderLayer]:
        """The decoder's layers, with fresh weights or, where they mirror, those of the encoder's.

        `encoder` has the layers that are mirrored.
        """
        if config.mirrored_decoder:
            return Stack(
                DecoderLayer(
                    dim=config.dim,
                    synthesis=MirroredSynthesis(layer.ista) if layer.sparsifies else None,
                    mssa=layer.mssa,
                    mirrored=True,
                    **_joined(config),
                )
                for layer in reversed(list(encoder))
            )
        return Stack(
            DecoderLayer(
                dim=config.dim,
                synthesis=self.synthesis(config),
                mssa=self.attention(config, config.decoder_num_heads),
                **_joined(config),
            )
            for _ in range(config.decoder_depth)
        )


def operators_of(config: ModelConfig) -> Operators:
    """The operators that a configuration names."""
    sparse, synthesis = SPARSE_STEPS[config.sparse_kind]
    return Operators(attention=ATTENTION[config.attention], sparse=sparse, synthesis=synthesis)


def _joined(config: ModelConfig) -> dict[str, Any]:
    """How a configuration joins operators: skip, step and norms of its layers."""
    return {
        "skip": config.attention_skip,
        "step": config.compression_step,
        "eps": config.layer_norm_eps,
    }


def _mssa(config: ModelConfig, num_heads: int) -> Attention:
    projection = config.output_projection
    return with_initial_values(
        MSSA(dim=config.dim, num_heads=num_heads, output_projection=projection), config
    )


def _exact(config: ModelConfig, num_heads: int) -> Attention:
    made = ExactCompression(dim=config.dim, num_heads=num_heads, eps_squared=config.eps_squared)
    return with_initial_values(made, config)


def _tssa(config: ModelConfig, num_heads: int) -> Attention:
    made = TSSA(
        dim=config.dim,
        num_heads=num_heads,
        output_projection=config.output_projection,
        bias=config.subspace_bias,
    )
    return with_initial_values(made, config)


def with_initial_values(attention: Attention, config: ModelConfig) -> Attention:
    """The operator, its U and W with the initial values of the configuration's family.

    Where the configuration keeps U orthogonal, the orthogonal factor of such values.
    """
    if config.initial_values != "crate-mae":  # those it has drawn already
        for linear in (attention.subspaces, attention.output):
            if linear is not None:
                INITIAL_VALUES[config.initial_values].linear(linear)
    attention.orthonormal = config.orthonormal_subspaces
    attention.constrain()
    return attention


def _ista(config: ModelConfig) -> SparseStep:
    made = ISTA(dim=config.dim, step_size=config.step_size, sparsity=config.sparsity)
    return _within_bounds(made, config)


def _overcomplete(config: ModelConfig) -> SparseStep:
    return _within_bounds(OvercompleteISTA(**_from_zero(config)), config)


def _decoupled(config: ModelConfig) -> SparseStep:
    return _within_bounds(DecoupledISTA(**_from_zero(config)), config)


def _within_bounds(step: SparseStep, config: ModelConfig) -> SparseStep:
    step.bounded = config.bounded_steps
    step.constrain()
    return step


def _from_zero(config: ModelConfig) -> dict[str, Any]:
    return {
        "dim": config.dim,
        "overcomplete": config.overcomplete,
        "step_size": config.step_size,
        "sparsity": config.sparsity,
    }


def _synthesis(config: ModelConfig) -> Synthesis:
    return Synthesis(dim=config.dim)


def _none(config: ModelConfig) -> None:  # noqa: ARG001
    return None


ATTENTION: dict[AttentionKind, Callable[[ModelConfig, int], Attention]] = {
    "mssa": _mssa,
    "exact": _exact,
    "tssa": _tssa,
}
"""By the name that `ModelConfig.attention` has."""
SPARSE_STEPS: dict[
    SparseStepKind,
    tuple[
        Callable[[ModelConfig], SparseStep | None],
        Callable[[ModelConfig], Synthesis | SparseStep | None],
    ],
] = {
    "ista": (_ista, _synthesis),
    "overcomplete": (_overcomplete, _overcomplete),
    "decoupled": (_decoupled, _decoupled),
    "none": (_none, _none),
}
"""Of encoder and decoder, by the name that `ModelConfig.sparse_kind` has."""
PUBLISHED = Operators(attention=_mssa, sparse=_ista, synthesis=_synthesis)
"""The paper's layers."""
OVERCOMPLETE = Operators(attention=_mssa, sparse=_overcomplete, synthesis=_overcomplete)
"""More atoms than dimensions, not of the paper: `config.overcomplete` of them a dimension."""
