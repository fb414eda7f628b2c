# Copyright 2026 The CRATE-MAE developers. MIT licence.
"""CRATE-MAE as transformers' models: the package's own encoder and decoder behind their interface.

State dicts are equal key for key to those of `CrateMAE` and `CrateClassifier`, so that one
`model.safetensors` serves both. Shapes: B images, L patches, N = 1 + L tokens, d token width.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from crate_mae.models.config import ModelConfig
from crate_mae.models.encoder import Encoder
from crate_mae.models.initial_values import INITIAL_VALUES, MASK_TOKEN
from crate_mae.models.layers import DecoderLayer, EncoderLayer, Stack
from crate_mae.models.loss import masked_mse, masked_target
from crate_mae.models.masks import num_kept
from crate_mae.models.mssa import MSSA, Attention
from crate_mae.models.operators import Operators, operators_of, with_initial_values
from crate_mae.models.patches import grid_of
from crate_mae.models.pools import head_width, places_of, pooled
from crate_mae.transformers.configuration_crate_mae import CrateMAEConfig


@dataclass
class CrateMAEForPreTrainingOutput(ModelOutput):
    """What masked completion returns."""

    loss: Tensor | None = None
    """Mean squared error over removed patches."""
    logits: Tensor | None = None
    """Predicted patches (B, L, h*w*C), pixel order row, column, channel."""
    mask: Tensor | None = None
    """(B, L), 1 = removed, 0 = kept."""
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class CrateMAEKernel(nn.Module):
    """softmax(w w^T / sqrt(p)) w by the attention function that the configuration names."""

    num_key_value_groups = 1
    is_causal = False

    def __init__(self, config: CrateMAEConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """(heads (B, K, N, p), weights (B, K, N, N) where the function gives them)."""
        function = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, _eager_attention
        )
        heads, weights = function(
            self, w, w, w, None, dropout=0.0, scaling=w.shape[-1] ** -0.5, is_causal=False
        )
        return heads.transpose(1, 2), weights


class CrateMAEAttention(MSSA):
    """The published operator, whose kernel transformers chooses and whose weights it records."""

    def __init__(self, config: CrateMAEConfig, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.kernel = CrateMAEKernel(config)

    def attend(self, w: Tensor) -> Tensor:
        """What the tokens' coordinates w (B, K, N, p) become in each subspace: (B, K, N, p)."""
        heads: Tensor = self.kernel(w)[0]
        return heads


