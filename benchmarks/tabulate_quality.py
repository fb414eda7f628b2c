"""The outcome of a matrix as one table: what is there of it, told as it is."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from crate_mae.environment import environment
from crate_mae.evaluation.backbones import load_completer
from crate_mae.evaluation.vitmae import ViTMAE
from crate_mae.figures.compared import compared_curves
from crate_mae.files import write_atomically
from crate_mae.models.cost import counted_flops, model_cost, parameter_count
from crate_mae.models.masks import num_kept
from crate_mae.training.folder import last_metrics, load_config_values
from crate_mae.training.records import read_metrics
from matrix import (
    MEASURES,
    Matrix,
    ablation_folder,
    compared_folder,
    finetune_folder,
    load_matrix,
    search_folder,
)
from tables import between_markers

OTHER_LOSS = {"masking.ratio", "masking.kind", "model.norm_pix_loss"}
"""Settings under which a loss is of other patches or another target, so that it stands alone."""

BASELINES = ("random twin", "raw pixels")


def gathered(matrix: Matrix, out: Path) -> dict[str, Any]:
    """Everything that is done of a matrix, as plain values."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": environment(),
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
            for variant in matrix.variants
            if (facts := _run(ablation_folder(out, variant))) is not None
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
    }


def _loss(folder: Path) -> float | None:
    return last_metrics(folder).get("val/loss") if (folder / "summary.json").exists() else None


def _run(folder: Path) -> dict[str, Any] | None:
    """What is known of a finished pre-training run."""
    if not (folder / "summary.json").exists():
        return None
    records = read_metrics(folder)
    settings = load_config_values(folder)
    model = load_completer(folder)
    batch = int(settings["optim"]["batch_size"])
    step = _step_flops(model, batch, settings["masking"]["ratio"])
    passes = json.loads((folder / "summary.json").read_text())["step"] * batch
    facts = {
        "base_lr": settings["optim"]["base_lr"],
        "parameters": parameter_count(model),
        "loss": last_metrics(folder)["val/loss"],
        "curve": [[r["epoch"] + 1, r["val/loss"]] for r in records if "val/loss" in r],
        "gflops_per_image": step / batch / 1e9,
        "pflops": step / batch * passes / 1e15,
        "image_passes": passes,
        "images_per_s_beside_other_work": _median(records, "speed/images_per_s"),
    }
    completion = _json(folder / "completion.json")
    if completion is not None:
        facts["psnr"] = completion["psnr"]
    for name in MEASURES:
        for row in _rows(folder / f"{name}.json"):
            if row["subject"] == "model":
                facts[name] = row["accuracy"]
                facts[f"{name} interval"] = row["interval"]
    return facts


def _step_flops(model: Any, batch: int, ratio: float) -> int:
    """Floating-point operations of a training step; those of ViT-MAE grow evenly with the batch."""
    if not isinstance(model, ViTMAE):
        return model_cost(model.config, batch=batch, ratio=ratio).step
    config = model.config
    images = torch.zeros(1, config.channels, *config.image_hw)
    mask = torch.ones(1, config.num_patches, dtype=torch.bool)
    mask[:, : num_kept(config.num_patches, ratio)] = False
    return batch * counted_flops(
        lambda: torch.autograd.backward(model.train()(images, mask=mask).loss)
    )


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


# -- as text ----------------------------------------------------------------------------------


