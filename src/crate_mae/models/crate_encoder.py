"""The CRATE encoder alone as a model: what training without a decoder or classes leaves behind."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.models.encoder import Encoder
from crate_mae.models.half_steps import HalfStep, half_steps
from crate_mae.models.layers import Layer, Side


class CrateEncoder(nn.Module):
    """Features of images, and nothing behind them.

    What a configuration says of a decoder, of mask tokens and of the target has no meaning here.
    """

    kind: ClassVar[str] = "CrateEncoder"
    """How `config.json` of its weights names it."""
    match: ClassVar[None] = None

    def __init__(self, config: ModelConfig, encoder: Encoder | None = None) -> None:
        """A new encoder of the configuration, or one of it that is there already."""
        super().__init__()
        self.config = config
        self.preprocess = self.assumed_preprocess = Preprocess.identity(config)
        """How the training images were prepared; saved and loaded with the weights."""
        self.encoder = Encoder(config) if encoder is None else encoder

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features (B, 1 + L, d) of images (B, C, H, W).

        `keep` (layers, B) multiplies each layer's MSSA step for each image: stochastic depth.
        """
        features: Tensor = self.encoder(images, keep)
        return features

    def recompute_layers(self, recompute: bool = True) -> None:
        """Set whether training recomputes layers in the backward pass to save memory."""
        self.encoder.layers.recompute = recompute

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, 1 + L, d) of images (B, C, H, W), as `CrateMAE.encode`."""
        features: Tensor = self.encoder(images)
        return features

    @property
    def stacks(self) -> dict[Side, list[Layer]]:
        """The layers of each side: the encoder's."""
        return {"encoder": list(self.encoder.layers)}

    def half_steps(self, images: Tensor) -> Iterator[HalfStep]:
        """The half steps of the encoder for images (B, C, H, W)."""
        return half_steps(self.encoder.layers, self.encoder.embed(images))

    def tensors_in_layers(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every tensor up to the last layer's, in order of computation."""
        tokens = self.encoder.embed(images)
        yield "patch embedding", tokens
        for step in half_steps(self.encoder.layers, tokens):
            yield f"encoder layer {step.index}, {step.name}", step.after

    def tensors_to_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every tensor on the way to the features, in order of computation."""
        for name, tensor in self.tensors_in_layers(images):
            yield name, tensor
            tokens = tensor
        yield "features", self.encoder.norm(tokens)

    def layer_tokens(
        self, images: Tensor, layers: Sequence[int | None]
    ) -> dict[int | None, Tensor]:
        """Tokens (B, 1 + L, d) after each of so many encoder layers; None: as `encode`."""
        return self.encoder.layer_tokens(images, layers)

    def describe_head(self) -> dict[str, Any]:
        """An empty dictionary: there is no head to describe."""
        return {}

    def untrained(self, seed: int) -> "CrateEncoder":
        """A model of the same configuration with fresh weights, as images are prepared for it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = CrateEncoder(self.config)
        fresh.preprocess = self.preprocess
        return fresh
