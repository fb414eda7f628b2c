"""What other libraries call the fields of a `ModelConfig`; loads without torch."""

from dataclasses import fields
from typing import Any

from crate_mae.models.config import ModelConfig

TRANSFORMERS_NAMES = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_num_heads": "decoder_num_attention_heads",
    "channels": "num_channels",
}
"""Our name of a field to that of transformers, where they differ."""


def to_transformers(config: ModelConfig) -> dict[str, Any]:
    """Plain values of every field under the name that transformers has for it."""
    return {TRANSFORMERS_NAMES.get(name, name): v for name, v in config.to_dict().items()}


def from_transformers(values: dict[str, Any]) -> ModelConfig:
    """The configuration that such values mean; all other keys are passed over.

    Raises ValueError, in our names, for values that do not fit together.
    """
    own = [field.name for field in fields(ModelConfig)]
    names = {name: TRANSFORMERS_NAMES.get(name, name) for name in own}
    return ModelConfig(**{name: values[other] for name, other in names.items() if other in values})
