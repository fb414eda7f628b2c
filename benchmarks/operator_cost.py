"""What the attention operators cost: mssa, exact and tssa in turn, in one process, on one core.

python benchmarks/operator_cost.py --json FILE --docs docs/family.md

Processor time of a pass forward and backward, for every operator in each round, the first of a
round changing; and, in processes of their own, the most memory that a pass takes and gives back.
With --docs the table also goes between the markers of a Markdown page; --record takes it from an
earlier FILE and measures nothing.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch

from crate_mae.cli.options import new_file, whole_numbers
from crate_mae.common.files import write_atomically
from crate_mae.common.peak_memory import peak_memory
from crate_mae.models.config import AttentionKind, ModelConfig
from crate_mae.models.operators import ATTENTION
from records import day_and_machine, parser_of
from tables import fill_between, rule_below

KINDS: tuple[AttentionKind, ...] = ("mssa", "exact", "tssa")
"""Measured; the first is what the others are compared with."""
PLACE = "operator-cost"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.docs is not None and given.record is None and given.json is None:
        parser.error("--docs names the record: give --json or --record")
    if given.record is not None:
        record = json.loads(given.record.read_text("utf-8"))
    else:
        target = new_file(given.json)
        record = measured(given.dim, given.heads, given.tokens, given.rounds)
        if target is not None:
            write_atomically(target, json.dumps(record, indent=1) + "\n")
    lines = page_lines(record)
    print("\n".join(lines))
    if given.docs is not None:
        content = "\n".join([*lines, "", record_link((given.record or given.json).name)])
        fill_between(given.docs, PLACE, content)
    return 0


def measured(dim: int, heads: int, counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """The record: for each number of tokens and operator, times in every round, and memory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for tokens in counts for row in _rows(dim, heads, tokens, rounds)]
    finally:
        torch.set_num_threads(threads)
    return {
        **day_and_machine(),
        "threads": 1,
        "dim": dim,
        "heads": heads,
        "batch": 1,
        "rounds": rounds,
        "rows": rows,
    }


def page_lines(record: dict[str, Any]) -> list[str]:
    """A Markdown table of a record, a row for every number of tokens, and how times grow."""
    first, *others = KINDS
    found = {(row["tokens"], row["attention"]): row for row in record["rows"]}
    counts = sorted({tokens for tokens, _ in found})
    heads = ["tokens", f"`{first}`", *(f"`{kind}`" for kind in others)]
    heads += [f"memory of `{kind}`" for kind in KINDS]
    lines = [f"| {' | '.join(heads)} |", rule_below(len(heads))]
    for tokens in counts:
        cells = [f"{tokens:,}", f"{median(found[tokens, first]['cpu_seconds']):.2g} s"]
        for kind in others:
            ratio = found[tokens, kind]["ratio"]
            span = f"{ratio['lowest']:.2f} to {ratio['highest']:.2f}"
            cells.append(f"{ratio['median']:.2f} ({span})")
        cells += [f"{found[tokens, kind]['peak_bytes'] / 2**20:,.0f} MiB" for kind in KINDS]
        lines.append(f"| {' | '.join(cells)} |")
    if len(counts) > 1:
        grown = (
            f"`{kind}` {_growth([found[tokens, kind] for tokens in counts[-2:]]):.2g} times"
            for kind in KINDS
        )
        span = f"From {counts[-2]:,} to {counts[-1]:,} tokens processor time grows"
        lines += ["", f"{span}: {', '.join(grown)}."]
    return lines


def record_link(name: str) -> str:
    """The line of a page that leads to the record of this name."""
    return f"[Record](../benchmarks/results/{name}), made by `benchmarks/operator_cost.py`."


def _growth(rows: Sequence[dict[str, Any]]) -> float:
    before, after = (median(row["cpu_seconds"]) for row in rows)
    return float(after / before)


def _rows(dim: int, heads: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    sizes = {"dim": dim, "heads": heads, "tokens": tokens}
    passes = {kind: make_pass(kind=kind, **sizes) for kind in KINDS}
    repeats = max(1, 1024 // tokens)  # a short pass is timed many times at once
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        passes[kind]()
    for number in range(rounds):
        turn = number % len(KINDS)
        for kind in (*KINDS[turn:], *KINDS[:turn]):
            begun = process_time()
            for _ in range(repeats):
                passes[kind]()
            seconds[kind].append((process_time() - begun) / repeats)
    rows = []
    for kind in KINDS:
        pairs = zip(seconds[kind], seconds[KINDS[0]], strict=True)
        ratios = sorted(own / first for own, first in pairs)
        memory = peak_memory(make_pass, {"kind": kind, **sizes}, threads=1, steps=2)
        rows.append(
            {
                "attention": kind,
                "tokens": tokens,
                "cpu_seconds": seconds[kind],
                "ratio": {"median": median(ratios), "lowest": ratios[0], "highest": ratios[-1]},
                "peak_bytes": memory.above_settled,
            }
        )
    return rows


def make_pass(*, kind: AttentionKind, dim: int, heads: int, tokens: int) -> Callable[[], None]:
    """A pass forward and backward of an operator on one image of normal tokens."""
    torch.manual_seed(0)
    projection: Any = "tied" if kind == "exact" else "free"  # exact has no map of its own
    config = ModelConfig(
        dim=dim, num_heads=heads, decoder_num_heads=heads, attention=kind,
        output_projection=projection,
    )  # fmt: skip
    operator = ATTENTION[kind](config, heads)
    x = torch.randn(1, tokens, dim, requires_grad=True)
    return partial(_pass, operator, x, torch.randn(1, tokens, dim))


def _pass(operator: torch.nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> None:
    x.grad = None
    operator.zero_grad()
    torch.autograd.backward(operator(x), gradient)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--tokens", type=whole_numbers, default=(197, 1024, 4096))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also as JSON (new file)")
    parser.add_argument("--record", type=Path, help="an earlier JSON file: measure nothing")
    parser.add_argument("--docs", type=Path, help="page that takes the table")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
