"""The layer analysis of a run: sentences, figures and one table for each measure."""

from collections.abc import Sequence

from crate_mae.report.blocks import (
    Block,
    Cell,
    Details,
    Figure,
    Paragraph,
    Table,
    number_cell,
    text_cell,
)
from crate_mae.report.pictures import analysis_figures, data_uri
from crate_mae.runs.contents import ANALYSIS, Run
from crate_mae.whitebox.catalogue import MEASURES, POINTS
from crate_mae.whitebox.table import Measurement, curve, models_of

MAX_LINES = 300
"""Of one table; layers.csv has all."""


def layer_blocks(run: Run) -> list[Block]:
    """What the analysis of a run's layers says, or why there is none."""
    if not run.layers:
        return [
            Paragraph(
                text="The layers of this run have not been measured. With its data at hand,"
                " crate-mae report measures them.",
                tone="note",
            )
        ]
    blocks: list[Block] = [_introduction(run)]
    blocks += [Paragraph(text=sentence) for sentence in findings(run.layers)]
    blocks += _figures(run)
    tables = layer_tables(run.layers)
    first = [table for name, table in tables if name in list(MEASURES)[:FIRST_MEASURES]]
    rest = [table for name, table in tables if table not in first]
    blocks += first
    if rest:
        blocks.append(Details(title=f"All other measures ({len(rest)} tables)", blocks=rest))
    return blocks


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
            shown = "This model" if name == "model" else name.capitalize()
            sentences.append(f"{shown}: {'; '.join(parts)}.")
    if len(sentences) > 1:
        sentences.append(
            "What networks without training do as well is the work of their form, not of learning."
        )
    return sentences


def layer_tables(rows: Sequence[Measurement]) -> list[tuple[str, Table]]:
    """(measure, table) for every measure: a line for each layer and point, a column a model.

    The known measures come first, in the order of their explanations. Lines of single heads are
    left to layers.csv.
    """
    whole = [row for row in rows if row.head is None]
    known = [name for name in MEASURES if any(row.measure == name for row in whole)]
    names = dict.fromkeys([*known, *(row.measure for row in whole)])
    return [(name, _table(name, [row for row in whole if row.measure == name])) for name in names]


def _table(measure: str, rows: Sequence[Measurement]) -> Table:
    models = models_of(rows)
    lines: dict[tuple[str, int, str], dict[str, Measurement]] = {}
    for item in rows:
        lines.setdefault((item.side, item.layer, item.point), {})[item.model] = item
    order = sorted(
        lines, key=lambda key: (key[0] != "encoder", key[1], POINTS.get(key[2], 9), key[2])
    )
    body = []
    for side, layer, point in order[:MAX_LINES]:
        found = lines[side, layer, point]
        cells: list[Cell] = [text_cell(side), number_cell(layer, "d"), text_cell(point)]
        for model in models:
            row = found.get(model)
            cells.append(text_cell(None) if row is None else number_cell(row.mean, spread=row.std))
        body.append(cells)
    title, meaning = MEASURES.get(measure, (measure.replace("_", " "), ""))
    measured = f"Measured: {_tensors(rows)}"
    note = f"{meaning} {measured}" if meaning else measured
    note += "." if rows[0].eps_squared is None else f"; eps squared {rows[0].eps_squared:g}."
    if any(row.std is not None for row in rows):
        note += f" Mean ± standard deviation over {max(row.images for row in rows):,} images."
    if len(order) > MAX_LINES:
        note += f" The first {MAX_LINES} of {len(order)} lines; layers.csv has all."
    heads = ["Side", "Layer", "Point", *("this model" if m == "model" else m for m in models)]
    return Table(caption=title, heads=heads, rows=body, note=note)


def _tensors(rows: Sequence[Measurement]) -> str:
    """What a measure was taken of at its first line, told by model where models differ in it."""
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault("this model" if row.model == "model" else row.model, row.tensor)
    if len(set(first.values())) == 1:
        return rows[0].tensor
    return "; ".join(f"{tensor} ({name})" for name, tensor in first.items())


def _introduction(run: Run) -> Paragraph:
    facts = run.layer_facts
    text = (
        "Every layer of this network is a step with a purpose: compress the tokens toward learned"
        " subspaces, then make them sparse; the decoder undoes both. Whether it does so can be"
        " measured"
    )
    images, data = facts.get("images"), facts.get("data")
    if isinstance(images, int) and isinstance(data, str):
        split = f", split {facts['split']}" if facts.get("split") else ""
        text += f", here on {images:,} unmasked images of {data}{split}"
    text += (
        ". Compare with the random twin: what it shows as well was not learned. Good in theory and"
        " good at a task are two things; these numbers are about the first."
    )
    return Paragraph(text=text)


def _figures(run: Run) -> list[Block]:
    blocks: list[Block] = []
    for path in analysis_figures(run.folder / ANALYSIS):
        caption, alt = FIGURES.get(path.stem, (path.name, f"Figure of the file {path.name}"))
        try:
            blocks.append(Figure(uri=data_uri(path), alt=alt, caption=caption))
        except (OSError, ValueError) as error:
            run.problems.append(f"Left out, figure {path.name}: {error}.")
    return blocks


FIRST_MEASURES = 5
"""So many of them are shown at once; the others on demand."""


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
