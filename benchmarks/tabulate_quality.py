"""The outcome of a matrix as one table: what is there of it, told as it is."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open

from compared_figures import compared_curves, variant_losses
from crate_mae.batches.config import Masking
from crate_mae.common.environment import environment
from crate_mae.common.files import write_atomically
from crate_mae.evaluation.backbones import load_masked_autoencoder
from crate_mae.models.cost import counted_flops, model_cost, parameter_count
from crate_mae.training.metrics_log import read_metrics
from crate_mae.training.run_folder import last_metrics, load_config_values
from crate_mae.vitmae.model import ViTMAE
from crate_mae.weights.shipped import TENSORS
from matrix import (
    ALTER,
    EARLIER,
    MEASURES,
    TIMES,
    Matrix,
    ablation_folder,
    compared_folder,
    finetune_folder,
    load_matrix,
    search_folder,
)
from quality_tables import altered_names, as_markdown, comparable_losses, panels
from tables import between_markers

MACHINE = ("processor", "cores", "devices", "torch", "git")
BASELINES = ("random baseline", "raw pixels")
RATIOS = 10_000
"""Mask ratios, evenly spaced, that stand for a range from which they are drawn."""


def gathered(matrix: Matrix, out: Path) -> dict[str, Any]:
    """Everything that is done of a matrix, as plain values."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": environment(),
        "trained_on": _machines(matrix, out),
        "matrix": matrix.values,
        "search": {
            model: {f"{rate:g}": _loss(search_folder(out, model, rate)) for rate in matrix.rates}
            for model in matrix.models
        },
        "compared": {
            model: {
                seed: facts
                for seed in matrix.seeds
                if (facts := _run(compared_folder(out, model, seed))) is not None
            }
            for model in matrix.models
        },
        "baselines": _baselines(matrix, out),
        "ablations": {
            variant: facts
            for variant, changes in matrix.variants.items()
            if (facts := _run(ablation_folder(out, variant), altered=ALTER in changes)) is not None
        },
        "finetuned": {
            f"{share:g}": {
                model: {
                    seed: accuracy
                    for seed in matrix.seeds
                    if (accuracy := _test(finetune_folder(out, model, share, seed))) is not None
                }
                for model in (*matrix.models, "scratch")
            }
            for share in matrix.shares
        },
        "times": _json(out / TIMES) or {},
    }


