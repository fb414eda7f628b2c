# Copyright 2026 The CRATE-MAE developers. MIT licence.
"""The configuration of a CRATE-MAE in transformers: every field of `ModelConfig`, and four more."""

from dataclasses import fields
from typing import Any, get_args

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from crate_mae.models.config import ModelConfig
from crate_mae.models.field_names import TRANSFORMERS_NAMES, from_transformers
from crate_mae.models.pools import Pool

FOREIGN = (
    "format", "model", "config", "classifier",  # ours
    "architecture", "num_classes", "num_features", "global_pool", "model_args", "pretrained_cfg",
    "image_processor_type", "size", "image_mean", "image_std",  # the image processor's
)  # fmt: skip
"""Keys of a weights folder's `config.json` that tell other readers what these fields tell here."""


def _model_fields(namespace: dict[str, Any]) -> None:
    """Give a class body the fields of ModelConfig, with their defaults, in transformers' names."""
    for field in fields(ModelConfig):
        name = TRANSFORMERS_NAMES.get(field.name, field.name)
        # Their kinds and ranges are checked by ModelConfig, which says what would be right.
        namespace["__annotations__"][name] = Any
        namespace[name] = field.default


@strict
class CrateMAEConfig(BackboneConfigMixin, PreTrainedConfig):
    """What fixes a CRATE-MAE: the fields of `crate_mae.ModelConfig` in transformers' names.

    `dim`, `depth`, `num_heads` and `channels` are `hidden_size`, `num_hidden_layers`,
    `num_attention_heads` and `num_channels`; `decoder_depth` and `decoder_num_heads` likewise; all
    others keep their names. Raises ValueError listing every value that does not fit.
    """

    model_type = "crate_mae"

    mask_ratio: float = 0.75
    """Share of patches that `CrateMAEForPreTraining` removes where it is given no mask."""
    pool: str = "mean"
    """What is pooled: "mean" of the patch tokens, "mean-all" tokens, "cls", the class token, or a
    wider one, "mean-std" or "layers": mean and standard deviation of the patch tokens."""
    apply_layernorm: bool = True
    """Whether feature maps of a backbone go through the encoder's final norm."""
    reshape_hidden_states: bool = True
    """Whether feature maps of a backbone are maps (B, d, rows, columns), and not tokens."""
    _model_fields(locals())
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in FOREIGN:
            kwargs.pop(name, None)
        if self.pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, not {self.pool!r}")
        layers = self.to_model_config().depth
        self.stage_names = ["stem", *(f"stage{index}" for index in range(1, layers + 1))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None),
            out_features=kwargs.pop("out_features", None),
        )
        super().__post_init__(**kwargs)

    def to_model_config(self) -> ModelConfig:
        """The same as our own configuration; ValueError where values do not fit together."""
        return from_transformers(dict(vars(self)))


__all__ = ["CrateMAEConfig"]
