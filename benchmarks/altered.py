"""The command line with one equation of the layers changed, to learn what it costs or gains.

    python benchmarks/altered.py ALTERATION VERB ...     as `crate-mae VERB ...`

These are not CRATE-MAE any more, so weights of one alteration mean nothing without it. They answer
one question only: which part of the derived layers sets the loss that a recipe reaches?
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.cli import main as command
from crate_mae.models.layers import ISTA, MSSA, DecoderLayer, EncoderLayer, init_linear
from crate_mae.models.overcomplete import OvercompleteISTA


def signed() -> None:
    """ISTA shrinks towards 0 from both sides: negative codes stay, as in the two-sided LASSO."""

    def forward(self: ISTA, x: Tensor) -> Tensor:
        step = x @ self.folded_map()
        bound = self.step_size * self.sparsity
        return F.softshrink(step, bound)

    ISTA.forward = forward  # type: ignore[method-assign]


def skip() -> None:
    """The sparse codes are added to the tokens that the step began with, as a transformer would."""
    plain = EncoderLayer.sparsify

    def sparsify(self: EncoderLayer, h: Tensor) -> Tensor:
        return h + plain(self, h)

    EncoderLayer.sparsify = sparsify  # type: ignore[method-assign]


def decoder_skip() -> None:
    """The decoder's synthesis is added to the codes that it began with."""
    plain = DecoderLayer.expand

    def expand(self: DecoderLayer, z: Tensor) -> Tensor:
        return z + plain(self, z)

    DecoderLayer.expand = expand  # type: ignore[method-assign]


def both_skips() -> None:
    """Both of the above."""
    skip()
    decoder_skip()


def own_values() -> None:
    """Attention reads values by a projection of their own; query and key stay one, and the rest."""
    _untie("value")


def own_attention() -> None:
    """Query, key and value are three projections, as in a transformer."""
    _untie("key", "value")


def mlp() -> None:
    """MLPs four times as wide, with GELU and a skip, in the place of ISTA and of the synthesis."""
    encoder_mlp()
    _mlp_instead(DecoderLayer, "synthesis", step="expand", norm="norm1")


def encoder_mlp() -> None:
    """The same in the encoder alone."""
    _mlp_instead(EncoderLayer, "ista", step="sparsify", norm="norm2")


def overcomplete() -> None:
    """Codes in a dictionary D of four times as many atoms, by two steps of ISTA from 0, added to h.

    They return to d dimensions by a dictionary of their own, not by D: the layer of CRATE-alpha
    (Yang et al., "Scaling White-Box Transformers for Vision", arXiv 2405.20299), encoder only.
    """
    plain = EncoderLayer.__init__

    def init(self: EncoderLayer, *, dim: int, **more: Any) -> None:
        plain(self, dim=dim, **more)
        self.ista.dictionary = nn.Parameter(torch.empty(4 * dim, dim))  # atoms are rows
        nn.init.kaiming_uniform_(self.ista.dictionary)
        self.back = nn.Linear(4 * dim, dim, bias=False)
        init_linear(self.back)

    def sparsify(self: EncoderLayer, h: Tensor) -> Tensor:
        x, D, eta = self.norm2(h), self.ista.dictionary, self.ista.step_size
        bound = eta * self.ista.sparsity
        codes = F.relu(eta * x @ D.mT - bound)
        codes = F.relu(codes + eta * (x - codes @ D) @ D.mT - bound)
        step: Tensor = cast("nn.Module", self.back)(codes)
        return h + step

    EncoderLayer.__init__ = init  # type: ignore[method-assign]
    EncoderLayer.sparsify = sparsify  # type: ignore[method-assign]


def one_step() -> None:
    """Overcomplete layers take one step of ISTA in the place of two."""
    _overcomplete_steps(1)


def four_steps() -> None:
    """Overcomplete layers take four steps of ISTA in the place of two."""
    _overcomplete_steps(4)


def signed_overcomplete() -> None:
    """Codes of overcomplete layers may be negative: both steps shrink towards 0 from both sides."""
    _overcomplete_steps(2, shrink=F.softshrink)


