"""How a comparison is laid out, once for terminal, report and model card.

Rows are plain values, as `Row.to_dict` gives them and as JSON files hold them. Files may come from
others: what is missing in a row, or of another kind, is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from crate_mae.common.plain_tables import Cell, Table
from crate_mae.common.text import count_text
from crate_mae.common.values import is_count, is_finite, is_number
from crate_mae.evaluation.choosing import chosen_by

NAMES = {"probe": "probe", "knn": "kNN"}
"""Methods in a table."""
LONG_NAMES = {"probe": "linear probe", "knn": "nearest neighbours"}
"""Methods where they stand alone."""
BASELINES = ("random baseline", "raw pixels")
"""Subjects that have learned nothing."""
SETTINGS = ("whitening", "k", "temperature", "penalty", "learning_rate", "weight_decay")

PlainRow = Mapping[str, Any]


def comparison_layout(rows: Sequence[PlainRow], *, whole: bool = False) -> Table:
    """The table of at least one row, in their order, the best of every method marked.

    A column of which no row says anything is left out. So are layer and pool where all encoders
    give the usual features (the mean of the patch tokens after the last layer), unless the `whole`
    table is asked for.
    """
    encoded = [row for row in rows if row.get("pool") != "pixels"]
    usual = {
        "layer": all(row.get("layer") is None for row in encoded),
        "pool": all(row.get("pool") == "mean" for row in encoded),
    }
    best = _best(rows)
    columns = {
        "features of": [_text(row.get("subject")) for row in rows],
        "method": [_text(method_name(row)) for row in rows],
        "accuracy": [_accuracy(row, best) for row in rows],
        "95 % interval": [_interval(row) for row in rows],
        "balanced": [_share(row, "balanced_accuracy") for row in rows],
        "F1": [_share(row, "macro_f1") for row in rows],
        "layer": [_layer(row) for row in rows],
        "pool": [_text(row.get("pool")) for row in rows],
        "width": [_number(row.get("dim"), "{:,}") for row in rows],
        "parameters": [_parameters(row) for row in rows],
        "setting": [_text(_setting(row)) for row in rows],
    }
    shown = {
        head: cells
        for head, cells in columns.items()
        if any(cell.text for cell in cells) and (whole or not usual.get(head))
    }
    return Table(
        heads=list(shown),
        rows=list(zip(*shown.values(), strict=True)),
        best="highest accuracy of its method",
        notes=_notes(rows),
    )


def headline(rows: Iterable[PlainRow], method: str, subject: str) -> PlainRow | None:
    """The row that stands for a method and a subject: never the best one, picked by test.

    The first after all layers; where none is, that after the most layers.
    """
    found = [row for row in rows if (row["method"], row["subject"]) == (method, subject)]
    for row in found:
        if not is_count(row.get("layer")):
            return row
    return max(found, key=lambda row: row["layer"], default=None)


def interval(row: PlainRow) -> tuple[float, float] | None:
    """The 95 % interval of an accuracy, where it was written down."""
    ends = row.get("interval")
    if isinstance(ends, list) and len(ends) == 2 and all(map(is_finite, ends)):
        return float(ends[0]), float(ends[1])
    return None


def interval_text(row: PlainRow) -> str:
    """The 95 % interval in per cent; empty where it was not written down."""
    ends = interval(row)
    return "" if ends is None else f"{ends[0]:.1%} to {ends[1]:.1%}"


def counts_text(row: PlainRow) -> str:
    """How many images and classes a result rests on, and what the most frequent class gives."""
    shots, tested_on = row.get("shots"), row.get("tested_on")
    few = f" ({shots:,} of every class)" if is_count(shots) else ""
    where = f" ({tested_on})" if isinstance(tested_on, str) and tested_on else ""
    classes = row.get("num_classes")
    counts = [
        _counted(row.get("num_train"), "training image", few),
        _counted(row.get("num_test"), "test image", where),
        f"{classes:,} classes" if is_count(classes) else "",
    ]
    chance = ""
    if is_finite(row.get("chance")):
        named = f" ({row['majority']})" if isinstance(row.get("majority"), str) else ""
        chance = f"the most frequent class alone{named} gives {row['chance']:.2%}"
    return "; ".join(filter(None, (", ".join(filter(None, counts)), chance)))


def setting_text(setting: PlainRow) -> str:
    """The values of a setting as text, such as "k = 5, temperature 0.07"."""
    return ", ".join(
        f"{name.replace('_', ' ')}{' = ' if name == 'k' else ' '}{setting[name]:g}"
        for name in SETTINGS
        if is_number(setting.get(name))
    )


def method_name(row: PlainRow) -> str:
    """How a table calls the method of a row."""
    return NAMES.get(str(row.get("method")), str(row.get("method")))


def row_name(row: PlainRow) -> str:
    """Method and subject of a row."""
    return f"{method_name(row)}, {row.get('subject')}"


def row_place(row: PlainRow) -> str:
    """What sets a row apart from the others: method, subject, pool and layer."""
    layer = "" if row.get("layer") is None else f", layer {row['layer']}"
    return f"{row_name(row)}, {row.get('pool')}{layer}"


def _best(rows: Sequence[PlainRow]) -> dict[Any, float]:
    """The highest accuracy by method, of methods that have several rows."""
    by_method: dict[Any, list[float]] = {}
    for row in rows:
        if is_finite(row.get("accuracy")):
            by_method.setdefault(row.get("method"), []).append(row["accuracy"])
    return {method: max(values) for method, values in by_method.items() if len(values) > 1}


def _accuracy(row: PlainRow, best: Mapping[Any, float]) -> Cell:
    if not is_finite(row.get("accuracy")):
        return Cell(text="")
    spread = f" ± {row['std']:.2%}" if is_finite(row.get("std")) else ""
    return Cell(
        text=f"{row['accuracy']:.2%}{spread}",
        value=row["accuracy"],
        interval=interval(row),
        best=row["accuracy"] == best.get(row.get("method")),
    )


def _interval(row: PlainRow) -> Cell:
    ends = interval(row)
    return Cell(text=interval_text(row), value=None if ends is None else ends[0])


def _share(row: PlainRow, key: str) -> Cell:
    value = row.get(key)
    return Cell(text=f"{value:.1%}", value=value) if is_finite(value) else Cell(text="")


def _layer(row: PlainRow) -> Cell:
    if row.get("pool") == "pixels":
        return Cell(text="")
    layer = row.get("layer")
    return Cell(text="final") if layer is None else _number(layer, "{}")


def _parameters(row: PlainRow) -> Cell:
    count = row.get("parameters")
    return Cell(text=count_text(count), value=count) if is_count(count) else Cell(text="")


def _number(value: Any, form: str) -> Cell:
    return Cell(text=form.format(value), value=value) if is_number(value) else _text(value)


def _text(value: Any) -> Cell:
    return Cell(text="" if value is None else str(value))


def _counted(value: Any, what: str, more: str) -> str:
    return f"{value:,} {what}{'' if value == 1 else 's'}{more}" if is_count(value) else ""


def _runs(row: PlainRow) -> list[PlainRow]:
    """The results of every seed, or the row itself where only one was written down."""
    runs = row.get("runs")
    results = [run for run in runs if isinstance(run, Mapping)] if isinstance(runs, list) else []
    return results or [row]


def _setting(row: PlainRow) -> str:
    settings = dict.fromkeys(setting_text(run) for run in _runs(row))
    text = next(iter(settings)) if len(settings) == 1 else f"{len(settings)} different"
    unsure = any(run.get("converged") is False for run in _runs(row))
    return f"{text} (not converged)" if unsure else text


def _chosen(row: PlainRow) -> str:
    folds, images = row.get("folds"), row.get("num_held_out")
    if not is_count(folds) or not is_count(images) or folds < 2:
        return ""
    return chosen_by(folds, images)


def _reduced(rows: Sequence[PlainRow]) -> list[str]:
    """Where raw pixels are of smaller images than the model's, a sentence that says so."""
    sizes = [tuple(row["image_size"]) for row in rows if _is_size(row.get("image_size"))]
    notes: dict[str, None] = {}
    for row in rows:
        size = row.get("image_size")
        if row.get("pool") == "pixels" and _is_size(size) and tuple(size) < max(sizes):
            values = f", {row['dim']:,} values" if is_count(row.get("dim")) else ""
            notes[f"raw pixels: of images reduced to {size[0]}x{size[1]}{values}"] = None
    return list(notes)


