"""ViT-MAE, the baseline: transformers' ViT-MAE behind the interface of our own models.

Three things are put right that a model straight from transformers gets wrong for a comparison:
its patches are shuffled even when none is masked, its fixed position tables (and class token) are
zero when it is built from a configuration, and the tables become trainable when it is loaded.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE, MaskedOutput
from crate_mae.models.backbone import Backbone
from crate_mae.models.config import MAX_DIM, ModelConfig, Preprocess
from crate_mae.models.initial_values import init_linear
from crate_mae.models.loss import masked_mse, masked_target
from crate_mae.models.masks import visible_count
from crate_mae.models.patches import sincos_positions

Match = Literal["configuration", "parameters"]


class ViTMAE(nn.Module):
    """A transformers `ViTMAEForPreTraining` with `encode` as our models have it."""

    kind: ClassVar[str] = "vit_mae"
    """How `config.json` of its weights names it."""
    match: Match = "configuration"

    def __init__(self, model: Any, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        """The transformers model; train it as any other of that library."""
        self.preprocess = preprocess
        """How images are prepared for it."""
        for table in position_tables(model):
            table.requires_grad_(False)

    @property
    def vitmae(self) -> "ViTMAE":
        """Itself: a classifier has a ViT-MAE under this name."""
        return self

    @functools.cached_property
    def config(self) -> ModelConfig:
        """Its sizes and its target, as our own models tell theirs."""
        return sizes_of(self.model.config.to_dict())

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        kept: int | None = None,
        layer: int | None = None,
    ) -> MaskedOutput:
        """What `CrateMAE` returns for images (B, C, H, W): loss, prediction, mask, latent tokens.

        Only visible patches are encoded. `mask` (B, L) must keep the same number of patches in
        every image; `kept` may tell how many. Raises ValueError where it does not.
        """
        encoded, mask = self._encoded(images, mask, kept, layer)
        # Not the whole model, which would compute its own loss beside ours.
        decoded = self.model.decoder(encoded.last_hidden_state, encoded.ids_restore)
        prediction, latent = decoded.logits, _latent(encoded, layer)
        loss = masked_mse(prediction, self.target(images), mask)
        return MaskedOutput(loss, prediction, mask, latent)

    def encode_masked(
        self, images: Tensor, mask: Tensor, kept: int | None = None, layer: int | None = None
    ) -> Tensor:
        """Latent tokens (B, 1 + V, d) of masked images after so many layers; None: and the norm."""
        return _latent(self._encoded(images, mask, kept, layer)[0], layer)

    def _encoded(
        self, images: Tensor, mask: Tensor, kept: int | None, layer: int | None
    ) -> tuple[Any, Tensor]:
        """What the library's encoder returns for masked images, and the mask on their device."""
        mask = mask.to(images.device, non_blocking=True)
        kept = visible_count(mask) if kept is None else kept
        with self._masking(1 - (kept + 0.5) / mask.shape[1]):  # it keeps int(L (1 - ratio))
            # The patches are sorted by this noise: visible ones come first, in raster order.
            order = torch.arange(mask.shape[1], device=images.device) + mask * mask.shape[1]
            encoded = self.model.vit(
                images, noise=order.float(), output_hidden_states=layer is not None
            )
        return encoded, mask

    def target(self, images: Tensor) -> Tensor:
        """What the prediction for images is compared with (B, L, h*w*C), float32 or wider."""
        config = self.config
        return masked_target(images, config.patch_hw, normalise=config.norm_pix_loss)

    def recompute_layers(self) -> None:
        """Make training recompute layers in the backward pass to save memory."""
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        (enable or self.model.gradient_checkpointing_enable)()  # its name in older transformers

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, 1 + L, d) of images (B, C, H, W): class token, then patches in raster order.

        Nothing is masked and nothing is random; taken after the final encoder norm.
        """
        return self.layer_tokens(images, (None,))[None]

    def layer_tokens(
        self, images: Tensor, layers: Sequence[int | None]
    ) -> dict[int | None, Tensor]:
        """Tokens (B, 1 + L, d) after each of `layers` encoder layers; None: after the final norm.

        Raises ValueError for images of another size or number of channels than the model's.
        """
        shape = (self.preprocess.channels, *self.preprocess.size)
        if images.ndim != 4 or tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"images must be (B, {', '.join(map(str, shape))}) for this ViT-MAE,"
                f" not {tuple(images.shape)}"
            )
        return self.unmasked(images, layers)

    def unmasked(
        self, images: Tensor, layers: Sequence[int | None], *, resized: bool = False
    ) -> dict[int | None, Tensor]:
        """As `layer_tokens`; with `resized` for images of any whole number of patches.

        Positions are then interpolated by transformers (bicubic).
        """
        side = int(self.model.config.patch_size)
        patches = (images.shape[-2] // side) * (images.shape[-1] // side)
        # The patches are sorted by this noise: ascending noise keeps them where they are.
        noise = torch.arange(patches, device=images.device, dtype=torch.float32)
        with self._masking(0.0):
            output = self.model.vit(
                images,
                noise=noise.expand(len(images), -1),
                output_hidden_states=True,
                interpolate_pos_encoding=resized and images.shape[-2:] != self.preprocess.size,
            )
        final = {None: output.last_hidden_state}
        return {i: final[i] if i is None else output.hidden_states[i] for i in layers}

    def tensors_to_loss(self, images: Tensor, mask: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of the tensors on the way to the masked loss; its layers are not told."""
        output = self(images, mask)
        yield "prediction (the layers of ViT-MAE are not looked into)", output.prediction
        yield "target", self.target(images)
        yield "loss", output.loss

    def untrained(self, seed: int) -> "ViTMAE":
        """A ViT-MAE of the same configuration with fresh weights."""
        return build_vitmae(self.model.config, preprocess=self.preprocess, seed=seed)

    @contextlib.contextmanager
    def _masking(self, ratio: float) -> Iterator[None]:
        """A context in which the model masks this share; its own ratio is put back after it."""
        config = self.model.config
        ratio, config.mask_ratio = config.mask_ratio, ratio
        try:
            yield
        finally:
            config.mask_ratio = ratio