def _eager_attention(
    module: nn.Module,  # noqa: ARG001 - all arguments of transformers' attention functions
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    weights = (query @ key.mT * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _operators(config: CrateMAEConfig) -> Operators:
    """The operators of the configuration, the published attention with transformers' kernels."""
    own = operators_of(config.to_model_config())

    def attention(model: ModelConfig, num_heads: int) -> Attention:
        made = own.attention(model, num_heads)
        if type(made) is not MSSA:
            return made
        made = CrateMAEAttention(
            config, dim=model.dim, num_heads=num_heads, output_projection=model.output_projection
        )
        return with_initial_values(made, model)

    return replace(own, attention=attention)


@cache
def _recomputable_class(layer: type[nn.Module]) -> type[nn.Module]:
    return type(layer.__name__, (GradientCheckpointingLayer, layer), {})


def _prepare_layers(part: str, layers: Stack[Any]) -> None:
    """Let transformers recompute layers of any class, and draw their values."""
    for layer in layers:
        layer.__class__ = _recomputable_class(layer.__class__)
        _draw_in(part, layer)


class CrateMAEPreTrainedModel(PreTrainedModel):
    """What all CRATE-MAE models share: their encoder and their initial values."""

    config: CrateMAEConfig
    config_class = CrateMAEConfig
    base_model_prefix = "crate_mae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["EncoderLayer", "DecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar = {
        "hidden_states": OutputRecorder(EncoderLayer, layer_name="encoder.layers"),
        "attentions": OutputRecorder(CrateMAEKernel, index=1, layer_name="encoder.layers"),
    }
    # The decoder and the head are passed over where only the encoder is wanted.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"^decoder", r"^prediction", r"^mask_token", r"^head",
    ]  # fmt: skip

    def __init__(self, config: CrateMAEConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.to_model_config(), _operators(config))
        self.encoder.expect_grid(config.grid_to_feed())  # who names a size needs no warning of it
        _draw_in("stem", self.encoder)
        _prepare_layers("encoder", self.encoder.layers)

    def get_input_embeddings(self) -> nn.Module:
        """The convolution that embeds patches."""
        return self.encoder.patch_embed

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set the values that our own constructors draw, for operators of any kind.

        They are drawn anew in a part of one layer, and copied where nothing was loaded.
        """
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif hasattr(module, "drawn_in"):
            part, name = cast("tuple[str, str]", module.drawn_in)
            _copy_own_values(self._fresh(part).get_submodule(name), module)
        elif isinstance(module, CrateMAEForPreTraining):
            init.normal_(module.mask_token, std=MASK_TOKEN)

    def _fresh(self, part: str) -> nn.Module:
        """A part of one layer with fresh values: "stem", "encoder", "decoder" or "head"."""
        config = self.config.to_model_config()
        one = replace(config, depth=1, decoder_depth=1)
        operators = _operators(self.config)
        if part == "stem":
            return Encoder(one, operators)
        if part == "encoder":
            return operators.encoder_layers(one)[0]
        if part == "decoder":
            return operators.decoder_layers(one, operators.encoder_layers(one))[0]
        return self._fresh_head()

    def _fresh_head(self) -> nn.Module:
        """A module with the fresh values of what lies behind the encoder."""
        raise NotImplementedError


def _draw_in(part: str, module: nn.Module) -> None:
    """Note down, for each module below one, in which part and where its values are drawn."""
    for name, below in module.named_modules():
        below.drawn_in = (part, name)


def _copy_own_values(fresh: nn.Module, module: nn.Module) -> None:
    """Copy a new module's own parameters and buffers into those of the same names."""
    for kind in ("_parameters", "_buffers"):
        for name, value in getattr(fresh, kind).items():
            if value is not None:
                own = getattr(module, kind)[name]
                init.copy_(own, value.to(own.dtype))


class CrateMAEModel(CrateMAEPreTrainedModel):
    """The encoder on unmasked images: nothing is removed, nothing is random."""

    def __init__(self, config: CrateMAEConfig) -> None:
        super().__init__(config)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """`last_hidden_state` (B, 1 + L, d) as `CrateMAE.encode`, and `pooler_output`.

        That is (B, d), pooled as `config.pool` says, or wider by a wide pool. Images (B, C, H, W)
        may have any size that the patch divides.
        """
        pool, depth = self.config.pool, self.encoder.config.depth
        places = places_of(pool, None, depth)
        states = self.encoder.layer_tokens(pixel_values.to(self.dtype), places)
        return BaseModelOutputWithPooling(
            last_hidden_state=states[None], pooler_output=pooled([*states.values()], pool)
        )


class CrateMAEForPreTraining(CrateMAEPreTrainedModel):
    """Encoder and decoder: completes masked images."""

    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^head"]

    def __init__(self, config: CrateMAEConfig) -> None:
        super().__init__(config)
        model = config.to_model_config()
        self.mask_token = nn.Parameter(torch.empty(1, 1, model.dim))
        self.decoder: Stack[DecoderLayer] = _operators(config).decoder_layers(
            model, self.encoder.layers
        )
        _prepare_layers("decoder", self.decoder)
        self.decoder_norm = nn.LayerNorm(model.dim, eps=model.final_norm_eps)
        self.prediction = nn.Linear(model.dim, model.patch_dim)
        _draw_in("head", self.prediction)
        self.post_init()

    def _fresh_head(self) -> nn.Module:
        linear = nn.Linear(self.prediction.in_features, self.prediction.out_features)
        INITIAL_VALUES[self.encoder.config.initial_values].linear(linear)
        return linear

    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        noise: Tensor | None = None,
        **_: Any,
    ) -> CrateMAEForPreTrainingOutput:
        """Masked loss, predicted patches and mask for images (B, C, H, W).

        `bool_masked_pos` (B, L) is the mask, True = removed, which must keep `mask_ratio`'s number
        of patches where mask tokens enter in the decoder. Without it the patches of the lowest
        `noise` (B, L) are kept; without either the noise is drawn.
        """
        images = pixel_values.to(self.dtype)
        self.encoder.check_images(images)
        model = self.encoder.config
        grid = grid_of(images, model.patch_hw)
        kept = num_kept(grid[0] * grid[1], self.config.mask_ratio)
        if bool_masked_pos is None:
            mask = _mask_of(noise, images, grid[0] * grid[1], kept)
        else:
            mask = bool_masked_pos.to(images.device, torch.bool).flatten(1)
        encoder, filler = self.encoder, self.mask_token
        latent = encoder.run_layers(encoder.embed_masked(images, mask, filler, kept))
        tokens = encoder.decoder_input(latent, mask, filler, grid)
        for layer in self.decoder:
            tokens = self.decoder.run(layer, tokens)
        prediction = self.prediction(self.decoder_norm(tokens))[:, 1:]
        target = masked_target(images, model.patch_hw, normalise=model.norm_pix_loss)
        return CrateMAEForPreTrainingOutput(
            loss=masked_mse(prediction, target, mask), logits=prediction, mask=mask.float()
        )


