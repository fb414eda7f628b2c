"""CRATE-MAE: a white-box masked autoencoder.

The public names are listed here once and loaded on first use: importing the package costs
nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crate_mae.models.autoencoder import CrateMAE, MaskedOutput, build_model
    from crate_mae.models.classifier import CrateClassifier
    from crate_mae.models.config import PRESETS, ModelConfig, Preprocess
    from crate_mae.weights.weights_folder import load_model, save_model

__version__ = "0.1.0"

_HOMES = {
    "CrateMAE": "crate_mae.models.autoencoder",
    "MaskedOutput": "crate_mae.models.autoencoder",
    "build_model": "crate_mae.models.autoencoder",
    "CrateClassifier": "crate_mae.models.classifier",
    "PRESETS": "crate_mae.models.config",
    "ModelConfig": "crate_mae.models.config",
    "Preprocess": "crate_mae.models.config",
    "load_model": "crate_mae.weights.weights_folder",
    "save_model": "crate_mae.weights.weights_folder",
}

__all__ = [
    "PRESETS",
    "CrateClassifier",
    "CrateMAE",
    "MaskedOutput",
    "ModelConfig",
    "Preprocess",
    "build_model",
    "load_model",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crate_mae' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
