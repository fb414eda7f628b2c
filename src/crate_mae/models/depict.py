"""DEPICT: white-box segmentation, class embeddings compared with compressed patch tokens.

Shapes: B images, L patches on a grid of rows x columns, N tokens, d token width, C classes, H heads
of r dimensions. Source: "Rethinking Decoders for Transformer-based Semantic Segmentation: A
Compression Perspective" (NeurIPS 2024, arXiv 2411.03033), as its authors' code computes it;
docs/family.md says where paper and code differ.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.encoder import Encoder
from crate_mae.models.patches import grid_of

DecoderForm = Literal["self", "cross"]

CROSS_LAYERS = 3
"""Cross-attention layers of the published code, whatever its number of layers."""


class SubspaceStep(nn.Module):
    """A step of attention whose one matrix P projects in and out, times a learned step size s.

        step(x; q) = s concat_k( softmax(q_k w_k^T / sqrt(r)) w_k ) P,    w = LN(x) P^T

    q is w itself, or the projection of queries that were given, which are not normalised. P is
    (H r, d); s may have either sign.
    """

    def __init__(self, *, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.subspaces = nn.Parameter(torch.randn(num_heads * head_dim, dim) / math.sqrt(dim))  # P
        self.step_size = nn.Parameter(torch.randn(1))  # s

    def attention(self, tokens: Tensor, queries: Tensor | None = None) -> Tensor:
        """The weights of tokens (B, N, d) for each query (B, Q, d), or each other: (B, H, Q, N)."""
        w, q = self._heads(tokens, queries)
        return (q @ w.mT / math.sqrt(w.shape[-1])).softmax(dim=-1)

    def forward(self, tokens: Tensor, queries: Tensor | None = None) -> Tensor:
        """The step for tokens (B, N, d), or for queries (B, Q, d) that look at them; as these."""
        w, q = self._heads(tokens, queries)
        found = F.scaled_dot_product_attention(q, w, w)
        return self.step_size * (found.transpose(1, 2).flatten(-2) @ self.subspaces)

    def _heads(self, tokens: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor]:
        w = self._split(self.norm(tokens))
        return w, w if queries is None else self._split(queries)

    def _split(self, tokens: Tensor) -> Tensor:
        w = F.linear(tokens, self.subspaces)
        return w.view(*w.shape[:2], self.num_heads, -1).transpose(1, 2)


class SegmentationDecoder(nn.Module):
    """Scores of classes for every patch, from the features of an encoder.

    In form "self" patches and class embeddings are compressed together, `num_layers` times. In form
    "cross" patches are compressed among themselves, and the embeddings look at them three times.
    Either way a score is the cosine of patch and class, normalised over classes.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        form: DecoderForm = "self",
        num_layers: int = 3,
        num_heads: int = 3,
        head_dim: int = 100,
        cross_head_dim: int = 50,
    ) -> None:
        super().__init__()
        if form not in ("self", "cross"):
            raise ValueError(f"form must be 'self' or 'cross', not {form!r}")
        for name, value in (
            ("num_classes", num_classes),
            ("num_layers", num_layers),
            ("num_heads", num_heads),
            ("head_dim", head_dim),
            ("cross_head_dim", cross_head_dim),
        ):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        self.form = form
        self.sizes = {
            "dim": dim, "num_classes": num_classes, "form": form, "num_layers": num_layers,
            "num_heads": num_heads, "head_dim": head_dim, "cross_head_dim": cross_head_dim,
        }  # fmt: skip
        """The arguments it was made with, by name."""
        self.classes = nn.Parameter(torch.empty(1, num_classes, dim))
        self.layers = nn.ModuleList(
            SubspaceStep(dim=dim, num_heads=num_heads, head_dim=head_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        cross = CROSS_LAYERS if form == "cross" else 0
        self.cross_layers = nn.ModuleList(
            SubspaceStep(dim=dim, num_heads=num_heads, head_dim=cross_head_dim)
            for _ in range(cross)
        )
        self.cross_norm = nn.LayerNorm(dim, eps=1e-5) if cross else None
        self.class_norm = nn.LayerNorm(num_classes, eps=1e-5)
        nn.init.trunc_normal_(self.classes, std=0.02)

    def compared(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, L, d) and classes (B, C, d) as they are compared, for features (B, L, d)."""
        classes = self.classes.expand(len(features), -1, -1)
        tokens = features
        if self.form == "self":
            tokens = torch.cat([tokens, classes], dim=1)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        tokens = self.norm(tokens)
        if self.cross_norm is None:
            count = features.shape[1]
            return tokens[:, :count], tokens[:, count:]
        for layer in self.cross_layers:
            classes = classes + layer(tokens, classes)
        return tokens, self.cross_norm(classes)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class scores (B, C, rows, columns) of patch features (B, L, d) on a grid.

        Features are those after the encoder's norm, without the class token. Raises ValueError
        where their number is not that of the grid.
        """
        if features.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{features.shape[1]} patch features do not fill a grid of {grid[0]}x{grid[1]};"
                " leave out the class token"
            )
        patches, classes = self.compared(features)
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        scores: Tensor = self.class_norm(patches @ classes.mT)
        return scores.mT.reshape(len(features), -1, *grid)


def enlarged(scores: Tensor, patch_hw: tuple[int, int], image_hw: tuple[int, int]) -> Tensor:
    """Class scores (B, C, H, W) at every pixel, from those of patches (B, C, rows, columns).

    Bilinear over the patches' whole extent, then cut to an image that may end inside it.
    """
    rows, columns = scores.shape[-2:]
    whole = (rows * patch_hw[0], columns * patch_hw[1])
    pixels = F.interpolate(scores, size=whole, mode="bilinear", align_corners=False)
    return pixels[..., : image_hw[0], : image_hw[1]]


class CrateSegmenter(nn.Module):
    """Class scores of every pixel: a segmentation decoder on the patch features of an encoder."""

    def __init__(self, encoder: Encoder, decoder: SegmentationDecoder) -> None:
        super().__init__()
        if encoder.config.dim != decoder.classes.shape[-1]:
            raise ValueError(
                f"the encoder's features have width {encoder.config.dim}, and the decoder is for"
                f" {decoder.classes.shape[-1]}"
            )
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, C, H, W) of images (B, channels, H, W) of any size.

        Images whose size is no multiple of the patch are filled up with zeros below and to the
        right. Features are those after the encoder's norm, which the decoder is derived for.
        """
        image_hw, patch_hw = (images.shape[-2], images.shape[-1]), self.encoder.config.patch_hw
        down, across = (-size % patch for size, patch in zip(image_hw, patch_hw, strict=True))
        padded = F.pad(images, (0, across, 0, down))
        features: Tensor = self.encoder(padded)
        scores: Tensor = self.decoder(features[:, 1:], grid_of(padded, patch_hw))
        return enlarged(scores, patch_hw, image_hw)
