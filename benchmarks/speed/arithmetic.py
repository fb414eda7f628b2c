"""The model's arithmetic written out, in ways that are equal but not equally fast.

`WrittenCrate` takes the weights of a CrateMAE and computes with none of its code, so that a change
of the library is measured against something that did not change with it.

Shapes: B images, N tokens, d token width, K heads; tokens are rows.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.ista import ISTA
from crate_mae.models.mssa import MSSA

Attend = Callable[[Tensor], Tensor]
"""softmax(w w^T / sqrt(p)) w of w (B, K, N, p): (B, K, N, p)."""
GradientStep = Callable[[Tensor, Tensor, float], Tensor]
"""x + eta (x - x D^T) D of x (B, N, d), D (d, d) and eta: (B, N, d)."""


def explicit_attention(w: Tensor) -> Tensor:
    """The attended w (B, K, N, p), by way of the (B, K, N, N) tensor of weights."""
    weights = (w @ w.mT / math.sqrt(w.shape[-1])).softmax(dim=-1)
    return weights @ w


def fused_attention(w: Tensor) -> Tensor:
    """The attended w (B, K, N, p), without a tensor of weights."""
    return F.scaled_dot_product_attention(w, w, w)


def three_products(x: Tensor, D: Tensor, eta: float) -> Tensor:
    """x + eta (x D - (x D^T) D): each product of the gradient D^T x - D^T D x on its own."""
    codes = F.linear(x, D)
    return x + eta * (F.linear(x, D.mT) - F.linear(codes, D.mT))


def two_products(x: Tensor, D: Tensor, eta: float) -> Tensor:
    """x + eta r D with the residual r = x - x D^T."""
    residual = x - F.linear(x, D)
    return x + eta * F.linear(residual, D.mT)


def folded_product(x: Tensor, D: Tensor, eta: float) -> Tensor:
    """x M with M = I + eta (D - D^T D), made in every call and in the precision of D."""
    with torch.autocast(D.device.type, enabled=False):
        identity = torch.eye(len(D), dtype=D.dtype, device=D.device)
        M = identity + eta * (D - D.mT @ D)
    return x @ M


class WrittenCrate(nn.Module):
    """A CrateMAE's weights, computed with a chosen attention and a chosen ISTA step.

    Gradients land on the parameters of the model that was given. Mask tokens enter in the encoder.
    """

    def __init__(self, model: CrateMAE, *, attend: Attend, gradient_step: GradientStep) -> None:
        super().__init__()
        if model.config.mask_tokens != "encoder":
            raise ValueError("the written arithmetic has its mask tokens in the encoder")
        if model.config.overcomplete != 1:
            raise ValueError("the written arithmetic has as many atoms as dimensions")
        if model.config.other_operators:
            others = ", ".join(model.config.other_operators)
            raise ValueError(f"the written arithmetic has no {others}")
        self.model = model
        self.attend, self.gradient_step = attend, gradient_step

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """The masked loss (scalar) of images (B, C, H, W) and masks (B, L), True = removed."""
        model = self.model
        patches = torch.where(mask[..., None], model.mask_token, self._patches(images))
        tokens = self._layers(self._placed(patches))
        for layer in model.decoder:
            y = layer.synthesis(layer.norm1(tokens))
            tokens = y - self._mssa(layer.norm2(y), cast("MSSA", layer.mssa))
        prediction = model.prediction(model.decoder_norm(tokens))[:, 1:]
        with torch.autocast(images.device.type, enabled=False):
            error = ((prediction.float() - self._target(images)) ** 2).mean(dim=-1)
            loss: Tensor = (error * mask).sum() / mask.sum()
            return loss

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, 1 + L, d) of whole images (B, C, H, W)."""
        return self._layers(self._placed(self._patches(images)))

    def _patches(self, images: Tensor) -> Tensor:
        patches: Tensor = self.model.encoder.patch_embed(images)
        return patches.flatten(2).transpose(1, 2)

    def _placed(self, patches: Tensor) -> Tensor:
        encoder = self.model.encoder
        first = encoder.class_token.expand(len(patches), -1, -1)
        return torch.cat([first, patches], dim=1) + encoder.positions

    def _layers(self, tokens: Tensor) -> Tensor:
        encoder = self.model.encoder
        for layer in encoder.layers:
            h = tokens + self._mssa(layer.norm1(tokens), cast("MSSA", layer.mssa))
            tokens = self._ista(layer.norm2(h), cast("ISTA", layer.ista))
        normed: Tensor = encoder.norm(tokens)
        return normed

    def _mssa(self, x: Tensor, mssa: MSSA) -> Tensor:
        w = mssa.subspaces(x).unflatten(-1, (mssa.num_heads, -1)).transpose(1, 2)
        tokens = self.attend(w).transpose(1, 2).flatten(-2)
        if mssa.tied:
            return F.linear(tokens, mssa.subspaces.weight.mT)
        return tokens if mssa.output is None else mssa.output(tokens)

    def _ista(self, x: Tensor, ista: ISTA) -> Tensor:
        eta = ista.step_size
        return F.relu(self.gradient_step(x, ista.dictionary, eta) - eta * ista.sparsity)

    def _target(self, images: Tensor) -> Tensor:
        h, w = self.model.config.patch_hw
        patches = images.float().unfold(2, h, h).unfold(3, w, w)  # (B, C, rows, columns, h, w)
        target = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        if not self.model.config.norm_pix_loss:
            return target
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) / (variance + 1e-6).sqrt()
