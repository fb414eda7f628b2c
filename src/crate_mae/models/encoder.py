"""The CRATE encoder: patches, class token, positions, layers, norm. Shared by all models.

Shapes: B images, L patches in raster order, N = 1 + L tokens (class token first), d token width.
"""

import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.config import ModelConfig, size_fault
from crate_mae.models.half_steps import tokens_after
from crate_mae.models.layers import EncoderLayer, Stack
from crate_mae.models.operators import Operators, operators_of
from crate_mae.models.patches import grid_of, sincos_positions

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
        self.patch_embed = nn.Conv2d(config.channels, dim, config.patch_hw, config.patch_hw)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.layers: Stack[EncoderLayer] = operators.encoder_layers(config)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        # Not in the weights file: the configuration says all there is to know.
        self.register_buffer("positions", sincos_positions(dim, config.grid), persistent=False)
        self._grids_told: set[tuple[int, int]] = set()

        nn.init.xavier_uniform_(self.patch_embed.weight.view(dim, -1))
        if self.patch_embed.bias is not None:
            nn.init.zeros_(self.patch_embed.bias)
        nn.init.normal_(self.class_token, std=0.02)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Encoder":
        # The table is made anew where the module now lies: half and back would have rounded it.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        table = sincos_positions(self.config.dim, self.config.grid)
        self.positions = table.to(self.positions.device)
        return self

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Linear patch tokens (B, L, d) of images (B, C, H, W), before positions.

        Raises ValueError for another channel count and for sizes that are no multiple of the patch.
        """
        self.check_images(images)
        filters = self.patch_embed
        if images.device.type == "cpu":
            patches: Tensor = filters(images)
            return patches.flatten(2).transpose(1, 2)
        return filtered_patches(images, filters)

    def add_class_token(self, patches: Tensor) -> Tensor:
        """Tokens (B, N, d): the class token in front of patch tokens (B, L, d)."""
        class_token = self.class_token.to(patches.dtype).expand(len(patches), -1, -1)
        return torch.cat([class_token, patches], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """Tokens (B, N, d) that enter the first layer for images (B, C, H, W), unmasked."""
        tokens = self.add_class_token(self.patch_tokens(images))
        return tokens + self.positions_for(grid_of(images, self.config.patch_hw)).to(tokens.dtype)

    def run_layers(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, N, d) after every layer and the final norm.

        `keep` (layers, B) multiplies each layer's MSSA step for each image: stochastic depth.
        """
        for index, layer in enumerate(self.layers):
            tokens = self.layers.run(layer, tokens, None if keep is None else keep[index])
        normed: Tensor = self.norm(tokens)
        return normed

    def run_layers_with(self, tokens: Tensor, layer: int | None) -> tuple[Tensor, Tensor]:
        """What `run_layers` returns, and the tokens (B, N, d) after so many layers.

        None: what `run_layers` returns, twice.
        """
        asked = tokens
        for done, each in enumerate(self.layers, start=1):
            tokens = self.layers.run(each, tokens, None)
            asked = tokens if done == layer else asked
        normed: Tensor = self.norm(tokens)
        return normed, normed if layer is None else asked

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features (B, 1 + L, d) of images (B, C, H, W): no masking, raster order, normalised."""
        few = len(images) if keep is not None else self._images_at_a_time(images)
        if few >= len(images):
            return self.run_layers(self.embed(images), keep)
        return torch.cat([self.run_layers(self.embed(part)) for part in torch.split(images, few)])

    def layer_tokens(
        self, images: Tensor, layers: Sequence[int | None]
    ) -> dict[int | None, Tensor]:
        """Tokens (B, 1 + L, d) of images (B, C, H, W) after each of so many layers, in one walk.

        0 is what enters the first layer, None what `forward` returns; they must exist.
        """
        if set(layers) == {None}:
            return {None: self(images)}
        depth = len(self.layers)
        wanted = [depth if layer is None else layer for layer in layers]
        found = tokens_after(list(self.layers), self.embed(images), wanted)
        return {
            layer: self.norm(found[depth]) if layer is None else found[layer] for layer in layers
        }

    def _images_at_a_time(self, images: Tensor) -> int:
        """How many of the images go through all layers together.

        Where nothing is kept for a gradient on a CPU, as many as stay in its cache between layers.
        """
        kept = self.training or torch.is_grad_enabled()
        if kept or images.device.type != "cpu" or torch.compiler.is_compiling():
            return len(images)
        rows, columns = grid_of(images, self.config.patch_hw)
        values = self.config.dim * self.config.overcomplete * (1 + rows * columns)
        return max(1, CACHED_VALUES // values)

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """The position table (1 + rows*columns, d) of a grid.

        For a grid other than the model's it is computed anew, in the model's own coordinates.
        """
        if grid == self.config.grid:
            return self.positions
        if grid not in self._grids_told:
            self._grids_told.add(grid)
            logger.warning(
                "image size differs from the model's: sin-cos positions recomputed, %dx%d -> %dx%d",
                *self.config.grid,
                *grid,
            )
        table = sincos_positions(self.config.dim, grid, reference_grid=self.config.grid)
        return table.to(self.positions.device, self.positions.dtype)

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
        if not len(images):
            raise ValueError("the batch holds no image")
        fault = size_fault((images.shape[2], images.shape[3]), self.config.patch_hw)
        if fault:
            raise ValueError(f"{fault}: resize, crop or pad the images")


def filtered_patches(images: Tensor, filters: nn.Conv2d) -> Tensor:
    """What a convolution without overlap makes of the patches of images (B, C, H, W): (B, L, d).

    As one matrix product. GPUs take several times as long over the convolution's gradient, and
    their convolutions round float32 to TF32 whether or not products may.
    """
    height, width = filters.weight.shape[-2:]
    rows, columns = grid_of(images, (height, width))
    pixels = images.reshape(*images.shape[:2], rows, height, columns, width)
    pixels = pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, L, C h w)
    return F.linear(pixels, filters.weight.flatten(1), filters.bias)
