"""What features cost in every engine on the CPU: torch, ONNX, OpenVINO and ONNX in eight bits.

python benchmarks/engine_rates.py cifar10-shallow base --probe digits --json FILE

A model is the name of weights, or of a preset, whose weights are random then. Every engine encodes
the same images in each round, in one process, the first of a round changing. Processor time is what
to compare; the images a second that passed count on an idle machine alone. --probe names labelled
data on which a linear probe tells what eight bits cost trained weights. With --docs the table also
goes between the markers of a Markdown page; --record takes it from an earlier FILE.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch

from crate_mae import build_model, load_model, save_model
from crate_mae.cli.options import new_file
from crate_mae.common.files import write_atomically
from crate_mae.evaluation.backbones import load_backbone
from crate_mae.export.exporting import export_model
from crate_mae.export.int8_loss import measure_int8_loss
from crate_mae.export.runtimes import load_exported
from crate_mae.models.config import PRESETS
from records import day_and_machine, parser_of
from tables import fill_between, rule_below

ENGINES = ("torch", "onnx", "openvino", "int8")
"""Measured; the first is what the others are compared with."""
PLACE = "engine-rates"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.record is None and not given.models:
        parser.error("name models, or an earlier --record")
    if given.docs is not None and given.record is None and given.json is None:
        parser.error("--docs names the record: give --json or --record")
    if given.record is not None:
        record = json.loads(given.record.read_text("utf-8"))
    else:
        target = new_file(given.json)
        record = measured(given.models, given.pixels, given.rounds, given.probe)
        if target is not None:
            write_atomically(target, json.dumps(record, indent=1) + "\n")
    lines = page_lines(record)
    print("\n".join(lines))
    if given.docs is not None:
        link = f"[Record](../benchmarks/results/{(given.record or given.json).name})"
        content = "\n".join([*lines, "", f"{link}, made by `benchmarks/engine_rates.py`."])
        fill_between(given.docs, PLACE, content)
    return 0


def measured(models: Sequence[str], pixels: int, rounds: int, probe: str | None) -> dict[str, Any]:
    """The record: for each model and engine, times of every round, and what eight bits cost.

    A batch has as many images as `pixels` allows, 64 at most.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_row(name, pixels, rounds, probe) for name in models]
    finally:
        torch.set_num_threads(threads)
    return {
        **day_and_machine(),
        "threads": 1,
        "rounds": rounds,
        "rows": rows,
    }


def _row(name: str, pixels: int, rounds: int, probe: str | None) -> dict[str, Any]:
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory()))
        random = name in PRESETS
        weights: str | Path = name
        if random:
            torch.manual_seed(0)
            weights = save_model(build_model(name), place / "weights")
        model, sha256 = load_backbone(weights)
        height, width = model.preprocess.size
        count = max(1, min(64, pixels // (height * width)))
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, model.preprocess.channels, height, width, generator=generator)
        model = load_model(weights)
        folders = {
            engine: export_model(
                weights,
                place / engine,
                format="onnx" if engine == "int8" else engine,
                int8=engine == "int8",
            ).folder
            for engine in ENGINES[1:]
        }
        runs: dict[str, Callable[[], torch.Tensor]] = {"torch": lambda: model.encode(images)}
        for engine, folder in folders.items():
            runs[engine] = _bound(load_exported(folder), images)
        with torch.inference_mode():
            features = {engine: run() for engine, run in runs.items()}
            seconds = _seconds(runs, rounds)
        exact = features["torch"]
        row: dict[str, Any] = {
            "model": name,
            "weights": "random" if random else sha256,
            "image_size": [height, width],
            "batch": count,
            "engines": {
                engine: {
                    **seconds[engine],
                    "difference": float((features[engine] - exact).abs().max()),
                    "relative": float((features[engine] - exact).norm() / exact.norm()),
                }
                for engine in ENGINES
            },
        }
        if probe is not None and not random:
            row["probe"] = measure_int8_loss(weights, folders["int8"], probe).to_dict()
        return row


def _bound(run: Callable[[list[torch.Tensor]], torch.Tensor], images: torch.Tensor) -> Any:
    return lambda: run([images])


def _seconds(
    runs: dict[str, Callable[[], torch.Tensor]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Processor time and time that passed of a batch, by engine and round."""
    found: dict[str, dict[str, list[float]]] = {
        engine: {"cpu_seconds": [], "seconds": []} for engine in runs
    }
    for number in range(rounds):
        turn = number % len(ENGINES)
        for engine in (*ENGINES[turn:], *ENGINES[:turn]):
            begun, passed = process_time(), perf_counter()
            runs[engine]()
            found[engine]["cpu_seconds"].append(process_time() - begun)
            found[engine]["seconds"].append(perf_counter() - passed)
    return found


def page_lines(record: dict[str, Any]) -> list[str]:
    """A Markdown table of a record, a row for every model."""
    first, *others = ENGINES
    heads = ["model", f"`{first}`, images a second of processor time"]
    heads += [f"`{engine}`" for engine in others]
    heads += ["int8: features off by", "probe, float32 and int8"]
    lines = [f"| {' | '.join(heads)} |", rule_below(len(heads))]
    for row in record["rows"]:
        engines = row["engines"]
        own = engines[first]["cpu_seconds"]
        size = "x".join(map(str, row["image_size"]))
        kind = ", random weights" if row["weights"] == "random" else ""
        rate = row["batch"] / median(own)
        cells = [f"`{row['model']}` ({size}{kind})", f"{rate:,.0f}" if rate > 99 else f"{rate:.3g}"]
        for engine in others:
            pairs = zip(own, engines[engine]["cpu_seconds"], strict=True)
            ratios = sorted(before / after for before, after in pairs)
            cells.append(f"{median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        cells.append(f"{engines['int8']['relative']:.1%}")
        probe = row.get("probe")
        cells.append(
            f"{probe['float32']:.1%}, {probe['int8']:.1%} ({probe['address']})" if probe else "-"
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", help="weights, or presets")
    parser.add_argument("--pixels", type=int, default=8 * 224 * 224, help="of a batch, in all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--probe", help="labelled data for what eight bits cost")
    parser.add_argument("--json", type=Path, help="also as JSON (new file)")
    parser.add_argument("--record", type=Path, help="an earlier JSON file: measure nothing")
    parser.add_argument("--docs", type=Path, help="page that takes the table")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
