"""What other libraries read in a weights folder, so that one folder serves them all.

Our own keys, those of transformers and those of timm stand side by side in `config.json`; each
reader passes over what is not its own. Nothing here imports either library.
"""

from typing import Any

from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.models.field_names import to_transformers
from crate_mae.models.pools import WIDE

OWN_KEYS = ("format", "model", "config", "classifier")
"""Keys of `config.json` that we read ourselves."""
MODEL_TYPE = "crate_mae"
"""How transformers calls this family of models."""
ARCHITECTURE = "crate_mae"
"""How timm calls a model of this family whose configuration stands beside its name."""
PROCESSOR = "preprocessor_config.json"
"""The file that transformers looks for its image processor in."""
BICUBIC = 3
"""Pillow's number of the interpolation."""
CLASSES = {
    "CrateMAE": "CrateMAEForPreTraining",
    "CrateClassifier": "CrateMAEForImageClassification",
}
"""Our kinds of models to transformers' classes."""


def for_every_library(
    described: dict[str, Any], config: ModelConfig, preprocess: Preprocess
) -> dict[str, Any]:
    """The content of `config.json`: what describes a model for us, for transformers and for timm.

    `described` is ours: format, model, config and, of a classifier, its head. It stays alone for
    kinds of models that no other library has a class for.
    """
    if described["model"] not in CLASSES:
        return described
    return {
        **described,
        **_transformers_keys(described, config),
        **_timm_keys(described, config, preprocess),
        # With timm's keys beside them, transformers looks for the processor's here as well.
        **processor_keys(preprocess),
    }


def processor_keys(preprocess: Preprocess) -> dict[str, Any]:
    """What transformers' image processor of this family is told."""
    height, width = preprocess.size
    return {
        "image_processor_type": "CrateMAEImageProcessor",
        "size": {"height": height, "width": width},
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": BICUBIC,
    }


def timm_cfg(config: ModelConfig, preprocess: Preprocess, *, num_classes: int) -> dict[str, Any]:
    """What timm's `pretrained_cfg` says of a model: its input, and the names of two layers.

    The input is of the size that images are brought to. timm builds the model for it, with the
    positions of that grid, also where the configuration was made for another.
    """
    return {
        "input_size": [config.channels, *preprocess.size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "num_classes": num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def unsupported_by_timm(config: ModelConfig, pool: str | None = None) -> list[str]:
    """Fields and values of a configuration that timm's vision transformers cannot have.

    With the `pool` of a classifier's head, its own or timm's, where there is one.
    """
    wanted = {"embedding": "conv", "positions": "sincos", "head_norm": "tokens"}
    foreign = [
        f"{name} {getattr(config, name)!r}"
        for name, value in wanted.items()
        if getattr(config, name) != value
    ]
    return [*foreign, *([f"pool {pool!r}"] if pool in WIDE else [])]


def _transformers_keys(described: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    keys = {
        "model_type": MODEL_TYPE,
        "architectures": [CLASSES[described["model"]]],
        "dtype": "float32",
        **to_transformers(config),
    }
    head = described.get("classifier")
    if head is not None:
        names = head["class_names"] or [f"LABEL_{i}" for i in range(head["num_classes"])]
        keys["id2label"] = {str(index): name for index, name in enumerate(names)}
        keys["label2id"] = {name: index for index, name in enumerate(names)}
        keys["pool"] = head["pool"]
    return keys


def _timm_keys(
    described: dict[str, Any], config: ModelConfig, preprocess: Preprocess
) -> dict[str, Any]:
    head = described.get("classifier")
    classes = 0 if head is None else head["num_classes"]
    of_classifier = None if head is None else head["pool"]
    # A wide pool keeps its name, so that timm's class refuses what it cannot pool.
    pool = "token" if of_classifier == "cls" else of_classifier if of_classifier in WIDE else "avg"
    # timm's average leaves the class token out unless it is told not to.
    prefix = {"pool_include_prefix": True} if of_classifier == "mean-all" else {}
    keys: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "num_classes": classes,
        "num_features": config.dim,
        "global_pool": pool,
        "model_args": {"config": config.to_dict(), "global_pool": pool, **prefix},
        "pretrained_cfg": timm_cfg(config, preprocess, num_classes=classes),
    }
    if head is not None and head["class_names"]:
        keys["label_names"] = list(head["class_names"])
    return keys
