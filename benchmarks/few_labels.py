"""What features are worth with few labels, beside what needs no pre-training at all.

python benchmarks/few_labels.py --set NAME=ADDRESS ... --model NAME=WEIGHTS ... --json FILE

For every set and model: a linear probe with all, 100, 20 and 5 labels a class (mean and standard
deviation over draws of the labels), and nearest neighbours with all. Beside them: each model
untrained, raw pixels (reduced to 16 px), and histograms of oriented gradients (scikit-image). Each
row names the set's address without its path, how many images there were, and the SHA-256 of the
weights. Rows are written as they come; what stands in FILE already is not measured again. With
--docs the table also goes between the markers of a Markdown page.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from crate_mae.common.environment import environment
from crate_mae.common.files import write_atomically
from crate_mae.evaluation.backbones import load_backbone
from crate_mae.evaluation.features import Features, extract_features
from crate_mae.evaluation.knn import nearest_neighbours
from crate_mae.evaluation.metrics import few_shot
from crate_mae.evaluation.probe import linear_probe
from crate_mae.models.backbone import Backbone
from crate_mae.publish.redact import public_address
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource
from tables import between_markers, rule_below

SHOTS = (None, 100, 20, 5)
"""Labels of a class; None for all."""
DRAWS = 5
PIXELS, GRADIENTS = 16, 64
"""Side in px to which images are brought for both baselines."""

PLACE = "few-labels"

logger = logging.getLogger("benchmarks")
Describe = Callable[[ImageSource], Features]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    given = _parser().parse_args(arguments)
    record = _begun(given.json)
    for set_name, address in given.sets:
        train, test = (_source(address, split) for split in ("train", "test"))
        for subject in _subjects(given.models, given.image_size, set_name):
            done = {(row["set"], row["subject"], row["size"]) for row in record["rows"]}
            if (set_name, subject.name, subject.size) in done:
                continue
            known, unknown = subject.describe(train), subject.describe(test)
            facts = {
                "set": set_name,
                "address": public_address(address),
                "train_images": len(known.names),
                "test_images": len(unknown.names),
                "subject": subject.name,
                "size": subject.size,
                "weights_sha256": subject.sha256,
            }
            rows = list(_rows(known, unknown))
            for row in rows:
                logger.info("%s, %s: %s", set_name, subject.name, row)
            record["rows"] += [{**facts, **row} for row in rows]
            write_atomically(given.json, json.dumps(record, indent=1) + "\n")
    print("\n".join(table_lines(record)))
    if given.docs is not None:
        content = "\n".join(table_lines(record))
        filled = between_markers(given.docs.read_text("utf-8"), PLACE, content, str(given.docs))
        if filled is None:
            raise ValueError(f"{given.docs} lacks <!-- {PLACE} --> and <!-- /{PLACE} -->")
        write_atomically(given.docs, filled)
    return 0


def table_lines(record: dict[str, Any]) -> list[str]:
    """A Markdown table of a record, a row for every set and subject."""
    columns = [("probe", 5), ("probe", 20), ("probe", 100), ("probe", None), ("knn", None)]
    heads = ["set", "features", "5 a class", "20 a class", "100 a class", "all labels", "kNN, all"]
    lines = [f"| {' | '.join(heads)} |", rule_below(len(heads))]
    found: dict[tuple[str, str], dict[tuple[str, int | None], str]] = {}
    for row in record["rows"]:
        spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
        cells = found.setdefault((row["set"], row["subject"]), {})
        cells[row["measure"], row["shots"]] = f"{100 * row['mean']:.1f}{spread}"
    for (name, subject), cells in found.items():
        values = (cells.get(column, "") for column in columns)
        lines.append(f"| {name} | {subject} | {' | '.join(values)} |")
    return lines


def _begun(path: Path) -> dict[str, Any]:
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    machine = environment()
    return {
        "date": date.today().isoformat(),
        "machine": {key: machine[key] for key in ("processor", "cores", "python", "torch")},
        "draws": DRAWS,
        "rows": [],
    }


def _source(address: str, split: str) -> ImageSource:
    return cast("ImageSource", open_source(address, split=split))


class Subject(NamedTuple):
    """What is measured."""

    name: str
    describe: Describe
    size: int | None = None
    """Side in px that was asked for; None for its own."""
    sha256: str | None = None
    """Of the weights file; None without one."""


def _subjects(
    models: Sequence[tuple[str, str]], size: int | None, set_name: str
) -> Iterator[Subject]:
    """What is measured on a set, in turn; `{set}` in weights stands for the set's name."""

    def of(model: Backbone) -> Describe:
        if size is not None:
            model.preprocess = replace(model.preprocess, size=(size, size))

        def described(source: ImageSource) -> Features:
            return extract_features(model, source, batch_size=64)

        return described

    for name, weights in models:
        path = weights.replace("{set}", set_name)
        if not Path(path).exists() and "/" in path:
            logger.info("%s is not there: passed over", path)
            continue
        model, sha256 = load_backbone(path)
        yield Subject(name, of(model), size, sha256)
        yield Subject(f"{name}, untrained", of(model.untrained(0)), size)
    yield Subject(f"raw pixels, {PIXELS} px", _pixels)
    yield Subject(f"HOG, {GRADIENTS} px", _gradients)


