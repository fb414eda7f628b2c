"""What every model offers that can be measured, whatever its family.

Layers are counted by how many of them the tokens have passed: 0 is what enters the first layer
(patches embedded, class token and positions in place), the depth is what leaves the last. None is
what `encode` returns: after the last layer and the final norm, which no number includes.
Shapes: B images (C, H, W), L patches, tokens (B, 1 + L, d), class token first.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from crate_mae.models.autoencoder import MaskedOutput
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.models.pools import Pool


class Backbone(Protocol):
    """A `torch.nn.Module` whose tokens can be measured: an encoder, with or without more behind it.

    Structural: a class of any family is one that has these members. Those from `to` on are
    `nn.Module`'s own.
    """

    preprocess: Preprocess
    """How the training images were prepared; saved and loaded with the weights."""

    @property
    def kind(self) -> str:
        """How `config.json` of its weights names it: a row of `evaluation.backbones.KINDS`."""
        ...

    @property
    def match(self) -> Any:
        """For a ViT-MAE: in what it equals a CRATE-MAE of its configuration. None for others."""
        ...

    @property
    def config(self) -> ModelConfig:
        """Sizes, in the terms of our own models."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, 1 + L, d) of images, after the last layer and the final norm."""
        ...

    def layer_tokens(
        self, images: Tensor, layers: Sequence[int | None]
    ) -> dict[int | None, Tensor]:
        """Tokens (B, 1 + L, d) after each of so many encoder layers; None: as `encode`."""
        ...

    def untrained(self, seed: int) -> "Backbone":
        """The random baseline: the same model with fresh weights, on the CPU."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The model itself, moved."""
        ...

    def eval(self) -> Any:
        """The model itself, in eval mode."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All parameters."""
        ...

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by name."""
        ...

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Its parts by name."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Itself and all modules inside."""
        ...


class MaskedAutoencoder(Backbone, Protocol):
    """A backbone with a decoder behind it: it completes masked images."""

    def __call__(
        self,
        images: Tensor,
        mask: Tensor | None = ...,
        *,
        kept: int | None = ...,
        layer: int | None = ...,
    ) -> MaskedOutput:
        """Loss, prediction, mask and latent tokens for images; `mask` (B, L), True = removed.

        `layer` says after how many encoder layers the latent tokens are taken; None: all, and norm.
        """
        ...

    def encode_masked(
        self, images: Tensor, mask: Tensor, kept: int | None = ..., layer: int | None = ...
    ) -> Tensor:
        """The latent tokens alone, as calling the model returns them."""
        ...

    def target(self, images: Tensor) -> Tensor:
        """What the prediction for images is compared with (B, L, h*w*C), float32 or wider."""
        ...

    def tensors_to_loss(self, images: Tensor, mask: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of the tensors on the way to the masked loss, in order of computation."""
        ...

    def recompute_layers(self) -> None:
        """Make training recompute layers in the backward pass to save memory."""
        ...


class ImageClassifier(Backbone, Protocol):
    """A backbone with a linear head on its pooled features: it classifies images."""

    head: nn.Linear
    pool: Pool
    class_names: tuple[str, ...] | None

    @property
    def pooled_layer(self) -> int | None:
        """After how many layers tokens are pooled for the head; None: after the final norm, too."""
        ...

    def score(self, features: Tensor) -> Tensor:
        """Class scores (B, classes) of what was pooled (B, values of a row) at `pooled_layer`."""
        ...

    def __call__(self, images: Tensor, keep: Tensor | None = ...) -> Tensor:
        """Class scores (B, classes) of images; `keep` (layers, B) is stochastic depth."""
        ...

    def tensors_to_scores(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of the tensors on the way to the scores, in order of computation."""
        ...

    def recompute_layers(self) -> None:
        """Make training recompute layers in the backward pass to save memory."""
        ...