def with_earlier(found: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, and what an earlier record knows beside it; its date and machines named.

    A run that both know is told as it was found, nothing of the other mixed in.
    """
    levels = {"search": 2, "compared": 2, "baselines": 2, "ablations": 1, "finetuned": 3}
    merged = {part: _beside(found[part], earlier[part], deep) for part, deep in levels.items()}
    order = dict.fromkeys([*found["matrix"]["ablations"]["variants"], *merged["ablations"]])
    merged["ablations"] = {v: merged["ablations"][v] for v in order if v in merged["ablations"]}
    keys = ("date", "machine", "trained_on", "earlier")
    told = {key: earlier[key] for key in keys if key in earlier}
    times = found["times"] or earlier.get("times", {})  # of one process, so all or nothing
    return {**found, **merged, "times": times, "earlier": told}


def _beside(new: Any, old: Any, levels: int) -> Any:
    if new is None or old is None or levels == 0:
        return old if new is None else new
    new, old = ({str(key): value for key, value in each.items()} for each in (new, old))
    return {key: _beside(new.get(key), old.get(key), levels - 1) for key in {**new, **old}}


def _loss(folder: Path) -> float | None:
    path = folder / "summary.json"
    return json.loads(path.read_text())["metrics"].get("val/loss") if path.exists() else None


def _run(folder: Path, *, altered: bool = False) -> dict[str, Any] | None:
    """What is known of a finished pre-training run.

    What the steps of an altered one cost was counted by the process that altered the layers.
    """
    if not (folder / "summary.json").exists():
        return None
    records = read_metrics(folder)
    settings = load_config_values(folder)
    batch = int(settings["optim"]["batch_size"])
    passes = json.loads((folder / "summary.json").read_text())["step"] * batch
    completion = _json(folder / "completion.json") or {}
    facts: dict[str, Any] = {
        "base_lr": settings["optim"]["base_lr"],
        "loss": last_metrics(folder)["val/loss"],
        "curve": [[r["epoch"] + 1, r["val/loss"]] for r in records if "val/loss" in r],
        "image_passes": passes,
        "images_per_s_beside_other_work": _median(records, "speed/images_per_s"),
    }
    if altered:  # its classes are not these, and its weights may not fit them
        facts["parameters"] = _stored_parameters(folder / "weights" / TENSORS)
        cost = completion.get("gflops_per_image")
    else:
        model = load_masked_autoencoder(folder)
        facts["parameters"] = parameter_count(model)
        cost = flops_per_image_of(folder, model) / 1e9
    if cost is not None:
        facts["gflops_per_image"] = cost
        facts["pflops"] = cost * passes / 1e6
    if "psnr" in completion:
        facts["psnr"] = completion["psnr"]
    for name in MEASURES:
        for row in _rows(folder / f"{name}.json"):
            if row["subject"] == "model":
                facts[name] = row["accuracy"]
                facts[f"{name} interval"] = row["interval"]
    return facts


def _stored_parameters(file: Path) -> int:
    with safe_open(file, framework="numpy") as weights:
        return sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118


def flops_per_image_of(folder: Path, model: Any) -> float:
    """Floating-point operations of a training step of a run with its model, over its images.

    The mean over all ratios where a run draws them.
    """
    settings = load_config_values(folder)
    batch, masking = int(settings["optim"]["batch_size"]), Masking(**settings["masking"])
    low = masking.ratio
    high = low if masking.ratio_max is None else masking.ratio_max
    steps = 1 if low == high else RATIOS
    ratios = (low + (high - low) * (step + 0.5) / steps for step in range(steps))
    counts = Counter(masking.kept(model.config.grid, ratio) for ratio in ratios)
    return sum(times * _flops(model, batch, kept) for kept, times in counts.items()) / steps


def _flops(model: Any, batch: int, kept: int) -> float:
    """The same at so many kept patches."""
    config = model.config
    if not isinstance(model, ViTMAE):
        ratio = 1 - (kept + 0.5) / config.num_patches  # the half: `kept` whatever is rounded
        return model_cost(config, batch=batch, ratio=ratio).step / batch
    # Those of ViT-MAE grow evenly with the batch.
    images = torch.zeros(1, config.channels, *config.image_hw)
    mask = torch.ones(1, config.num_patches, dtype=torch.bool)
    mask[:, :kept] = False
    return counted_flops(lambda: torch.autograd.backward(model.train()(images, mask=mask).loss))


def _machines(matrix: Matrix, out: Path) -> list[dict[str, Any]]:
    """What the compared runs were trained on, each machine once: it need not be this one."""
    found: list[dict[str, Any]] = []
    for model in matrix.models:
        for seed in matrix.seeds:
            facts = _json(compared_folder(out, model, seed) / "environment.json")
            if facts is not None:
                machine = {key: facts[key] for key in MACHINE}
                found += [] if machine in found else [machine]
    return found


def _baselines(matrix: Matrix, out: Path) -> dict[str, dict[str, float]]:
    folder = compared_folder(out, next(iter(matrix.models)), matrix.seeds[0])
    found: dict[str, dict[str, float]] = {name: {} for name in BASELINES}
    for measure in MEASURES:
        for row in _rows(folder / f"{measure}.json"):
            if row["subject"] in found:
                found[row["subject"]][measure] = row["accuracy"]
                found[row["subject"]][f"{measure} interval"] = row["interval"]
    return found


def _test(folder: Path) -> float | None:
    found = _json(folder / "evaluation.json")
    return None if found is None else float(found["accuracy"])


def _median(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [record[key] for record in records if key in record]
    return float(median(values)) if values else None


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _rows(path: Path) -> list[dict[str, Any]]:
    found = _json(path)
    return [] if found is None else list(found["rows"])


def write_table(
    out: Path,
    *,
    matrix_file: Path,
    json_file: Path | None,
    figure: Path | None,
    variants: Path | None,
    docs: Path | None,
    place: str = "quality",
) -> None:
    """Print the tables and write what is asked for, a page between markers of a place.

    Raises FileNotFoundError when nothing was run in `out`, FileExistsError for a taken file.
    """
    if not (out / "matrix.json").exists():
        raise FileNotFoundError(f"{out} holds no matrix.json: run the matrix there first")
    found = gathered(load_matrix(matrix_file), out)
    if (earlier := _json(out / EARLIER)) is not None:
        found = with_earlier(found, earlier)
    text = as_markdown(found)
    print(text)
    if json_file is not None:
        write_atomically(json_file, json.dumps(found, indent=1) + "\n")
    if figure is not None:
        compared_curves(panels(found), figure)
    if variants is not None:
        variant_losses(comparable_losses(found), variants, emphasised=altered_names(found))
    if docs is not None:
        old = docs.read_text(encoding="utf-8")
        page = between_markers(old, place, text, str(docs))
        if page is None:
            raise ValueError(f"{docs} has no place for tables: <!-- {place} --> <!-- /{place} -->")
        write_atomically(docs, page)
