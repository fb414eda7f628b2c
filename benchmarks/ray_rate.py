"""How fast parts of features are computed on Ray: one worker beside two, and beside no Ray.

python benchmarks/ray_rate.py --weights cifar10-shallow --images 20480 --json FILE

A cluster of this machine is started once, with as many CPUs as there are workers. Each number of
workers writes all parts into a new folder; its rate is that of the images after the first part of
each worker, so that starting the workers does not count, which is told apart. Images are generated.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from crate_mae.cli.options import new_file, whole_numbers
from crate_mae.common.files import write_atomically
from crate_mae.evaluation.backbones import load_backbone
from crate_mae.evaluation.extracting import Extraction, begin_parts
from crate_mae.evaluation.feature_files import load_features
from crate_mae.evaluation.on_ray import write_on_ray
from records import day_and_machine, parser_of
from speed.loading import generated_sources

BATCH = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    given = _parser().parse_args(arguments)
    target = new_file(given.json)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15, that of others 0
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(
        num_cpus=max(given.workers), include_dashboard=False, log_to_driver=False,
        object_store_memory=200 << 20, logging_level="warning",
    )  # fmt: skip
    try:
        record = measured(given)
    finally:
        ray.shutdown()
    print(json.dumps(record["subjects"], indent=1))
    if target is not None:
        write_atomically(target, json.dumps(record, indent=1) + "\n")
    return 0


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """The record: for no Ray and for each number of workers, seconds and images a second."""
    model, _ = load_backbone(given.weights)
    with (
        generated_sources(model.config, images=given.images) as made,
        TemporaryDirectory() as place,
    ):
        wanted = Extraction(
            weights=given.weights,
            images=(dict(made)["parquet, JPEG"],),
            batch_size=BATCH,
            workers=0,
        )
        subjects = {
            name: _subject(wanted, Path(place) / name, given.part_size, workers)
            for name, workers in (
                ("no Ray", None), *((f"{n} workers", n) for n in given.workers)
            )
        }  # fmt: skip
        found = [load_features(Path(place) / name).values for name in subjects]
        same = all(values.equal(found[0]) for values in found)
    return {
        **day_and_machine(),
        "weights": given.weights,
        "images": given.images,
        "part_size": given.part_size,
        "subjects": subjects,
        "same_values": same,
    }


def _subject(
    wanted: Extraction, folder: Path, part_size: int, workers: int | None
) -> dict[str, Any]:
    """Seconds of all, seconds until each worker may have had a part, and the rate after that."""
    extractor = wanted.open("cpu")
    load, begun = os.getloadavg()[0], perf_counter()
    parts, missing = begin_parts(extractor, folder, part_size=part_size)
    if workers is None:
        written = extractor.write(parts, missing)
    else:
        written = write_on_ray(wanted, parts, missing, device="cpu", workers=workers)
    times = []
    for facts in written:
        times.append((perf_counter() - begun, facts.rows))
    first = workers or 1
    later = sum(rows for _, rows in times[first:])
    seconds = times[-1][0] - times[first - 1][0]
    return {
        "seconds": times[-1][0],
        "seconds_until_started": times[first - 1][0],
        "images_a_second": later / seconds,
        "load_before": load,
    }


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--weights", default="cifar10-shallow")
    parser.add_argument("--images", type=int, default=20_480)
    parser.add_argument("--part-size", type=int, default=1024)
    parser.add_argument("--workers", type=whole_numbers, default=(1, 2))
    parser.add_argument("--json", type=Path, help="also as JSON (new file)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
