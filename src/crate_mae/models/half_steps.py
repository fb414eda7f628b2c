"""A walk over the half steps of every layer, on unmasked images: what each took in and gave out."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE, Side
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.layers import MSSA, DecoderLayer, EncoderLayer
from crate_mae.models.patches import grid_of


@dataclass(frozen=True, kw_only=True)
class HalfStep:
    """One half step on a batch: tokens (B, N, d) before and after it."""

    side: Side
    index: int
    """Of the layer, from 0."""
    layer: EncoderLayer | DecoderLayer
    name: str
    """The method of the layer: "compress", "sparsify", "expand" or "decompress"."""
    before: Tensor
    after: Tensor

    @property
    def mssa(self) -> MSSA:
        """The layer's MSSA, whose subspaces both of its half steps are measured against."""
        return self.layer.mssa

    @property
    def mssa_norm(self) -> nn.LayerNorm:
        """The norm in front of that MSSA: LN1 in the encoder, LN2 in the decoder."""
        return self.layer.norm1 if isinstance(self.layer, EncoderLayer) else self.layer.norm2


def half_steps(model: CrateMAE | CrateClassifier, images: Tensor) -> Iterator[HalfStep]:
    """The half steps of encoder and decoder in the order of computation, for images (B, C, H, W).

    Nothing is masked. The decoder of an autoencoder runs on the normalised features of all patches
    (with positions added again where mask tokens enter there); a classifier has none.
    """
    tokens = model.encoder.embed(images)
    for index, layer in enumerate(model.encoder.layers):
        for name in ("compress", "sparsify"):
            after = getattr(layer, name)(tokens)
            yield HalfStep(
                side="encoder", index=index, layer=layer, name=name, before=tokens, after=after
            )
            tokens = after
    if not isinstance(model, CrateMAE):
        return
    grid = grid_of(images, model.config.patch_hw)
    tokens = model.decoder_input(model.encoder.norm(tokens), None, grid)
    for index, step in enumerate(model.decoder):
        for name in ("expand", "decompress"):
            after = getattr(step, name)(tokens)
            yield HalfStep(
                side="decoder", index=index, layer=step, name=name, before=tokens, after=after
            )
            tokens = after