def as_markdown(found: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    return "\n\n".join(
        [
            "\n".join(_comparison(found)),
            "\n".join(_search(found)),
            "\n".join(_finetuned(found)),
            "\n".join(_ablations(found)),
        ]
    )


def _comparison(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| | parameters | GFLOPs an image and step | loss | PSNR | linear probe | kNN"
        " | probe, 50 a class | probe, 500 a class | seeds |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for model, runs in found["compared"].items():
        if not runs:
            continue
        each = list(runs.values())
        first = each[0]
        cells = [
            f"**{model}**",
            f"{first['parameters'] / 1e6:.2f} M",
            f"{first['gflops_per_image']:.3f}",
            _over(each, "loss", "{:.4f}"),
            _over(each, "psnr", "{:.2f} dB"),
            *(_over(each, name, "{:.1f} %", scale=100) for name in MEASURES),
            str(len(each)),
        ]
        yield f"| {' | '.join(cells)} |"
    for name, values in found["baselines"].items():
        cells = [name, "", "", "", "", *(_percent(values.get(m)) for m in MEASURES), ""]
        yield f"| {' | '.join(cells)} |"


def _search(found: Mapping[str, Any]) -> Iterator[str]:
    rates = list(next(iter(found["search"].values())))
    yield f"| loss at base learning rate | {' | '.join(rates)} |"
    yield "|---" * (len(rates) + 1) + "|"
    for model, losses in found["search"].items():
        best = min((loss for loss in losses.values() if loss is not None), default=None)
        cells = [
            "" if loss is None else f"**{loss:.4f}**" if loss == best else f"{loss:.4f}"
            for loss in losses.values()
        ]
        yield f"| {model} | {' | '.join(cells)} |"


def _finetuned(found: Mapping[str, Any]) -> Iterator[str]:
    shares = {share: runs for share, runs in found["finetuned"].items() if any(runs.values())}
    if not shares:
        return
    models = [
        model for model in next(iter(shares.values())) if any(r[model] for r in shares.values())
    ]
    yield f"| fine-tuned with labels | {' | '.join(models)} |"
    yield "|---" * (len(models) + 1) + "|"
    for share, runs in shares.items():
        cells = [_spread([100 * v for v in runs[m].values()], "{:.1f} %") for m in models]
        yield f"| {float(share):.0%} | {' | '.join(cells)} |"


def _ablations(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["ablations"]:
        return
    words = "linear probe, 10,000 images"
    yield f"| variant | parameters | GFLOPs an image and step | loss | PSNR | {words} |"
    yield "|---|---|---|---|---|---|"
    for variant, facts in found["ablations"].items():
        psnr = f"{facts['psnr']:.2f} dB" if "psnr" in facts else ""
        changes = found["matrix"]["ablations"]["variants"].get(variant) or {}
        loss = f"{facts['loss']:.4f}" + (" †" if OTHER_LOSS & set(changes) else "")
        yield (
            f"| {variant} | {facts['parameters'] / 1e6:.2f} M | {facts['gflops_per_image']:.3f}"
            f" | {loss} | {psnr} | {_percent(facts.get('probe'))} |"
        )


def _panels(found: Mapping[str, Any]) -> dict[str, dict[str, list[list[tuple[float, float]]]]]:
    """The curves of the compared models over epochs, and over the operations they cost."""
    compared = {model: list(runs.values()) for model, runs in found["compared"].items() if runs}

    def curves(scale: Callable[[Mapping[str, Any]], float]) -> dict[str, Any]:
        return {
            model: [[(epoch * scale(run), loss) for epoch, loss in run["curve"]] for run in runs]
            for model, runs in compared.items()
        }

    return {
        "epochs": curves(lambda _: 1.0),
        "floating-point operations (10^15)": curves(
            lambda run: run["pflops"] / run["curve"][-1][0]
        ),
    }


def _over(runs: Sequence[Mapping[str, Any]], key: str, form: str, scale: float = 1.0) -> str:
    return _spread([scale * run[key] for run in runs if key in run], form)


def _spread(values: Sequence[float], form: str) -> str:
    """The mean, and the range where there are several."""
    if not values:
        return ""
    mean = form.format(fmean(values))
    if len(values) == 1:
        return mean
    bare = form.split("}")[0] + "}"
    return f"{mean} ({bare.format(min(values))} to {bare.format(max(values))})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def write_table(
    out: Path, *, matrix_file: Path, json_file: Path | None, figure: Path | None, docs: Path | None
) -> None:
    """Nothing; prints the tables and writes what is asked for, a page between its markers.

    Raises FileNotFoundError when nothing was run in `out`, FileExistsError for a taken file.
    """
    if not (out / "matrix.json").exists():
        raise FileNotFoundError(f"{out} holds no matrix.json: run the matrix there first")
    found = gathered(load_matrix(matrix_file), out)
    text = as_markdown(found)
    print(text)
    if json_file is not None:
        write_atomically(json_file, json.dumps(found, indent=1) + "\n")
    if figure is not None:
        compared_curves(_panels(found), figure)
    if docs is not None:
        old = docs.read_text(encoding="utf-8")
        page = between_markers(old, "quality", f"\n{text}\n", str(docs))
        if page is None:
            raise ValueError(f"{docs} has no place for tables: <!-- quality --> <!-- /quality -->")
        write_atomically(docs, page)