def _is_size(value: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_count, value))


def _notes(rows: Sequence[PlainRow]) -> list[str]:
    notes = [counts_text(rows[0])]
    seeds = rows[0].get("seeds")
    if isinstance(seeds, list) and len(seeds) > 1:
        notes.append(
            f"mean ± standard deviation over {len(seeds)} seeds; the interval is the sampling"
            " error of the test set, which all seeds share"
        )
    if any(is_finite(row.get("balanced_accuracy")) for row in rows):
        notes.append("balanced: mean accuracy over classes; F1: mean over classes")
    ways = dict.fromkeys(_chosen(row) for row in rows)
    notes += [f"setting chosen by {way}" for way in ways if way]
    notes += _reduced(rows)
    fixed = dict.fromkeys(row_name(row) for row in rows if row.get("num_held_out") == 0)
    if fixed:
        notes.append(f"setting fixed, none chosen on held-out images: {', '.join(fixed)}")
    edges: dict[str, list[str]] = {}
    for row in rows:
        edges_of_runs = [run.get("on_edge") for run in _runs(row)]
        for text in sorted(
            {str(text) for at in edges_of_runs if isinstance(at, list) for text in at}
        ):
            edges.setdefault(text, []).append(row_place(row))
    notes += [f"on the edge of the grid, {text}: {'; '.join(at)}" for text, at in edges.items()]
    return [note for note in notes if note]
