"""How fast features are taken out, beside encoding the same images alone: in turn, in one process.

python benchmarks/extract_rate.py --weights cifar10-shallow --images 5120 --json FILE

Subjects: `encode` computes features of images that lie prepared in memory; `extract` reads,
decodes and prepares them as well, in as many processes as it chooses; `read ahead` does it with one
process that reads and this one that computes; `in turn` one after the other in this process;
`parts` as `extract`, into a folder of parts. The rate of each is given by time that passed and by
processor time, its own and that of its workers. What they give is compared bit for bit.
"""

import argparse
import json
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from crate_mae.batches.prepared import prepared_batches, reading_workers, stretches
from crate_mae.cli.options import new_file
from crate_mae.evaluation.backbones import load_backbone
from crate_mae.evaluation.encoding import computing_processes
from crate_mae.evaluation.extracting import extract_parts
from crate_mae.evaluation.feature_files import load_features
from crate_mae.evaluation.features import extract_features, pooled_features
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource, random_subset
from records import day_and_machine, parser_of
from speed.loading import generated_sources

BATCH = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    given = _parser().parse_args(arguments)
    target = new_file(given.json)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    if given.address is None:
        model, _ = load_backbone(given.weights)
        with generated_sources(model.config, images=given.images) as made:
            address = dict(made)["parquet, JPEG"]
            found = measured(given, address) | {"source": "generated, parquet of JPEG"}
    else:
        found = measured(given, given.address) | {"source": given.address.partition(":")[0]}
    print(json.dumps({key: found[key] for key in ("rate_beside_encode", "same_bytes")}))
    if target is not None:
        target.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measured(given: argparse.Namespace, address: str) -> dict[str, Any]:
    """Times of every subject in every round, and their ratios to encoding alone."""
    model, _ = load_backbone(given.weights)
    opened = open_source(address)
    assert isinstance(opened, ImageSource)
    source = random_subset(opened, given.images)
    prepared = [
        batch.images
        for batch in prepared_batches(source, model.preprocess, batch_size=BATCH, broken=[])
    ]
    encode = pooled_features(model, pools=("mean",), layers=(None,))
    model.eval()

    def alone() -> torch.Tensor:
        return torch.cat([row for batch in prepared for row in encode(batch).values()])

    def extracted(workers: int | None) -> torch.Tensor:
        return extract_features(model, source, batch_size=BATCH, workers=workers).values

    def in_parts() -> torch.Tensor:
        with TemporaryDirectory() as folder:
            extract_parts(model, source, folder, batch_size=BATCH)
            return load_features(folder).values

    subjects: dict[str, Callable[[], torch.Tensor]] = {
        "encode": alone,
        "extract": lambda: extracted(None),
        "read ahead": lambda: extracted(1),
        "in turn": lambda: extracted(0),
        "parts": in_parts,
    }
    whole = {name: subject() for name, subject in subjects.items()}  # once for warmth, and equality
    rounds = [
        {name: _times(subject) for name, subject in subjects.items()} for _ in range(given.rounds)
    ]
    cuts = stretches(range(len(source)), BATCH)
    return {
        **day_and_machine(),
        "weights": str(given.weights),
        "images": len(source),
        "image_size": list(model.preprocess.size),
        "threads": torch.get_num_threads(),
        "processes": computing_processes(model, source, encode, cuts),
        "workers": reading_workers(source, model.preprocess, cuts),
        "rate_beside_encode": {
            name: {
                kind: round(median(one["encode"][kind] / one[name][kind] for one in rounds), 3)
                for kind in ("elapsed", "processor")
            }
            for name in subjects
            if name != "encode"
        },
        "same_bytes": all(torch.equal(whole["encode"], other) for other in whole.values()),
        "rounds": rounds,
    }


def _times(subject: Callable[[], torch.Tensor]) -> dict[str, float]:
    """Seconds that passed, and of the processors, in this process and in those it has ended."""
    before, start = _processor_seconds(), perf_counter()
    subject()
    elapsed = perf_counter() - start
    return {"elapsed": elapsed, "processor": _processor_seconds() - before}


def _processor_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--weights", default="cifar10-shallow")
    parser.add_argument("--address", help="images, such as parquet:PATH (generated ones)")
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch (as many as it takes)")
    parser.add_argument("--json", type=Path, help="also as JSON (new file)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
