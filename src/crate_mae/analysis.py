"""A white-box analysis from weights to a folder: table, figures, and what they say in short."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from crate_mae.common.environment import environment
from crate_mae.common.files import user_path
from crate_mae.common.progress import StartProgress
from crate_mae.common.text_tables import aligned
from crate_mae.figures.layer_curves import (
    MAX_MODELS,
    draw_layers,
    draw_subspace_angles,
    draw_weights,
)
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.sources.base import ImageSource
from crate_mae.weights.weights_folder import load_model, weights_hash
from crate_mae.whitebox.catalogue import MEASURES
from crate_mae.whitebox.layerwise import Analysis, Precision, analyse
from crate_mae.whitebox.measures import EPS_SQUARED
from crate_mae.whitebox.table import CSV, JSON, Measurement, curve, models_of, write_table

RANDOM = "random"
FIGURES = ("layers", "weights", "angles")
KINDS = (".png", ".svg")


@dataclass(frozen=True, kw_only=True)
class AnalysedModel:
    """A model of a comparison."""

    name: str
    model: CrateMAE | CrateEncoder
    sha256: str | None
    """Of the weights file; None for a random baseline."""


def check_analysis_folder(folder: str | Path, *, overwrite: bool = False) -> Path:
    """The folder, once an analysis can be written there: call it before any work.

    Raises FileExistsError for a file and for a folder with content, unless `overwrite` is set and
    the content is an older analysis alone.
    """
    folder = user_path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; an analysis is a folder")
    content = {item.name for item in folder.iterdir()} if folder.exists() else set()
    own = {JSON, CSV, *(f"{name}{kind}" for name in FIGURES for kind in KINDS)}
    if content - own:
        raise FileExistsError(
            f"{folder} holds other files ({sorted(content - own)[0]}); name an empty or new folder"
        )
    if content and not overwrite:
        raise FileExistsError(f"{folder} holds an analysis; name another or ask to overwrite it")
    return folder


def open_models(
    weights: str, compare: Sequence[str] = (RANDOM,), *, seed: int = 0
) -> list[AnalysedModel]:
    """The model of `weights` and those beside it: "random" is its random baseline.

    Raises ValueError for more than four models and for one named twice, and what `load_model`
    raises.
    """
    if len(compare) >= MAX_MODELS:
        raise ValueError(
            f"{1 + len(compare)} models are too many for one analysis; at most {MAX_MODELS}"
        )
    if len(set(compare)) < len(compare):
        raise ValueError(f"each model can be compared once, not {', '.join(compare)}")
    model = load_model(weights)
    subjects = [AnalysedModel(name="model", model=model, sha256=weights_hash(weights))]
    for other in compare:
        if other == RANDOM:
            fresh = model.untrained(seed).to(next(model.parameters()).device)
            subjects.append(AnalysedModel(name="random baseline", model=fresh, sha256=None))
        else:
            taken = {subject.name for subject in subjects}
            base = Path(other).name or other
            counted = (f"{other} ({number})" for number in count(2))
            name = next(name for name in chain((base, other), counted) if name not in taken)
            subjects.append(
                AnalysedModel(name=name, model=load_model(other), sha256=weights_hash(other))
            )
    return subjects


def analyse_models(
    subjects: Sequence[AnalysedModel],
    source: ImageSource,
    folder: str | Path,
    *,
    eps_squared: float = EPS_SQUARED,
    precision: Precision = "float32",
    batch_size: int = 64,
    overwrite: bool = False,
    progress: StartProgress | None = None,
) -> tuple[list[Measurement], dict[str, Any]]:
    """(rows, facts) of an analysis that now lies in `folder`, with its figures as PNG and SVG.

    Each model prepares the images in its own way. Raises as `check_analysis_folder` and `analyse`.
    """
    folder = check_analysis_folder(folder, overwrite=overwrite)
    found: dict[str, Analysis] = {
        subject.name: analyse(
            subject.model,
            source,
            name=subject.name,
            eps_squared=eps_squared,
            precision=precision,
            batch_size=batch_size,
            progress=progress(f"layers, {subject.name}") if progress else None,
        )
        for subject in subjects
    }
    rows = [row for analysis in found.values() for row in analysis.rows]
    overlaps = {name: analysis.overlaps for name, analysis in found.items()}
    first = found[subjects[0].name]
    facts = {
        "models": [{"name": subject.name, "sha256": subject.sha256} for subject in subjects],
        "sha256": subjects[0].sha256,
        "data": source.address,
        "split": source.split,
        "fingerprint": source.fingerprint(),
        "images": first.images,
        "unreadable": [list(item) for item in first.unreadable],
        "eps_squared": eps_squared,
        "precision": precision,
        "overlaps": overlaps,
        "environment": {key: value for key, value in environment().items() if key != "packages"},
    }
    json.dumps(facts)  # whatever cannot be written must be found before anything is
    write_table(rows, facts, folder)
    draw_analysis(rows, overlaps, folder)
    return rows, facts


def draw_analysis(
    rows: Sequence[Measurement], overlaps: dict[str, Any], folder: Path
) -> list[Path]:
    """The figures of an analysis, as PNG and SVG, now in its folder."""
    first, *others = KINDS
    drawn = [
        draw_layers(rows, folder / f"layers{first}", overwrite=True, kinds=others),
        draw_weights(rows, folder / f"weights{first}", overwrite=True, kinds=others),
        draw_subspace_angles(overlaps, folder / f"angles{first}", overwrite=True, kinds=others),
    ]
    return [path.with_suffix(kind) for kind in KINDS for path in drawn]


_SUMMARY = (
    ("subspace_coding_rate", "input"),
    ("subspace_coding_rate", "compress"),
    ("subspace_coding_rate", "sparsify"),
    ("zero_fraction", "sparsify"),
    ("lasso_fall", "sparsify"),
    ("mssa_gradient_cosine", "compress"),
    ("mssa_shift_gradient_cosine", "compress"),
    ("atoms_used", "sparsify"),
)
"""Measures and points of the encoder that the summary shows."""


def summary_table(rows: Sequence[Measurement]) -> str:
    """The encoder's layers in short as aligned text, for every model; the table holds the rest.

    Below it, what its columns show.
    """
    names = Counter(name for name, _ in _SUMMARY)
    heads = [
        f"{MEASURES[name].column} {point}" if names[name] > 1 else MEASURES[name].column
        for name, point in _SUMMARY
    ]
    parts = {}
    for model in models_of(rows):
        columns = [
            {
                row.layer: f"{row.mean:.4g}"
                for row in curve(rows, name, model=model, side="encoder", point=point)
            }
            for name, point in _SUMMARY
        ]
        parts[model] = [["layer", *heads]] + [
            [str(layer), *(column.get(layer, "") for column in columns)]
            for layer in sorted(columns[0])
        ]
    lines = iter(aligned([line for part in parts.values() for line in part], left=(), indent="  "))
    shown = []
    for model, part in parts.items():
        shown += [f"{model}, encoder", *islice(lines, len(part))]
    sample = next(row for row in rows if row.measure == "subspace_coding_rate")
    legend = [f"{sample.images} images; rates of tokens of length 1, eps^2 {sample.eps_squared:g}"]
    for name in names:
        legend.append(f"{MEASURES[name].column}: {MEASURES[name].title} ({MEASURES[name].scale})")
    return "\n".join([*shown, *legend])
