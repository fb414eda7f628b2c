"""What a weights folder holds."""

from typing import Any

import torch
from torch import nn

from crate_mae.common.text_tables import named_values
from crate_mae.weights.weights_folder import load_model, weights_folder, weights_hash


def describe_weights(folder_or_hub_id: str) -> dict[str, Any]:
    """Kind, configuration, preprocessing, parameter counts by part and hash; JSON-able.

    Raises what `load_model` raises: the weights are loaded, so an answer means that they are whole.
    """
    model = load_model(folder_or_hub_id)
    parts = {name: _count(part) for name, part in model.named_children()}
    parts["tokens"] = sum(p.numel() for _, p in model.named_parameters(recurse=False))
    return {
        "folder": str(weights_folder(folder_or_hub_id)),
        "model": type(model).__name__,
        "parameters": _count(model),
        "parameters_by_part": {name: count for name, count in parts.items() if count},
        "size_mb": round(sum(v.numel() * v.element_size() for v in model.parameters()) / 1e6, 3),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}),
        "finite": all(bool(torch.isfinite(p).all()) for p in model.parameters()),
        "config": model.config.to_dict(),
        "preprocess": model.preprocess.to_dict(),
        "sha256": weights_hash(folder_or_hub_id),
    }


def weights_table(facts: dict[str, Any]) -> str:
    """The facts of `describe_weights` as aligned text."""
    parts = ", ".join(f"{name} {count:,}" for name, count in facts["parameters_by_part"].items())
    rows = [
        ("folder", facts["folder"]),
        ("model", facts["model"]),
        ("parameters", f"{facts['parameters']:,} ({parts})"),
        ("size", f"{facts['size_mb']} MB, {', '.join(facts['dtypes'])}"),
        ("finite", "yes" if facts["finite"] else "NO: some weights are not finite"),
        *((name, _text(value)) for name, value in facts["config"].items()),
        *((f"images: {name}", _text(value)) for name, value in facts["preprocess"].items()),
        ("sha256", facts["sha256"]),
    ]
    return "\n".join(named_values(rows))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _text(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)
