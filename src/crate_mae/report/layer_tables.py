"""The layer analysis of a run: sentences, figures and one table for each measure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crate_mae.common.plain_tables import Cell
from crate_mae.report.blocks import Table, number_cell, text_cell
from crate_mae.report.pictures import Figure, analysis_figures, figure_of
from crate_mae.runs.contents import ANALYSIS, Run
from crate_mae.whitebox.catalogue import MEASURES, measure_of, place_order
from crate_mae.whitebox.table import Measurement, curve, models_of

MAX_LINES = 300
"""Of one table; layers.csv has all."""
FIRST_MEASURES = 5
"""So many of the catalogue are shown at once; the others on demand."""
FIGURES = {
    "layers": (
        "What the tokens go through, layer by layer.",
        "Line charts by layer, trained model and comparisons: rates, effective rank, zeros, LASSO"
        " objective and gradient cosines. The tables below hold the same numbers.",
    ),
    "weights": (
        "The geometry of the weights, layer by layer.",
        "Line charts by layer of distances from orthogonality, overlaps, coherence and step size."
        " The tables below hold the same numbers.",
    ),
    "angles": (
        "Angles between the subspaces of every layer.",
        "Matrices of angles between pairs of subspaces, one for each layer: dark for small angles,"
        " bright for right angles.",
    ),
}
"""Caption and content of the figures of a layer analysis."""


def layers_data(run: Run) -> dict[str, Any]:
    """What the analysis of a run's layers says; `measured` is False where there is none."""
    if not run.layers:
        return {"measured": False}
    first = list(MEASURES)[:FIRST_MEASURES]
    tables = layer_tables(run.layers)
    figures = [_figure(run, path) for path in analysis_figures(run.folder / ANALYSIS)]
    return {
        "measured": True,
        "stale": run.stale(run.layer_facts),
        "images": _images(run.layer_facts),
        "findings": findings(run.layers),
        "figures": [figure for figure in figures if figure],
        "first": [table for name, table in tables if name in first],
        "rest": [table for name, table in tables if name not in first],
    }


def findings(rows: Sequence[Measurement]) -> list[str]:
    """Sentences on the encoder: does compression compress, does sparsification sparsify."""
    sentences = []
    for name in models_of(rows):
        before, after = (
            {
                row.layer: row.mean
                for row in curve(
                    rows, "subspace_coding_rate", model=name, side="encoder", point=point
                )
            }
            for point in ("input", "compress")
        )
        shared = sorted(before.keys() & after.keys())
        zeros = curve(rows, "zero_fraction", model=name, side="encoder", point="sparsify")
        parts = []
        if shared:
            falls = sum(after[layer] < before[layer] for layer in shared)
            parts.append(
                f"the compression step lowers R^c in {falls} of {len(shared)} encoder layers"
            )
        if zeros:
            parts.append(
                f"{zeros[0].mean:.1%} of the numbers are zero in the codes of the first layer"
                f" and {zeros[-1].mean:.1%} in those of the last"
            )
        if parts:
            subject = "This model" if name == "model" else name.capitalize()
            sentences.append(f"{subject}: {'; '.join(parts)}.")
    return sentences


def layer_tables(rows: Sequence[Measurement]) -> list[tuple[str, Table]]:
    """(measure, table) for every measure: a line for each layer and point, a column a model.

    The measures of the catalogue come first, in its order. Lines of single heads are left to
    layers.csv.
    """
    by_measure: dict[str, list[Measurement]] = {}
    for row in rows:
        if row.head is None:
            by_measure.setdefault(row.measure, []).append(row)
    known = [name for name in MEASURES if name in by_measure]
    return [(name, _table(name, by_measure[name])) for name in dict.fromkeys([*known, *by_measure])]


def _figure(run: Run, path: Path) -> Figure | None:
    unknown = (path.name, f"Figure of the file {path.name}")
    caption, alt = FIGURES.get(path.stem, unknown)
    return figure_of(run, path, alt=alt, caption=caption)


def _table(name: str, rows: Sequence[Measurement]) -> Table:
    models = models_of(rows)
    lines: dict[tuple[str, int, str], dict[str, Measurement]] = {}
    for row in sorted(rows, key=place_order):
        lines.setdefault((row.side, row.layer, row.point), {})[row.model] = row
    body = []
    for (side, layer, point), by_model in list(lines.items())[:MAX_LINES]:
        cells: list[Cell] = [text_cell(side), number_cell(layer, "d"), text_cell(point)]
        for model in models:
            measured = by_model.get(model)
            cells.append(
                text_cell(None)
                if measured is None
                else number_cell(measured.mean, spread=measured.std)
            )
        body.append(cells)
    return Table(
        caption=measure_of(name).title,
        heads=["Side", "Layer", "Point", *models],
        rows=body,
        notes=_notes(name, rows, len(lines)),
    )


def _notes(name: str, rows: Sequence[Measurement], lines: int) -> list[str]:
    measure = measure_of(name)
    good = f"{measure.better} is better" if measure.better else ""
    scale = "; ".join(filter(None, (str(measure.scale), good)))
    notes = [measure.meaning] if measure.meaning else []
    notes += [f"{scale[0].upper()}{scale[1:]}."] if scale else []
    eps = rows[0].eps_squared
    notes.append(f"Measured: {_tensors(rows)}{'' if eps is None else f'; eps squared {eps:g}'}.")
    if any(row.std is not None for row in rows):
        notes.append(f"Mean ± standard deviation over {max(row.images for row in rows):,} images.")
    if lines > MAX_LINES:
        notes.append(f"The first {MAX_LINES} of {lines} lines; layers.csv has all.")
    return notes


def _tensors(rows: Sequence[Measurement]) -> str:
    """What a measure was taken of at its first line, by model where models differ in it."""
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.model, row.tensor)
    if len(set(first.values())) == 1:
        return rows[0].tensor
    return "; ".join(f"{tensor} ({name})" for name, tensor in first.items())


def _images(facts: dict[str, Any]) -> str:
    """How many images of what were measured; empty where it was not written down."""
    images, data = facts.get("images"), facts.get("data")
    if not isinstance(images, int) or not isinstance(data, str):
        return ""
    split = f", split {facts['split']}" if facts.get("split") else ""
    return f"{images:,} unmasked images of {data}{split}"