def vitmae_config(config: ModelConfig, match: Match = "configuration") -> Any:
    """The transformers `ViTMAEConfig` of the ViT-MAE to compare a CRATE-MAE with.

    "configuration": the same image, patch, channels, width, depths, heads and target; MLPs are
    four times as wide, as in MAE. "parameters": the same but for the width, which is the multiple
    of 4 and of both head counts at which the trainable parameters come nearest to CRATE-MAE's.
    Raises ValueError for non-square images or patches, which transformers cannot build.
    """
    if match not in get_args(Match):
        raise ValueError(f"match must be one of {', '.join(get_args(Match))}, not {match!r}")
    if len(set(config.image_hw)) > 1 or len(set(config.patch_hw)) > 1:
        raise ValueError(
            f"transformers' ViT-MAE needs square images and patches, not images {config.image_hw}"
            f" in patches {config.patch_hw}"
        )
    width = config.dim if match == "configuration" else _width_of_equal_count(config)
    return transformers_library().ViTMAEConfig(
        image_size=config.image_hw[0],
        patch_size=config.patch_hw[0],
        num_channels=config.channels,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        decoder_hidden_size=width,
        decoder_intermediate_size=4 * width,
        decoder_num_hidden_layers=config.decoder_depth,
        decoder_num_attention_heads=config.decoder_num_heads,
        norm_pix_loss=config.norm_pix_loss,
        layer_norm_eps=1e-6,
    )


def sizes_of(values: Mapping[str, Any]) -> ModelConfig:
    """Our own configuration with the sizes and the target of a transformers ViT-MAE's values.

    Width and heads of the decoder are the encoder's there, whatever they are here. Raises
    ValueError for sizes that are outside our limits.
    """
    return ModelConfig(
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        channels=values["num_channels"],
        dim=values["hidden_size"],
        depth=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        decoder_depth=values["decoder_num_hidden_layers"],
        decoder_num_heads=values["num_attention_heads"],
        norm_pix_loss=values["norm_pix_loss"],
    )


def build_vitmae(config: Any, *, preprocess: Preprocess, seed: int) -> ViTMAE:
    """A ViT-MAE of a `ViTMAEConfig` with fresh weights, initialised as MAE describes (appendix A).

    Xavier uniform for linear maps and patch filters, tokens normal with deviation 0.02, sin-cos
    tables on both sides.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers_library().ViTMAEForPreTraining(config)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                init_linear(module)
        embeddings = model.vit.embeddings
        filters = embeddings.patch_embeddings.projection
        nn.init.xavier_uniform_(filters.weight.data.view(len(filters.weight), -1))
        nn.init.zeros_(filters.bias)
        nn.init.normal_(embeddings.cls_token, std=0.02)
        nn.init.normal_(model.decoder.mask_token, std=0.02)
    side = config.image_size // config.patch_size
    for table in position_tables(model):
        table.data.copy_(sincos_positions(table.shape[-1], (side, side)))
    return ViTMAE(model, preprocess).eval()


def vitmae_baseline(model: Backbone, match: Match = "configuration", seed: int = 0) -> ViTMAE:
    """The untrained ViT-MAE of a model's sizes, with its preprocessing and on its device."""
    baseline = build_vitmae(
        vitmae_config(model.config, match), preprocess=model.preprocess, seed=seed
    )
    return baseline.to(next(model.parameters()).device)


def _latent(encoded: Any, layer: int | None) -> Tensor:
    """Tokens after so many layers of what the library's encoder returned; None: after the norm."""
    latent: Tensor = encoded.last_hidden_state if layer is None else encoded.hidden_states[layer]
    return latent


def position_tables(model: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """The fixed tables of a transformers ViT-MAE: (1, 1 + L, d), of encoder and decoder."""
    return model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed


def _width_of_equal_count(config: ModelConfig) -> int:
    with torch.device("meta"):
        target = sum(p.numel() for p in CrateMAE(config).parameters())
    unit = math.lcm(4, config.num_heads, config.decoder_num_heads)
    width = unit
    while _count(config, width) < target:
        width += unit
    if width > MAX_DIM:
        raise ValueError(
            f"a ViT-MAE of {target:,} parameters would be {width} wide, above the limit of"
            f" {MAX_DIM}"
        )
    below = max(unit, width - unit)
    return min((below, width), key=lambda d: abs(_count(config, d) - target))


def _count(config: ModelConfig, d: int) -> int:
    """Trainable parameters of the baseline of width d (the fixed position tables do not count)."""
    layers = (config.depth + config.decoder_depth) * (12 * d * d + 13 * d)
    patch = config.patch_dim
    encoder = patch * d + d + d + 2 * d  # filters, class token, norm
    decoder = d * d + d + d + 2 * d + patch * d + patch  # embedding, mask token, norm, prediction
    return layers + encoder + decoder


def transformers_library() -> Any:
    """The module `transformers`; ImportError with the way to install it."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            'ViT-MAE needs transformers, which is not installed: pip install "crate-mae[hf]"'
        ) from error
    return transformers
