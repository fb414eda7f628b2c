# Copyright 2026 The CRATE-MAE developers. MIT licence.
"""The configuration of a CRATE-MAE in transformers: every field of `ModelConfig`, and five more."""

from dataclasses import fields, replace
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
    trained_image_size: Any = None
    """Height and width of the images that the weights were trained on; None means `image_size`.
    Patches of other sizes lie in its extent. A configuration that is read has it from the file."""
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

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of such values, and what of `kwargs` it has no use for if asked.

        An `image_size` among `kwargs`, or one that is set later, is that of images to be fed: the
        weights stay those of the size in `config_dict`.
        """
        if config_dict.get("trained_image_size") is None:
            size = config_dict.get("image_size", cls.image_size)
            config_dict = {**config_dict, "trained_image_size": size}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the trained size is among them only where it is not `image_size`."""
        values: dict[str, Any] = super().to_dict()
        trained = values.pop("trained_image_size", None)
        if trained is not None and _both(trained) != _both(values.get("image_size")):
            values["trained_image_size"] = trained
        return values

    def to_model_config(self) -> ModelConfig:
        """Our own configuration of the same weights: its image size is the trained one.

        Raises ValueError where values do not fit together.
        """
        told = self._as_told()
        trained = self.trained_image_size
        return told if trained is None else replace(told, image_size=trained)

    def grid_to_feed(self) -> tuple[int, int]:
        """Patches down and across of images of `image_size`."""
        return self._as_told().grid

    def _as_told(self) -> ModelConfig:
        return from_transformers(dict(vars(self)))


def _both(size: Any) -> Any:
    """Height and width of a plain size; one number means square."""
    return [size, size] if isinstance(size, int) else size


__all__ = ["CrateMAEConfig"]
