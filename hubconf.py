"""For `torch.hub`: `torch.hub.load("OWNER/REPOSITORY", "crate_mae", "cifar10-shallow")`.

PyTorch imports this file from a checkout; the package itself need not be installed.
"""

import sys
from pathlib import Path
from typing import Any

dependencies = ["torch", "torchvision", "safetensors", "huggingface_hub", "yaml", "lazy_loader"]

sys.path.insert(0, str(Path(__file__).parent / "src"))


def crate_mae(weights: str = "cifar10-shallow", **overrides: Any) -> Any:
    """The model of weights, in eval mode, as `crate_mae.load_model` finds them.

    A weights folder, the name of a shipped model, or a repository on the Hub, OWNER/NAME. With
    `overrides`, a fresh model: `weights` then names a preset, and they replace single fields of it.
    """
    from crate_mae import build_model, load_model

    return build_model(weights, **overrides) if overrides else load_model(weights)
