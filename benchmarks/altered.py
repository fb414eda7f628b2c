"""The command line with one operator of the layers changed, to learn what it costs or gains.

    python benchmarks/altered.py ALTERATION VERB ...     as `crate-mae VERB ...`

These are not CRATE-MAE any more, so weights of one alteration mean nothing without it. They answer
one question only: which part of the derived layers sets the loss that a recipe reaches?
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crate_mae.models.autoencoder
import crate_mae.models.encoder
from crate_mae.cli import main as command
from crate_mae.models.config import ModelConfig
from crate_mae.models.initial_values import init_linear
from crate_mae.models.ista import ISTA, SparseStep, Synthesis
from crate_mae.models.mssa import MSSA
from crate_mae.models.operators import OVERCOMPLETE, PUBLISHED, Operators, operators_of
from crate_mae.models.overcomplete import OvercompleteISTA

Shrink = Callable[[Tensor, float], Tensor]


class SignedISTA(ISTA):
    """ISTA that shrinks towards 0 from both sides: negative codes stay, as in a two-sided LASSO."""

    def forward(self, x: Tensor) -> Tensor:
        """Sparse codes of tokens x (..., d): (..., d)."""
        return F.softshrink(x @ self.folded_map(), self.step_size * self.sparsity)


class SkippedISTA(ISTA):
    """ISTA whose codes are added to the tokens that the step began with, as a transformer would."""

    skip, returns_codes = True, False


class SkippedSynthesis(Synthesis):
    """The decoder's synthesis, added to the codes that it began with."""

    skip: ClassVar[bool] = True


class OwnProjections(MSSA):
    """MSSA with projections of their own for the value, or for key and value."""

    def __init__(self, *parts: str, dim: int, **more: Any) -> None:
        super().__init__(dim=dim, **more)
        self.parts = parts
        for part in parts:
            linear = nn.Linear(dim, dim, bias=False)
            init_linear(linear)
            setattr(self, part, linear)

    def forward(self, x: Tensor) -> Tensor:
        """The compression direction for tokens x (B, N, d): (B, N, d)."""

        def split(projected: Tensor) -> Tensor:
            return projected.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

        query = self.project(x)
        key, value = (
            split(getattr(self, part)(x)) if part in self.parts else query
            for part in ("key", "value")
        )
        heads = F.scaled_dot_product_attention(query, key, value)
        assert self.output is not None, "an alteration of the published form alone"
        step: Tensor = self.output(heads.transpose(1, 2).flatten(-2))
        return step


class MLP(SparseStep):
    """A transformer's MLP, four times as wide, with GELU and a skip."""

    skip, returns_codes, starts_at_zero = True, False, False

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        for linear in (self.layers[0], self.layers[2]):
            assert isinstance(linear, nn.Linear)
            init_linear(linear)

    @property
    def sparse_step(self) -> None:
        """None: it has no codes to be measured."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the tokens, for normalised tokens x (..., d): (..., d)."""
        change: Tensor = self.layers(x)
        return change


