"""How patches become tokens: one linear map, or one between two norms.

Shapes: B images (C, H, W), patches of h x w pixels, L of them in raster order, d token width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.config import ModelConfig
from crate_mae.models.patches import grid_of

Pair = tuple[int, int]


class ConvEmbedding(nn.Conv2d):
    """Every patch through one linear map, written as filters: MAE, CRATE-MAE, CRATE-alpha."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.channels, config.dim, config.patch_hw, config.patch_hw)

    @property
    def linear(self) -> nn.Conv2d:
        """The part that is no norm: the filters themselves."""
        return self

    def tokens(self, images: Tensor, stride: Pair | None = None) -> Tensor:
        """Tokens (B, L, d) of the patches of images (B, C, H, W), cut every `stride` pixels.

        None: side by side.
        """
        if stride is not None:
            return F.conv2d(images, self.weight, self.bias, stride).flatten(2).transpose(1, 2)
        if images.device.type == "cpu":
            patches: Tensor = self(images)
            return patches.flatten(2).transpose(1, 2)
        return filtered_patches(images, self)


class NormLinearNorm(nn.Module):
    """Every patch normalised, through a linear map, normalised again: CRATE.

    Values of a patch stand in the order row, column, channel.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_hw = config.patch_hw
        self.norm1 = nn.LayerNorm(config.patch_dim, eps=config.layer_norm_eps)
        self.linear = nn.Linear(config.patch_dim, config.dim)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """As `tokens`, of patches side by side."""
        return self.tokens(images)

    def tokens(self, images: Tensor, stride: Pair | None = None) -> Tensor:
        """Tokens (B, L, d) of the patches of images (B, C, H, W), cut every `stride` pixels."""
        height, width = self.patch_hw
        down, across = self.patch_hw if stride is None else stride
        patches = images.unfold(2, height, down).unfold(3, width, across)  # B C R S h w
        values = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        tokens: Tensor = self.norm2(self.linear(self.norm1(values)))
        return tokens


def patch_embedding(config: ModelConfig) -> ConvEmbedding | NormLinearNorm:
    """The embedding that a configuration names."""
    return ConvEmbedding(config) if config.embedding == "conv" else NormLinearNorm(config)


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