def own_synthesis() -> None:
    """Codes of overcomplete layers return to d dimensions by a matrix of their own, not by D."""
    plain = OvercompleteISTA.__init__

    def init(self: OvercompleteISTA, *, dim: int, overcomplete: int, **more: Any) -> None:
        plain(self, dim=dim, overcomplete=overcomplete, **more)
        self.back = nn.Linear(overcomplete * dim, dim, bias=False)
        with torch.no_grad():
            self.back.weight.copy_(self.dictionary)

    def forward(self: OvercompleteISTA, x: Tensor) -> Tensor:
        step: Tensor = cast("nn.Module", self.back)(self.codes(x))
        return step

    OvercompleteISTA.__init__ = init  # type: ignore[method-assign]
    OvercompleteISTA.forward = forward  # type: ignore[method-assign]


def _above(step: Tensor, bound: float) -> Tensor:
    return F.relu(step - bound)


def _overcomplete_steps(count: int, shrink: Callable[[Tensor, float], Tensor] = _above) -> None:
    def codes(self: OvercompleteISTA, x: Tensor) -> Tensor:
        D, eta = self.dictionary, self.step_size
        found = shrink((eta * x) @ D, eta * self.sparsity)
        for _ in range(count - 1):
            residual = x - F.linear(found, D)
            found = shrink(found + (eta * residual) @ D, eta * self.sparsity)
        return found

    OvercompleteISTA.codes = codes  # type: ignore[method-assign]


def _mlp_instead(layer: type[nn.Module], part: str, *, step: str, norm: str) -> None:
    plain = layer.__init__

    def init(self: nn.Module, *, dim: int, **more: Any) -> None:
        plain(self, dim=dim, **more)
        delattr(self, part)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        for linear in self.mlp[::2]:
            init_linear(cast("nn.Linear", linear))

    def run(self: nn.Module, tokens: Tensor) -> Tensor:
        change: Tensor = cast("nn.Module", self.mlp)(getattr(self, norm)(tokens))
        return tokens + change

    layer.__init__ = init  # type: ignore[method-assign]
    setattr(layer, step, run)


def _untie(*parts: str) -> None:
    plain = MSSA.__init__

    def init(self: MSSA, *, dim: int, **more: Any) -> None:
        plain(self, dim=dim, **more)
        for part in parts:
            linear = nn.Linear(dim, dim, bias=False)
            init_linear(linear)
            setattr(self, part, linear)

    def forward(self: MSSA, x: Tensor) -> Tensor:
        def split(projected: Tensor) -> Tensor:
            return projected.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

        query = self.project(x)
        key, value = (
            split(getattr(self, part)(x)) if part in parts else query for part in ("key", "value")
        )
        heads = F.scaled_dot_product_attention(query, key, value)
        assert self.output is not None, "an alteration of the published form alone"
        step: Tensor = self.output(heads.transpose(1, 2).flatten(-2))
        return step

    MSSA.__init__ = init  # type: ignore[method-assign]
    MSSA.forward = forward  # type: ignore[method-assign]


ALTERATIONS: dict[str, Callable[[], None]] = {
    "signed": signed,
    "skip": skip,
    "decoder-skip": decoder_skip,
    "both-skips": both_skips,
    "own-values": own_values,
    "own-attention": own_attention,
    "mlp": mlp,
    "encoder-mlp": encoder_mlp,
    "overcomplete": overcomplete,
    "one-step": one_step,
    "four-steps": four_steps,
    "signed-overcomplete": signed_overcomplete,
    "own-synthesis": own_synthesis,
}


def main(words: Sequence[str]) -> int:
    """The exit status of the command under an alteration; 2 for one that does not exist."""
    if not words or words[0] not in ALTERATIONS:
        print(f"error: name an alteration, one of {', '.join(ALTERATIONS)}", file=sys.stderr)
        return 2
    ALTERATIONS[words[0]]()
    return command(words[1:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