def _mask_of(noise: Tensor | None, images: Tensor, patches: int, kept: int) -> Tensor:
    """A mask (B, L) that keeps the `kept` patches of the lowest noise (B, L)."""
    if noise is None:
        noise = torch.rand(images.shape[0], patches, device=images.device)
    visible = noise.to(images.device).topk(kept, dim=1, largest=False).indices
    return torch.ones_like(noise, dtype=torch.bool, device=images.device).scatter(1, visible, False)


class CrateMAEForImageClassification(CrateMAEPreTrainedModel):
    """A linear head on pooled tokens of the encoder."""

    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^decoder", r"^prediction", r"^mask_token"]

    def __init__(self, config: CrateMAEConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.head = nn.Linear(head_width(config.pool, config.to_model_config()), config.num_labels)
        _draw_in("head", self.head)
        self.post_init()

    def _fresh_head(self) -> nn.Module:
        linear = nn.Linear(self.head.in_features, self.head.out_features)
        INITIAL_VALUES[self.encoder.config.initial_values].head(linear)
        return linear

    @can_return_tuple
    @capture_outputs
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Class scores (B, classes) of images (B, C, H, W), and the loss where labels are given."""
        encoder, pool = self.encoder, self.config.pool
        depth, behind = encoder.config.depth, encoder.config.head_norm == "pooled"
        places = places_of(pool, depth if behind else None, depth)
        states = encoder.layer_tokens(pixel_values.to(self.dtype), places)
        row = pooled([*states.values()], pool)
        logits = self.head(encoder.norm(row) if behind else row)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits)


class CrateMAEBackbone(BackboneMixin, CrateMAEPreTrainedModel):
    """Feature maps of the encoder's layers, for detectors and segmenters."""

    def __init__(self, config: CrateMAEConfig) -> None:
        super().__init__(config)
        model = config.to_model_config()
        self.num_features = [model.dim] * (model.depth + 1)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        """`feature_maps` (B, d, rows, columns) of the stages in `out_features`.

        Stage i is what i layers make; the final norm and the shape are as the configuration says.
        """
        found = self._layer_outputs(pixel_values.to(self.dtype), **kwargs)
        rows, columns = grid_of(pixel_values, self.encoder.config.patch_hw)
        maps = []
        for stage, tokens in zip(self.stage_names, found.hidden_states, strict=True):
            if stage not in self.out_features:
                continue
            normed = self.encoder.norm(tokens) if self.config.apply_layernorm else tokens
            if self.config.reshape_hidden_states:
                normed = normed[:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
            maps.append(normed.contiguous())
        return BackboneOutput(
            feature_maps=tuple(maps),
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )

    @capture_outputs(tie_last_hidden_states=False)
    def _capturing(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.encoder(pixel_values))

    def _layer_outputs(self, images: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        wanted = {**kwargs, "output_hidden_states": True, "return_dict": True}
        return cast("BaseModelOutputWithPooling", self._capturing(images, **wanted))


__all__ = [
    "CrateMAEBackbone",
    "CrateMAEForImageClassification",
    "CrateMAEForPreTraining",
    "CrateMAEForPreTrainingOutput",
    "CrateMAEModel",
    "CrateMAEPreTrainedModel",
]
