"""Attention maps: where the class token, or a patch, takes its update from.

Recomputed from U for the asked layers only. Query, key and value are one projection, so that a
token is nearly always most like itself: what it keeps (`own`) belongs beside any map. Where tokens
attend to none (token statistics) the maps are their memberships in heads, which have no query.
Shapes: B images, K heads, R x S patches (rows, columns), N = 1 + R*S tokens (class token first).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crate_mae.common.progress import Progress
from crate_mae.dense.layout import MAX_VALUES, Layout, Pair, check_room, layout_of, warn_of_many
from crate_mae.dense.token_maps import (
    AnyModel,
    dense_positions,
    embed_dense,
    layer_number,
)
from crate_mae.evaluation.backbones import evaluating
from crate_mae.models.autoencoder import side_layers
from crate_mae.models.half_steps import half_steps
from crate_mae.models.layers import Side
from crate_mae.models.mssa import Attention, Maps

Query = Literal["class"] | Pair


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """One token's attention in every head of some layers, or the memberships of all tokens."""

    weights: Tensor
    """(B, layers, K, N) float32 on the CPU, class token first; attention sums to 1 over the tokens,
    membership over the heads."""
    layers: tuple[int, ...]
    """Counted from 0, in the order of `weights`."""
    side: Side
    query: Query
    """"class", or (row, column) of a patch, from 0."""
    layout: Layout
    kind: Maps = "attention"
    """Whether `weights` are one token's attention, or every token's membership in the head."""

    @property
    def patches(self) -> Tensor:
        """The weights on patches (B, layers, K, R, S), without the class token's."""
        return self.weights[..., 1:].reshape(*self.weights.shape[:-1], *self.layout.grid)

    @property
    def others(self) -> Tensor:
        """The weights on other patches (B, layers, K, R, S): 0 where a patch asks for itself."""
        patches = self.patches
        if self.query == "class":
            return patches
        row, column = self.query
        patches = patches.clone()
        patches[..., row, column] = 0
        return patches

    @property
    def own(self) -> Tensor:
        """The weight (B, layers, K) that the query keeps for itself."""
        return self.weights[..., query_index(self.query, self.layout.grid)]

    def words(self) -> str:
        """What was measured, as a caption says it."""
        if self.kind == "membership":
            return f"membership of tokens in heads, {self.side}; {self.layout.words()}"
        who = "the class token" if self.query == "class" else f"patch {_place(self.query)}"
        return f"attention of {who}, {self.side}; {self.layout.words()}"


def attention_maps(
    model: AnyModel,
    images: Tensor,
    *,
    layers: Sequence[int] | None = None,
    query: Query = "class",
    side: Side = "encoder",
    stride: int | Pair | None = None,
    progress: Progress | None = None,
) -> AttentionMaps:
    """Where a token of unmasked prepared images (B, C, H, W) attends, in every head.

    Of attention "tssa", where none attends, how much every token belongs to each head; that has no
    query. `layers` count from 0, negative from the last; None takes all. `query` is "class" or the
    (row, column) of a patch, `stride` as for `token_map`. One image at a time, and of the N x N
    weights one row is kept. A classifier has an encoder side only.
    Raises ValueError for a layer, side, query, stride or size that the model does not have, for
    attention "exact", which has neither, and when one layer's weights would take more than 2 GiB.
    """
    stack = side_layers(model.stacks, side)
    asked = range(len(stack)) if layers is None else layers
    wanted = tuple(dict.fromkeys(layer_number(i, len(stack), side) for i in asked))
    if not wanted:
        raise ValueError("no layer was asked for")
    model.encoder.check_images(images)
    layout = layout_of(model.config, (images.shape[2], images.shape[3]), stride)
    index = query_index(query, layout.grid)
    kind, heads = shown_maps(stack[0].mssa), stack[0].mssa.num_heads
    if kind == "membership" and query != "class":
        raise ValueError(
            "the tokens of this model attend to none: a map shows how much each belongs to a head,"
            " whoever asks. Leave the query out"
        )
    tokens = 1 + layout.grid[0] * layout.grid[1]
    if kind == "attention" and heads * tokens**2 > MAX_VALUES:
        raise ValueError(
            f"{heads} heads of {tokens} x {tokens} weights are more than 2 GiB: use a smaller size"
            " or a larger stride"
        )
    check_room(len(images) * len(wanted) * heads * tokens, "weights of all images")
    warn_of_many(layout)
    weights = torch.empty(len(images), len(wanted), heads, tokens)
    place = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        for row, image in enumerate(images):
            found = _rows(model, image[None].to(place), layout, set(wanted), index, side)
            weights[row] = torch.stack([found[layer].float().cpu() for layer in wanted])
            if progress is not None:
                progress(row + 1, len(images))
    return AttentionMaps(
        weights=weights, layers=wanted, side=side, query=query, layout=layout, kind=kind
    )


def shown_maps(operator: Attention) -> Maps:
    """Which maps an operator has; ValueError with the reason for one that has none."""
    if operator.maps is None:
        raise ValueError(operator.no_maps)
    return operator.maps


def head_numbers(heads: Sequence[int] | None, count: int) -> list[int]:
    """Heads counted from 0, each once; None means all. Raises ValueError for a head beyond."""
    asked = range(count) if heads is None else heads
    wrong = [head for head in asked if not -count <= head < count]
    if wrong or not asked:
        raise ValueError(f"heads {wrong or list(asked)} do not exist; there are 0 to {count - 1}")
    return list(dict.fromkeys(head % count for head in asked))


def query_index(query: Query, grid: Pair) -> int:
    """The place of a query among all tokens: 0 for "class"; ValueError outside the grid."""
    if query == "class":
        return 0
    if isinstance(query, str) or len(query) != 2:
        raise ValueError(f"the query is 'class' or (row, column), not {query!r}")
    row, column = query
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise ValueError(
            f"patch {_place(query)} is outside the grid: rows are 0 to {grid[0] - 1},"
            f" columns 0 to {grid[1] - 1}"
        )
    return 1 + row * grid[1] + column


def _rows(
    model: AnyModel, image: Tensor, layout: Layout, wanted: set[int], index: int, side: Side
) -> dict[int, Tensor]:
    """{layer: (K, N)} of one image (1, C, H, W)."""
    encoder = model.encoder
    tokens = embed_dense(encoder, image, layout)
    if side == "decoder":
        tokens = encoder.run_layers(tokens)
        if model.config.mask_tokens == "decoder":
            tokens = tokens + dense_positions(encoder, layout).to(tokens)
    rows: dict[int, Tensor] = {}
    for step in half_steps(model.stacks[side], tokens):
        if step.attends and step.index in wanted:
            membership = step.mssa.maps == "membership"
            found = step.membership()[0] if membership else step.attention()[0, :, index]
            rows[step.index] = found
            if len(rows) == len(wanted):
                break
    return rows


def _place(query: Pair) -> str:
    return f"({query[0]}, {query[1]})"
