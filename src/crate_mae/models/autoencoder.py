"""CRATE-MAE: the masked autoencoder. Embed, mask, encode, decode, predict, loss.

Shapes: B images (C, H, W), L patches of h x w pixels, N = 1 + L tokens, d token width.
Masks are boolean (B, L) in raster order, True = removed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn

from crate_mae.models.config import ModelConfig, Preprocess, resolve_config
from crate_mae.models.encoder import Encoder
from crate_mae.models.half_steps import HalfStep, half_steps
from crate_mae.models.initial_values import INITIAL_VALUES, MASK_TOKEN
from crate_mae.models.layers import DecoderLayer, Layer, Side, Stack
from crate_mae.models.loss import masked_mse, masked_target
from crate_mae.models.masks import draw_mask
from crate_mae.models.operators import Operators, operators_of
from crate_mae.models.patches import grid_of


class MaskedOutput(NamedTuple):
    """What masked completion returns."""

    loss: Tensor
    """Scalar, float32: mean squared error over removed patches."""
    prediction: Tensor
    """(B, L, h*w*C), pixel order row, column, channel; every patch, removed or not."""
    mask: Tensor
    """(B, L) boolean, True = removed."""
    latent: Tensor
    """Tokens of the masked images, class token first: after the final norm of the encoder, or after
    the layer that was asked for. (B, 1 + V, d) of the V visible patches or, where mask tokens enter
    the encoder, (B, 1 + L, d) of all."""


class CrateMAE(nn.Module):
    """The masked autoencoder of "Masked Completion via Structured Diffusion" (ICLR 2024).

    Call it on images for the masked loss; `encode` for features, `attention` for maps,
    `half_steps` for what every layer does. `operators` makes layers other than the configuration's:
    then it is no CRATE-MAE of the paper any more, and weights alone do not rebuild it.
    """

    kind: ClassVar[str] = "CrateMAE"
    """How `config.json` of its weights names it."""
    match: ClassVar[None] = None

    def __init__(self, config: ModelConfig, operators: Operators | None = None) -> None:
        super().__init__()
        self.config = config
        operators = operators_of(config) if operators is None else operators
        self.preprocess = self.assumed_preprocess = Preprocess.identity(config)
        """How the training images were prepared; saved and loaded with the weights. As long as it
        is the one assumed here, nobody has said: `save_model` then warns."""
        self.encoder = Encoder(config, operators)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.decoder: Stack[DecoderLayer] = operators.decoder_layers(config, self.encoder.layers)
        self.decoder_norm = nn.LayerNorm(config.dim, eps=config.final_norm_eps)
        self.prediction = nn.Linear(config.dim, config.patch_dim)
        nn.init.normal_(self.mask_token, std=MASK_TOKEN)
        INITIAL_VALUES[config.initial_values].linear(self.prediction)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        mask_ratio: float = 0.75,
        generator: Generator | None = None,
        kept: int | None = None,
        layer: int | None = None,
    ) -> MaskedOutput:
        """Loss, prediction, mask and latent tokens for images (B, C, H, W).

        Without a `mask` (B, L) a random one of `mask_ratio` is drawn from the CPU `generator`.
        `kept` may tell how many patches the mask keeps in every image: with mask tokens in the
        decoder that saves an accelerator from waiting for the count. `layer` says how many encoder
        layers the latent tokens of the result have passed; None: all, and the norm.
        Raises ValueError for images or masks of a wrong shape or dtype.
        """
        self.encoder.check_images(images)
        grid = grid_of(images, self.config.patch_hw)
        if mask is None:
            mask = draw_mask("random", grid, mask_ratio, generator, batch=images.shape[0])
        mask = self._checked_mask(mask, images)
        tokens = self.embed_masked(images, mask, kept)
        found = self.encoder.after_layers(tokens, (None, layer))
        latent, asked = found[None], found[layer]
        prediction = self.decode(latent, mask, grid)
        return MaskedOutput(self.loss(images, prediction, mask), prediction, mask, asked)

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, 1 + L, d) of images (B, C, H, W): class token, then patches in raster order.

        Nothing is masked and nothing is random; taken after the final encoder norm.
        """
        features: Tensor = self.encoder(images)
        return features

    def recompute_layers(self, recompute: bool = True) -> None:
        """Set whether training recomputes layers in the backward pass to save memory."""
        self.encoder.layers.recompute = self.decoder.recompute = recompute

    def embed_masked(self, images: Tensor, mask: Tensor, kept: int | None = None) -> Tensor:
        """Tokens that enter the first encoder layer for masked images; see `Encoder.embed_masked`.

        (B, N, d) with mask tokens in place of removed patches or, when mask tokens enter in the
        decoder, (B, 1 + V, d) with the V visible patches only. Positions are added to all of them.
        """
        return self.encoder.embed_masked(images, mask, self.mask_token, kept)

    def encode_masked(
        self, images: Tensor, mask: Tensor, kept: int | None = None, layer: int | None = None
    ) -> Tensor:
        """Latent tokens after so many encoder layers for masked images; shapes as `embed_masked`.

        None: after all layers and the encoder norm.
        """
        return self.encoder.after_layers(self.embed_masked(images, mask, kept), (layer,))[layer]

    def decoder_input(self, latent: Tensor, mask: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, d) that enter the first decoder layer.

        The latent itself or, when mask tokens enter in the decoder, the latent with mask tokens
        put in and positions added to all tokens again. Without a mask the latent is of all patches.
        """
        return self.encoder.decoder_input(latent, mask, self.mask_token, grid)

    def decode(self, latent: Tensor, mask: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Predicted patches (B, L, h*w*C) of a grid (rows, columns) from latent tokens."""
        tokens = self.decoder_input(latent, mask, grid)
        for layer in self.decoder:
            tokens = self.decoder.run(layer, tokens)
        prediction: Tensor = self.prediction(self.decoder_norm(tokens))
        return prediction[:, 1:]

    def target(self, images: Tensor) -> Tensor:
        """What the prediction for images is compared with (B, L, h*w*C), float32 or wider."""
        config = self.config
        return masked_target(images, config.patch_hw, normalise=config.norm_pix_loss)

    def loss(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """The masked mean squared error (scalar) of a prediction (B, L, h*w*C) for images."""
        return masked_mse(prediction, self.target(images), mask)

    def attention(
        self, images: Tensor, layers: int | Sequence[int] = (-1,), side: Side = "encoder"
    ) -> dict[int, Tensor]:
        """Attention weights {layer: (B, heads, N, N)} of unmasked images (B, C, H, W).

        Recomputed from U for the asked layers only; negative numbers count from the last layer,
        keys are counted from the first. `side` is "encoder" or "decoder".
        Raises ValueError for a layer or side that the model does not have, and for attention
        without such weights ("tssa", "exact").
        """
        return self._maps(images, layers, side, HalfStep.attention)

    def membership(
        self, images: Tensor, layers: int | Sequence[int] = (-1,), side: Side = "encoder"
    ) -> dict[int, Tensor]:
        """Memberships of tokens in heads {layer: (B, heads, N)} of attention "tssa"; 1 over heads.

        As `attention` otherwise; raises ValueError for attention without memberships.
        """
        return self._maps(images, layers, side, HalfStep.membership)

    def _maps(
        self,
        images: Tensor,
        layers: int | Sequence[int],
        side: Side,
        read: Callable[[HalfStep], Tensor],
    ) -> dict[int, Tensor]:
        layers_of_side = side_layers(self.stacks, side)
        depth = len(layers_of_side)
        asked = [layers] if isinstance(layers, int) else list(layers)
        wrong = [i for i in asked if not -depth <= i < depth]
        if wrong or not asked:
            raise ValueError(
                f"{side} layers {wrong or asked} do not exist; there are 0 to {depth - 1}"
            )
        if side == "encoder":
            tokens = self.encoder.embed(images)
        else:
            grid = grid_of(images, self.config.patch_hw)
            tokens = self.decoder_input(self.encode(images), None, grid)
        wanted = {i % depth for i in asked}
        maps: dict[int, Tensor] = {}
        for step in half_steps(layers_of_side, tokens):
            if step.attends and step.index in wanted:
                maps[step.index] = read(step)
                if len(maps) == len(wanted):
                    break
        return maps

    @property
    def stacks(self) -> dict[Side, list[Layer]]:
        """The layers of each side."""
        return {"encoder": list(self.encoder.layers), "decoder": list(self.decoder)}

    def half_steps(self, images: Tensor) -> Iterator[HalfStep]:
        """The half steps of encoder, then decoder, for unmasked images (B, C, H, W).

        The decoder runs on the normalised features of all patches, with positions added again where
        mask tokens enter there.
        """
        tokens = self.encoder.embed(images)
        for step in half_steps(self.encoder.layers, tokens):
            yield step
            tokens = step.after
        grid = grid_of(images, self.config.patch_hw)
        tokens = self.decoder_input(self.encoder.norm(tokens), None, grid)
        yield from half_steps(self.decoder, tokens)

    def tensors_to_loss(self, images: Tensor, mask: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every tensor on the way to the masked loss, in order of computation."""
        tokens = self.embed_masked(images, mask)
        yield "patch embedding", tokens
        for step in half_steps(self.encoder.layers, tokens):
            yield f"encoder layer {step.index}, {step.name}", step.after
            tokens = step.after
        tokens = self.decoder_input(
            self.encoder.norm(tokens), mask, grid_of(images, self.config.patch_hw)
        )
        for step in half_steps(self.decoder, tokens):
            yield f"decoder layer {step.index}, {step.name}", step.after
            tokens = step.after
        prediction = self.prediction(self.decoder_norm(tokens))[:, 1:]
        yield "prediction", prediction
        yield "target", self.target(images)
        yield "loss", self.loss(images, prediction, mask)

    def layer_tokens(
        self, images: Tensor, layers: Sequence[int | None]
    ) -> dict[int | None, Tensor]:
        """Tokens (B, 1 + L, d) after each of so many encoder layers; None: as `encode`."""
        return self.encoder.layer_tokens(images, layers)

    def describe_head(self) -> dict[str, Any]:
        """An empty dictionary: there is no head to describe."""
        return {}

    def untrained(self, seed: int) -> "CrateMAE":
        """A model of the same configuration with fresh weights, as images are prepared for it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = CrateMAE(self.config)
        fresh.preprocess = self.preprocess
        return fresh

    def _checked_mask(self, mask: Tensor, images: Tensor) -> Tensor:
        rows, columns = grid_of(images, self.config.patch_hw)
        expected = (images.shape[0], rows * columns)
        if mask.dtype != torch.bool or tuple(mask.shape) != expected:
            raise ValueError(
                f"the mask must be boolean {expected} (True = removed),"
                f" not {mask.dtype} {tuple(mask.shape)}"
            )
        # Counting on an accelerator would make the host wait for it, so only masks made here are.
        if mask.device.type == "cpu" and not torch.compiler.is_compiling() and not mask.any():
            raise ValueError("the mask removes no patch, so there is no loss; use encode instead")
        return mask.to(images.device, non_blocking=True)


def build_model(
    preset_or_config: str | ModelConfig, *, preprocess: Preprocess | None = None, **overrides: Any
) -> CrateMAE:
    """A freshly initialised CrateMAE of a preset or configuration, with single fields replaced.

    `preprocess` says how images become its input (mean and std on the [0, 1] scale); it is saved
    with the weights, and every later measurement prepares images so. Without it, pixels are assumed
    to be scaled to [0, 1] and no more.
    Raises ValueError for an unknown preset or field and for values that do not fit together.
    """
    model = CrateMAE(resolve_config(preset_or_config, **overrides))
    if preprocess is not None:
        preprocess.check(model.config)
        model.preprocess = preprocess
    return model


def side_layers(stacks: dict[Side, list[Layer]], side: Side) -> list[Layer]:
    """The layers of a side; ValueError for one that does not exist or the model does not have."""
    if side not in get_args(Side):
        raise ValueError(f"side must be 'encoder' or 'decoder', not {side!r}")
    if side not in stacks:
        raise ValueError(
            "this model has no decoder; use side 'encoder', or weights of masked pre-training"
        )
    return stacks[side]