class OwnSynthesis(OvercompleteISTA):
    """Overcomplete ISTA whose codes return to d dimensions by a matrix of their own, not by D."""

    def __init__(self, *, dim: int, overcomplete: int, like_dictionary: bool, **more: Any) -> None:
        super().__init__(dim=dim, overcomplete=overcomplete, **more)
        self.back = nn.Linear(overcomplete * dim, dim, bias=False)
        if like_dictionary:
            with torch.no_grad():
                self.back.weight.copy_(self.dictionary)
        else:
            init_linear(self.back)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens that the codes of tokens x (..., d) stand for: (..., d)."""
        step: Tensor = self.back(self.codes(x))
        return step


class OtherSteps(OvercompleteISTA):
    """Overcomplete ISTA with another number of steps, or another way to shrink."""

    def __init__(self, count: int, shrink: Shrink, **more: Any) -> None:
        super().__init__(**more)
        self.count, self.shrink = count, shrink

    def codes(self, x: Tensor) -> Tensor:
        """Sparse codes of tokens x (..., d): (..., n d)."""
        D, eta = self.dictionary, self.step_size
        codes = self.shrink((eta * x) @ D, eta * self.sparsity)
        for _ in range(self.count - 1):
            residual = x - F.linear(codes, D)
            codes = self.shrink(codes + (eta * residual) @ D, eta * self.sparsity)
        return codes


def _above(step: Tensor, bound: float) -> Tensor:
    return F.relu(step - bound)


def _square(kind: Callable[..., Any], config: ModelConfig) -> Any:
    return kind(dim=config.dim, step_size=config.step_size, sparsity=config.sparsity)


def _linear(kind: Callable[..., Any], config: ModelConfig) -> Any:
    return kind(dim=config.dim)


def _wide(kind: Callable[..., Any], config: ModelConfig, *, times: int | None = None) -> Any:
    return kind(
        dim=config.dim,
        overcomplete=config.overcomplete if times is None else times,
        step_size=config.step_size,
        sparsity=config.sparsity,
    )


def _attending(parts: tuple[str, ...], config: ModelConfig, num_heads: int) -> OwnProjections:
    projection = config.output_projection
    return OwnProjections(*parts, dim=config.dim, num_heads=num_heads, output_projection=projection)


def _both_wide(kind: Callable[..., Any]) -> Operators:
    make = partial(_wide, kind)
    return replace(OVERCOMPLETE, sparse=make, synthesis=make)


_SKIP = partial(_square, SkippedISTA)
_DECODER_SKIP = partial(_linear, SkippedSynthesis)
_MLP = partial(_linear, MLP)

ALTERATIONS: dict[str, Operators] = {
    # ISTA shrinks towards 0 from both sides.
    "signed": replace(PUBLISHED, sparse=partial(_square, SignedISTA)),
    # Skips around the sparse step of the encoder, of the decoder, of both.
    "skip": replace(PUBLISHED, sparse=_SKIP),
    "decoder-skip": replace(PUBLISHED, synthesis=_DECODER_SKIP),
    "both-skips": replace(PUBLISHED, sparse=_SKIP, synthesis=_DECODER_SKIP),
    # Attention reads values, or keys and values, by projections of their own.
    "own-values": replace(PUBLISHED, attention=partial(_attending, ("value",))),
    "own-attention": replace(PUBLISHED, attention=partial(_attending, ("key", "value"))),
    # MLPs in the place of ISTA and of the synthesis, or of ISTA alone.
    "mlp": replace(PUBLISHED, sparse=_MLP, synthesis=_MLP),
    "encoder-mlp": replace(PUBLISHED, sparse=_MLP),
    # Four times as many atoms, two steps from 0, back by a second matrix: the layer of CRATE-alpha
    # (Yang et al., "Scaling White-Box Transformers for Vision", arXiv 2405.20299), encoder only.
    "overcomplete": replace(
        PUBLISHED, sparse=partial(_wide, partial(OwnSynthesis, like_dictionary=False), times=4)
    ),
    # Of layers that are overcomplete by their configuration: other steps, or a second matrix.
    "one-step": _both_wide(partial(OtherSteps, 1, _above)),
    "four-steps": _both_wide(partial(OtherSteps, 4, _above)),
    "signed-overcomplete": _both_wide(partial(OtherSteps, 2, F.softshrink)),
    "own-synthesis": _both_wide(partial(OwnSynthesis, like_dictionary=True)),
}
_OF_OVERCOMPLETE = {"one-step", "four-steps", "signed-overcomplete", "own-synthesis"}


def alter(name: str) -> None:
    """Make this process build all models with the operators of an alteration.

    Those of overcomplete layers leave configurations without them as they are.
    """

    def chosen(config: ModelConfig) -> Operators:
        if name in _OF_OVERCOMPLETE and config.overcomplete == 1:
            return operators_of(config)
        return ALTERATIONS[name]

    for module in (crate_mae.models.autoencoder, crate_mae.models.encoder):
        module.operators_of = chosen  # type: ignore[attr-defined]


def main(arguments: Sequence[str]) -> int:
    """The exit status of the command under an alteration; 2 for one that does not exist."""
    if not arguments or arguments[0] not in ALTERATIONS:
        print(f"error: name an alteration, one of {', '.join(ALTERATIONS)}", file=sys.stderr)
        return 2
    alter(arguments[0])
    return command(arguments[1:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