def _pixels(source: ImageSource) -> Features:
    return _collected(source, lambda image: resized(image, PIXELS).flatten(), "pixels")


def _gradients(source: ImageSource) -> Features:
    from skimage.feature import hog

    def describe(image: Tensor) -> Tensor:
        grey = rgb_to_grayscale(resized(image, GRADIENTS))[0].numpy()
        found = hog(grey, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
        return torch.from_numpy(found).float()

    return _collected(source, describe, "hog")


def resized(image: Tensor, side: int) -> Tensor:
    """An RGB image (3, H, W) of bytes as (3, side, side) from 0 to 1."""
    whole = image.expand(3, -1, -1) if len(image) == 1 else image[:3]
    small: Tensor = resize(whole.float() / 255, [side, side], antialias=True)
    return small


def _collected(source: ImageSource, describe: Callable[[Tensor], Tensor], pool: str) -> Features:
    rows, names, labels = [], [], []
    for index in range(len(source)):
        sample = source.load(index)
        rows.append(describe(sample.image))
        names.append(sample.name)
        labels.append(-1 if sample.label is None else sample.label)
    return Features(
        values=torch.stack(rows),
        labels=torch.tensor(labels),
        names=names,
        class_names=source.class_names,
        pool=pool,
        unreadable=[],
    )


def _rows(known: Features, unknown: Features) -> Iterator[dict[str, Any]]:
    assert known.labels is not None
    fewest = int(torch.bincount(known.labels).min())
    for shots in SHOTS:
        if shots is not None and shots > fewest:
            continue
        seeds = range(1 if shots is None else DRAWS)
        found = []
        for seed in seeds:
            part = known if shots is None else few_shot(known, shots, seed)
            found.append(linear_probe(part, unknown, seed=seed).accuracy)
        yield _row("probe", shots, found)
    yield _row("knn", None, [nearest_neighbours(known, unknown).accuracy])


def _row(measure: str, shots: int | None, found: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(found) if len(found) > 1 else None
    return {"measure": measure, "shots": shots, "mean": statistics.fmean(found), "std": spread}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", allow_abbrev=False
    )
    parser.add_argument(
        "--set", dest="sets", action="append", required=True, type=_pair, metavar="NAME=ADDRESS"
    )
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        required=True,
        type=_pair,
        metavar="NAME=WEIGHTS",
        help="a shipped name or a folder; {set} in it is replaced by the set's name",
    )
    parser.add_argument("--image-size", type=int, help="side in px (the weights' own)")
    parser.add_argument("--json", type=Path, required=True, help="goes on there if it exists")
    parser.add_argument("--docs", type=Path, help="page that takes the table")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
