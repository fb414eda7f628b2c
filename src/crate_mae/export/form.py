"""The form in which a model is exported: steps as linear maps, and one of three tasks around them.

Shapes: B images (C, H, W), L patches, tokens (B, 1 + L, d).
"""

import copy
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.embedding import ConvEmbedding, filtered_patches
from crate_mae.models.ista import ISTA
from crate_mae.models.patches import grid_of

What = Literal["encode", "classify", "reconstruct"]


class LinearISTA(nn.Module):
    """ISTA with an unchanging dictionary: ReLU( x M - eta lambda ), M = I + eta (D - D^T D).

    M is made in float64. With the identity outside, x + x (M - I), the small entries beside it keep
    their digits when the map is rounded to eight bits.
    """

    skip: ClassVar[bool] = False

    def __init__(self, ista: ISTA, *, identity_outside: bool) -> None:
        super().__init__()
        D = ista.dictionary.detach().double()
        change = ista.step_size * (D - D.mT @ D)
        width = len(change)
        self.identity_outside = identity_outside
        self.linear = nn.Linear(width, width)
        with torch.no_grad():
            eye = torch.zeros_like(change) if identity_outside else torch.eye(width).double()
            self.linear.weight.copy_((eye + change).mT)
            self.linear.bias.fill_(-ista.step_size * ista.sparsity)

    def forward(self, x: Tensor) -> Tensor:
        """Sparse codes (..., d) of tokens x (..., d)."""
        step: Tensor = self.linear(x)
        return F.relu(x + step if self.identity_outside else step)


class ProductEmbedding(nn.Module):
    """The patch embedding as one matrix product.

    Runtimes lay out convolutions in blocks, which round float32 about twice as much.
    """

    def __init__(self, filters: ConvEmbedding) -> None:
        super().__init__()
        self.filters = filters

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, L, d) of the patches of images (B, C, H, W)."""
        return filtered_patches(images, self.filters)


def export_form(model: nn.Module, *, identity_outside: bool = False) -> nn.Module:
    """A copy of a model, in eval mode, whose ISTA steps and patch filters are linear maps.

    Operators and embeddings of other kinds stay what they are.
    """
    changed = copy.deepcopy(model).eval()
    for parent in list(changed.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, ISTA):
                setattr(parent, name, LinearISTA(part, identity_outside=identity_outside))
            elif isinstance(part, ConvEmbedding):
                setattr(parent, name, ProductEmbedding(part))
    return changed.requires_grad_(False)


class Encode(nn.Module):
    """Features of images."""

    def __init__(self, model: CrateMAE | CrateEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1 + L, d), class token first."""
        return self.model.encode(images)


class Classify(nn.Module):
    """Class scores of images."""

    def __init__(self, model: CrateClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, classes)."""
        scores: Tensor = self.model(images)
        return scores


class Reconstruct(nn.Module):
    """Predicted patches of masked images; every mask keeps the same number of patches."""

    def __init__(self, model: CrateMAE, kept: int) -> None:
        super().__init__()
        self.model, self.kept = model, kept

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, L, h*w*C), pixel order row, column, channel; `mask` (B, L), True = removed."""
        model = self.model
        latent = model.encode_masked(images, mask, self.kept)
        return model.decode(latent, mask, grid_of(images, model.config.patch_hw))
