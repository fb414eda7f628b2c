"""What a weights folder holds."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from crate_mae.common.text_tables import named_values
from crate_mae.models.backbone import Backbone


def describe_model(model: Backbone, *, folder: Path, sha256: str) -> dict[str, Any]:
    """Kind, configuration, preprocessing, parameter counts by part and hash; JSON-able.

    `folder` is where its weights lie, `sha256` that of their tensor file.
    """
    parts = {name: _count(part) for name, part in model.named_children()}
    parts["tokens"] = sum(p.numel() for _, p in model.named_parameters(recurse=False))
    return {
        "folder": str(folder),
        "model": model.kind,
        "parameters": _count(model),
        "parameters_by_part": {name: count for name, count in parts.items() if count},
        "size_mb": round(sum(v.numel() * v.element_size() for v in model.parameters()) / 1e6, 3),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}),
        "finite": all(bool(torch.isfinite(p).all()) for p in model.parameters()),
        "config": model.config.to_dict(),
        "preprocess": model.preprocess.to_dict(),
        "sha256": sha256,
        **_head(model),
    }


def weights_table(facts: dict[str, Any]) -> str:
    """The facts of `describe_model` as aligned text."""
    parts = ", ".join(f"{name} {count:,}" for name, count in facts["parameters_by_part"].items())
    rows = [
        ("folder", facts["folder"]),
        ("model", facts["model"]),
        ("parameters", f"{facts['parameters']:,} ({parts})"),
        ("size", f"{facts['size_mb']} MB, {', '.join(facts['dtypes'])}"),
        ("finite", "yes" if facts["finite"] else "NO: some weights are not finite"),
        *((name, _text(value)) for name, value in facts["config"].items()),
        *((f"images: {name}", _text(value)) for name, value in facts["preprocess"].items()),
        *((f"head: {name}", _text(value)) for name, value in facts.get("segmenter", {}).items()),
        ("sha256", facts["sha256"]),
    ]
    return "\n".join(named_values(rows))


def _head(model: Backbone) -> dict[str, Any]:
    """Head and classes of a model that tells classes of pixels, under `segmenter`; else nothing."""
    described: dict[str, Any] = getattr(model, "describe_head", dict)()
    return {key: value for key, value in described.items() if key == "segmenter"}


def _count(module: Backbone | nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _text(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)
