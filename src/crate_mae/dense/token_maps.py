"""Dense tokens: what the encoder holds at every patch, laid out as the image is, as fine as asked.

Two ways lead to more tokens: larger images, and overlapping patches, cut every `stride` pixels. In
both the positions are those of the patch centres in the grid the model was trained on.
Shapes: B images (C, H, W), patches of h x w pixels, R x S tokens (rows, columns), d token width.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from crate_mae.batches.prepared import prepared_batches
from crate_mae.batches.transforms import displayed
from crate_mae.common.progress import Progress
from crate_mae.dense.layout import MANY_TOKENS, Layout, Pair, check_room, layout_of, warn_of_many
from crate_mae.evaluation.backbones import checked_layers, evaluating
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.encoder import Encoder
from crate_mae.models.half_steps import half_steps
from crate_mae.sources.base import ImageSource

AnyModel = CrateMAE | CrateEncoder
TokenKind = Literal["tokens", "compressed", "subspace"]

_KIND_WORDS = {
    "tokens": "tokens after {layer} encoder layers",
    "compressed": "tokens after the MSSA half step of encoder layer {layer} (counted from 0)",
    "subspace": "subspace coordinates (query = key = value) of encoder layer {layer} (counted from"
    " 0)",
}


@dataclass(frozen=True, kw_only=True)
class TokenMap:
    """Tokens of images at one place of the encoder."""

    values: Tensor
    """(B, R, S, d) float32 on the CPU; the class token is left out."""
    layer: int | None
    """How many encoder layers the tokens had passed, also those that entered the layer whose inside
    `kind` is; None for the features, after the last layer and the final norm."""
    kind: TokenKind
    layout: Layout

    def words(self) -> str:
        """What was measured, as a caption says it."""
        return f"{tensor_words(self.kind, self.layer)}; {self.layout.words()}"


def token_map(
    model: AnyModel,
    images: Tensor,
    *,
    layer: int | None = None,
    kind: TokenKind = "tokens",
    stride: int | Pair | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> TokenMap:
    """The patch tokens of prepared images (B, C, H, W) of any size that is a multiple of the patch.

    `layer` is how many encoder layers they have passed: 0 is what enters the first, the depth what
    leaves the last, and None or -1 the features as `encode` gives them. The inside of a layer has
    the number of layers before it: `kind` "compressed" is its tokens between the two half steps,
    "subspace" its coordinates U^T LN(z), all heads side by side (query, key and value in one).
    Raises ValueError for a layer, kind, stride or size that the model does not have.
    """
    layer = _checked_place(model, layer, kind)
    model.encoder.check_images(images)
    layout = layout_of(model.config, (images.shape[2], images.shape[3]), stride)
    rows, columns = layout.grid
    check_room(len(images) * rows * columns * model.config.dim, "tokens")
    warn_of_many(layout)
    if rows * columns > MANY_TOKENS:
        batch_size = 1  # nothing is gained by more, and progress is told of image by image
    values = torch.empty(len(images), rows, columns, model.config.dim)
    place = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(place)
            tokens = embed_dense(model.encoder, batch, layout)
            found = _at(model.encoder, tokens, layer, kind)[:, 1:]
            values[start : start + len(batch)] = found.float().cpu().reshape(-1, *values.shape[1:])
            if progress is not None:
                progress(start + len(batch), len(images))
    return TokenMap(values=values, layer=layer, kind=kind, layout=layout)


def embed_dense(encoder: Encoder, images: Tensor, layout: Layout) -> Tensor:
    """Tokens (B, 1 + R*S, d) that enter the first layer, class token first, with positions.

    Without overlap they are exactly those of `Encoder.embed`.
    """
    if not layout.overlapping:
        return encoder.embed(images)
    tokens = encoder.add_class_token(encoder.patch_embed.tokens(images, layout.stride))
    return tokens + dense_positions(encoder, layout).to(tokens)


def dense_positions(encoder: Encoder, layout: Layout) -> Tensor:
    """The position table (1 + R*S, d): each patch centre in the coordinates of the trained grid.

    A centre at the share u of the image's height lies at row u * rows - 1/2 of that grid.
    """
    if not layout.overlapping:
        return encoder.positions_for(layout.grid)
    rows, columns = (
        (torch.arange(count, dtype=torch.float64) * step + patch / 2) * (trained / size) - 0.5
        for count, step, patch, trained, size in zip(
            layout.grid,
            layout.stride,
            layout.patch_hw,
            encoder.config.grid,
            layout.image_hw,
            strict=True,
        )
    )
    return encoder.positions_at(rows, columns)


@dataclass(frozen=True, kw_only=True)
class ShownImages:
    """The readable images of a source, as a model takes them and as people see them."""

    images: Tensor
    """(B, C, H, W) model input, float32."""
    shown: Tensor
    """(B, C, H, W) the same on the [0, 1] scale."""
    names: list[str]
    unreadable: list[tuple[str, str]]
    """Name and reason of every image that was passed over."""


def shown_images(
    model: AnyModel,
    source: ImageSource,
    *,
    size: Pair | None = None,
    stride: int | Pair | None = None,
) -> ShownImages:
    """The readable images of a source, prepared for a model at its own size or at `size` (H, W).

    Raises ValueError for a size or `stride` that does not fit the model, before any is read, when
    none can be read, and when all together would not fit in 2 GiB.
    """
    preprocess = model.preprocess
    wanted = preprocess if size is None else replace(preprocess, size=size)
    layout_of(model.config, wanted.size, stride)
    check_room(len(source) * wanted.channels * wanted.size[0] * wanted.size[1], "images")
    unreadable: list[tuple[str, str]] = []
    batches = list(prepared_batches(source, wanted, batch_size=32, broken=unreadable))
    images = torch.cat([batch.images for batch in batches])
    return ShownImages(
        images=images,
        shown=displayed(images, wanted),
        names=[name for batch in batches for name in batch.names],
        unreadable=unreadable,
    )


def layer_number(layer: int, depth: int, side: str = "encoder") -> int:
    """The layer counted from 0 of one that may count from the last; ValueError for no layer."""
    if not -depth <= layer < depth:
        raise ValueError(f"{side} layer {layer} does not exist; there are 0 to {depth - 1}")
    return layer % depth


def tensor_words(kind: str, layer: int | None) -> str:
    """The tensor in words; `layer` as in `TokenMap`."""
    if layer is None:
        return "encoder features (last layer, final norm)"
    if layer == 0 and kind == "tokens":
        return "tokens that enter the first encoder layer (linear patch embedding, positions)"
    return _KIND_WORDS[kind].format(layer=layer)


def _at(encoder: Encoder, tokens: Tensor, layer: int | None, kind: TokenKind) -> Tensor:
    if layer is None:
        return encoder.run_layers(tokens)
    for step in half_steps(encoder.layers, tokens):
        if step.index == layer:  # its first half step, the one that attends
            if kind == "tokens":
                return step.before
            if kind == "compressed":
                return step.after
            return step.coordinates().transpose(1, 2).flatten(2)
        tokens = step.after
    return tokens


def _checked_place(model: AnyModel, layer: int | None, kind: TokenKind) -> int | None:
    if kind not in get_args(TokenKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(TokenKind))}, not {kind!r}")
    if kind == "tokens":
        (place,) = checked_layers(model, [layer])
        return place
    if layer is None:
        raise ValueError(f"kind {kind!r} is inside a layer: say which, from 0 or from -1 back")
    return layer_number(layer, model.config.depth)
