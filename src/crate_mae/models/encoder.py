"""The CRATE encoder: patches, class token, positions, layers, norm. Shared by all models.

Shapes: B images, L patches in raster order, N = 1 + L tokens (class token first), d token width.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from crate_mae.models.config import ModelConfig, size_fault
from crate_mae.models.embedding import patch_embedding
from crate_mae.models.initial_values import INITIAL_VALUES
from crate_mae.models.layers import EncoderLayer, Stack
from crate_mae.models.masks import place_visible, take_visible
from crate_mae.models.operators import Operators, operators_of
from crate_mae.models.patches import (
    grid_of,
    patch_centres,
    positions_at,
    resampled_positions,
    sincos_positions,
)

CACHED_VALUES = 1 << 20
"""Values of the tokens that go through all layers together where a CPU computes features alone."""

logger = logging.getLogger(__name__)


class Encoder(nn.Module):
    """Tokens of images: embed, add positions, run the encoder layers, normalise."""

    positions: Tensor

    def __init__(self, config: ModelConfig, operators: Operators | None = None) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        operators = operators_of(config) if operators is None else operators
        self.patch_embed = patch_embedding(config)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.layers: Stack[EncoderLayer] = operators.encoder_layers(config)
        self.norm = nn.LayerNorm(dim, eps=config.final_norm_eps)
        self.fixed_positions = config.positions == "sincos"
        if self.fixed_positions:
            # Not in the weights file: the configuration says all there is to know.
            token, grid = self.class_token, config.grid
            if token.is_meta:  # of any size that a file claims: made where there are values
                table = token.new_empty(1 + config.num_patches, dim, dtype=torch.float32)
            else:
                table = sincos_positions(dim, grid).to(token.device)
            self.register_buffer("positions", table, persistent=False)
        else:
            self.positions = nn.Parameter(torch.empty(1 + config.num_patches, dim))
        self._grids_told: set[tuple[int, int]] = set()

        values = INITIAL_VALUES[config.initial_values]
        values.patches(self.patch_embed.linear)
        nn.init.normal_(self.class_token, std=values.class_token)
        if not self.fixed_positions:
            nn.init.normal_(self.positions, std=values.positions)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Encoder":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.fixed_positions:
            # The table is made anew where the module now lies: half and back would have rounded it.
            table = sincos_positions(self.config.dim, self.config.grid)
            self.positions = table.to(self.positions.device)
        return self

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Embedded patches (B, L, d) of images (B, C, H, W), before positions.

        Raises ValueError for another channel count and for sizes that are no multiple of the patch.
        """
        self.check_images(images)
        return self.patch_embed.tokens(images)

    def add_class_token(self, patches: Tensor) -> Tensor:
        """Tokens (B, N, d): the class token in front of patch tokens (B, L, d)."""
        class_token = self.class_token.to(patches.dtype).expand(patches.shape[0], -1, -1)
        return torch.cat([class_token, patches], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """Tokens (B, N, d) that enter the first layer for images (B, C, H, W), unmasked."""
        tokens = self.add_class_token(self.patch_tokens(images))
        return tokens + self.positions_for(grid_of(images, self.config.patch_hw)).to(tokens.dtype)

    def embed_masked(
        self, images: Tensor, mask: Tensor, mask_token: Tensor, kept: int | None = None
    ) -> Tensor:
        """Tokens that enter the first layer for images whose `mask` (B, L) is True where removed.

        (B, N, d) with mask tokens in place of removed patches or, when mask tokens enter in the
        decoder, (B, 1 + V, d) with the V = `kept` visible patches only, positions added to all.
        """
        patches = self.patch_tokens(images)
        positions = self.positions_for(grid_of(images, self.config.patch_hw)).to(patches.dtype)
        if self.config.mask_tokens == "encoder":
            patches = torch.where(mask[..., None], mask_token.to(patches.dtype), patches)
            return self.add_class_token(patches) + positions
        visible = self.add_class_token(take_visible(patches + positions[1:], mask, kept))
        if self.fixed_positions:  # the class token's is zero
            return visible
        return torch.cat([visible[:, :1] + positions[:1], visible[:, 1:]], dim=1)

    def decoder_input(
        self, latent: Tensor, mask: Tensor | None, mask_token: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Tokens (B, N, d) that enter the first layer of a decoder on this encoder.

        The latent itself or, when mask tokens enter in the decoder, the latent with mask tokens
        put in and positions added to all tokens again. Without a mask the latent is of all patches.
        """
        if self.config.mask_tokens == "encoder":
            return latent
        if mask is not None:
            patches = place_visible(latent[:, 1:], mask, mask_token)
            latent = torch.cat([latent[:, :1], patches], dim=1)
        return latent + self.positions_for(grid).to(latent.dtype)

    def through_layers(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, N, d) after every layer, not normalised.

        `keep` (layers, B) multiplies each layer's MSSA step for each image: stochastic depth.
        """
        for index, layer in enumerate(self.layers):
            tokens = self.layers.run(layer, tokens, None if keep is None else keep[index])
        return tokens

    def run_layers(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, N, d) after every layer and the final norm; `keep` as in `through_layers`."""
        normed: Tensor = self.norm(self.through_layers(tokens, keep))
        return normed

    def after_layers(
        self, tokens: Tensor, layers: Sequence[int | None], keep: Tensor | None = None
    ) -> dict[int | None, Tensor]:
        """Tokens (B, N, d) after each of so many layers, in one walk to the last that is asked for.

        0 is what enters the first layer, None what `run_layers` returns; `keep` as there.
        Raises ValueError for a layer that is not there.
        """
        for layer in layers:
            self.check_layer(layer)
        depth = len(self.layers)
        wanted = {depth if layer is None else layer for layer in layers}
        found: dict[int | None, Tensor] = {0: tokens}
        for index, each in enumerate(islice(self.layers, max(wanted, default=0))):
            tokens = self.layers.run(each, tokens, None if keep is None else keep[index])
            if index + 1 in wanted:
                found[index + 1] = tokens
        if None in layers:
            found[None] = self.norm(found[depth])
        return {layer: found[layer] for layer in layers}

    def check_layer(self, layer: int | None) -> None:
        """Raise ValueError unless tokens can have passed so many layers."""
        if layer is not None and not 0 <= layer <= len(self.layers):
            raise ValueError(f"layer must be from 0 to {len(self.layers)}, not {layer}")

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features (B, 1 + L, d) of images (B, C, H, W): no masking, raster order, normalised."""
        # Of the shape, not len(): that would fix an exported model's number of images.
        few = images.shape[0] if keep is not None else self._images_at_a_time(images)
        if few >= images.shape[0]:
            return self.run_layers(self.embed(images), keep)
        return torch.cat([self.run_layers(self.embed(part)) for part in torch.split(images, few)])

    def layer_tokens(
        self, images: Tensor, layers: Sequence[int | None], keep: Tensor | None = None
    ) -> dict[int | None, Tensor]:
        """Tokens (B, 1 + L, d) of images (B, C, H, W) after each of so many layers, in one walk.

        0 is what enters the first layer, None what `forward` returns; they must exist. `keep`
        (layers, B) multiplies each layer's MSSA step for each image: stochastic depth.
        """
        if set(layers) == {None}:
            return {None: self(images, keep)}
        return self.after_layers(self.embed(images), layers, keep)

    def _images_at_a_time(self, images: Tensor) -> int:
        """How many of the images go through all layers together.

        Where nothing is kept for a gradient on a CPU, as many as stay in its cache between layers.
        """
        kept = self.training or torch.is_grad_enabled()
        if kept or images.device.type != "cpu" or torch.compiler.is_compiling():
            return images.shape[0]
        rows, columns = grid_of(images, self.config.patch_hw)
        values = self.config.dim * self.config.overcomplete * (1 + rows * columns)
        return max(1, CACHED_VALUES // values)

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """The position table (1 + rows*columns, d) of a grid.

        For a grid other than the model's, patches lie at their centres in the extent of the model's
        own grid: see `positions_at`.
        """
        if grid == self.config.grid:
            return self.positions
        if grid not in self._grids_told:
            self._grids_told.add(grid)
            logger.warning(
                "image size differs from the model's: %s, %dx%d -> %dx%d",
                "sin-cos positions recomputed"
                if self.fixed_positions
                else "learned positions interpolated bilinearly",
                *self.config.grid,
                *grid,
            )
        rows, columns = (
            patch_centres(count, own) for count, own in zip(grid, self.config.grid, strict=True)
        )
        return self.positions_at(rows, columns)

    def positions_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The position table (1 + R*C, d) of patches at any row (R,) and column (C,) coordinates.

        In units of patches of the model's grid, 0 for the centre of the first: sines and cosines
        are computed there, learned positions interpolated bilinearly (the outermost ones beyond
        their centres). The class token's is as it is.
        """
        if self.fixed_positions:
            table = positions_at(self.config.dim, rows, columns)
            return table.to(self.positions.device, self.positions.dtype)
        return resampled_positions(self.positions, self.config.grid, rows, columns)

    def expect_grid(self, grid: tuple[int, int]) -> None:
        """Take images of this grid without a word, as a model does that trains on them."""
        self._grids_told.add(grid)

    def check_images(self, images: Tensor) -> None:
        """Raise ValueError when images are not (B, C, H, W) as this model needs them."""
        channels = self.config.channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(
                f"images must be (B, {channels}, H, W) for this model, not {tuple(images.shape)}"
            )
        if images.shape[0] == 0:
            raise ValueError("the batch holds no image")
        fault = size_fault((images.shape[2], images.shape[3]), self.config.patch_hw)
        if fault:
            raise ValueError(f"{fault}: resize, crop or pad the images")
