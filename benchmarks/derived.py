"""Whether layers do what they are derived to do: one table of several analyses.

python benchmarks/derived.py NAME=FOLDER ... --json FILE --docs docs/results-appendix.md

Each FOLDER is what `crate-mae analyze` wrote of a run, with its random baseline. With --docs the
table also goes between the markers of a Markdown page; --record takes it from an earlier FILE.
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from crate_mae.cli.options import new_file
from crate_mae.common.files import write_atomically
from records import named_path, parser_of
from tables import fill_between, rule_below

PLACE = "derived"
MODELS = ("model", "random baseline")
"""A run and what it is held against, as `analyze` names them."""
FACTS = {
    "rate_change": "R^c after compress over R^c before, less 1, mean over encoder layers",
    "aligned": "cosine of the step of compress with the direction against the gradient of R^c",
    "aligned_shrink": "the same cosine of mere shrinking",
    "zeros": "share of zeros in the codes of the last encoder layer",
    "rebuilt": "|D a - x| / |x| of codes a of tokens x, mean over encoder layers",
    "lasso_fall": "fall of the LASSO objective, share, mean over encoder layers",
    "mirror_cka": "linear CKA of each decoder layer's output and what it should bring back, mean",
    "mirror_error_scaled": "|found - expected| / |expected| of the same with the best factor, mean",
}
"""What is told of a model; None where its layers have no such thing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if bool(given.analyses) == (given.record is not None):
        parser.error("name analyses as NAME=FOLDER, or --record an earlier file")
    if given.record is not None:
        record = json.loads(given.record.read_text("utf-8"))
    else:
        target = new_file(given.json)
        record = recorded(
            dict(named_path(word, "analyses as NAME=FOLDER") for word in given.analyses)
        )
        if target is not None:
            write_atomically(target, json.dumps(record, indent=1) + "\n")
    lines = table_lines(record)
    print("\n".join(lines))
    if given.docs is not None:
        text = "\n".join(lines)
        fill_between(given.docs, PLACE, text)
    return 0


def recorded(analyses: Mapping[str, Path]) -> dict[str, Any]:
    """The record of analyses by name: what each is of, and `facts_of` its models.

    Raises FileNotFoundError for a folder without an analysis, and ValueError for one that lacks
    the model or its random baseline.
    """
    found: dict[str, Any] = {}
    for name, folder in analyses.items():
        with (folder / "layers.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        lacking = [model for model in MODELS if not any(row["model"] == model for row in rows)]
        if lacking:
            raise ValueError(f"{folder}: no rows of the {' or the '.join(lacking)}")
        found[name] = {
            "images": max(int(row["images"]) for row in rows),
            **{model: facts_of([row for row in rows if row["model"] == model]) for model in MODELS},
        }
    return {"facts": FACTS, "analyses": found}


def facts_of(rows: Sequence[Mapping[str, str]]) -> dict[str, float | None]:
    """What is told of one model from its rows of an analysis, by the names of `FACTS`."""

    def of(side: str, measure: str, *points: str) -> list[float]:
        """The measure of whole layers at these points, in the order of layers."""
        chosen = (
            row
            for row in rows
            if (row["side"], row["measure"]) == (side, measure)
            and row["point"] in points
            and not row["head"]
        )
        return [float(row["mean"]) for row in sorted(chosen, key=lambda row: int(row["layer"]))]

    before, after = (
        of("encoder", "subspace_coding_rate", point) for point in ("input", "compress")
    )
    changes = [b / a - 1 for a, b in zip(before, after, strict=True)]
    back = ("expand", "decompress")
    values = {
        "rate_change": changes,
        "aligned": of("encoder", "mssa_shift_gradient_cosine", "compress"),
        "aligned_shrink": of("encoder", "shrink_gradient_cosine", "compress"),
        "zeros": of("encoder", "zero_fraction", "sparsify")[-1:],
        "rebuilt": of("encoder", "ista_residual", "sparsify"),
        "lasso_fall": of("encoder", "lasso_fall", "sparsify"),
        "mirror_cka": of("decoder", "mirror_cka", *back),
        "mirror_error_scaled": of("decoder", "mirror_error_scaled", *back),
    }
    assert values.keys() == FACTS.keys()
    return {name: fmean(each) if each else None for name, each in values.items()}


def table_lines(record: Mapping[str, Any]) -> list[str]:
    """A Markdown table of a record: a row a model, and in brackets its random baseline."""
    heads = {
        "R^c by compress": ("rate_change", 100, "{:+.1f} %"),
        "step along the gradient": ("aligned", 1, "{:.2f}"),
        "shrinking alone": ("aligned_shrink", 1, "{:.2f}"),
        "zeros": ("zeros", 100, "{:.0f} %"),
        "error of rebuilding": ("rebuilt", 1, "{:.2f}"),
        "LASSO falls": ("lasso_fall", 100, "{:+.0f} %"),
        "decoder retraces, CKA": ("mirror_cka", 1, "{:.2f}"),
        "its error": ("mirror_error_scaled", 1, "{:.2f}"),
    }
    lines = [f"|  | {' | '.join(heads)} |", rule_below(1 + len(heads))]
    for name, found in record["analyses"].items():
        cells = [f"`{name}`"]
        for fact, scale, form in heads.values():
            own, random = (found[model][fact] for model in MODELS)
            if own is None or random is None:
                cells.append("")
            else:
                cells.append(f"{form.format(scale * own)} ({form.format(scale * random)})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("analyses", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--json", type=Path, help="also as JSON (new file)")
    parser.add_argument("--record", type=Path, help="an earlier JSON file in place of analyses")
    parser.add_argument("--docs", type=Path, help="page that takes the table")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
