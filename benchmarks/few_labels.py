"""What features are worth with few labels, beside what needs no pre-training at all.

python benchmarks/few_labels.py --set NAME=ADDRESS ... --model NAME=WEIGHTS ... --json FILE

For every set and model: a linear probe and nearest neighbours with all, 100, 20 and 5 labels a
class (mean and standard deviation over draws of the labels). Beside them: each model untrained, raw
pixels (reduced to 16 px), and histograms of oriented gradients (scikit-image). With --finetune each
model is also fine-tuned by the recipe finetune-few-labels with 20, 5 and 100 labels a class
(--finetune-shots for some of them), and the same network is trained from scratch by it
("untrained"), with one rate for all layers; heads see the pool of the row. Neighbours are compared
as they are, and whitened where that is better on held-out training images. --pool takes another
pool of tokens than the mean, which then stands in the names of rows. Each row names the set's
address without its path, how many images there were, and the SHA-256 of the weights. Rows are
written as they come; what stands in FILE already is not measured again. With --docs the table also
goes between the markers of a Markdown page; --neighbours makes it a table of nearest neighbours,
among few labels as well.
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from crate_mae.common.files import write_atomically
from crate_mae.evaluation.backbones import load_backbone
from crate_mae.evaluation.features import FeaturePool, Features, extract_features
from crate_mae.evaluation.knn import AS_THEY_ARE, STRENGTHS, nearest_neighbours
from crate_mae.evaluation.metrics import few_shot
from crate_mae.evaluation.probe import linear_probe
from crate_mae.models.backbone import Backbone
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.publish.redact import public_address
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource, labels_of
from crate_mae.training.finetune import finetune
from crate_mae.training.parse import parse_finetune
from records import day_and_machine, parser_of
from tables import fill_between, rule_below

SHOTS = (None, 100, 20, 5)
"""Labels of a class; None for all."""
DRAWS = 5
FINETUNED = {20: 50, 5: 100, 100: 25}
"""Labels of a class, and the epochs of fine-tuning: with fewer images an epoch has fewer steps."""
FROM_SCRATCH = {"--optim.layer_decay": "1"}
"""What suits fresh weights in place of the recipe's settings."""
PIXELS, GRADIENTS = 16, 64
"""Side in px to which images are brought for both baselines."""

PLACE = "few-labels"
USUAL: FeaturePool = "mean"
WHITENED = "knn, whitened"
"""The measure of neighbours that are whitened, where held-out images ask for it."""
FROZEN = ("probe", "knn", WHITENED)
"""What is measured on features as they are."""

_USUAL: dict[tuple[str, int | None], str] = {
    ("probe", 5): "5 a class: probe",
    ("finetune", 5): "fine-tuned",
    ("probe", 20): "20 a class: probe",
    ("finetune", 20): "fine-tuned",
    ("probe", 100): "100: probe",
    ("finetune", 100): "fine-tuned",
    ("probe", None): "all: probe",
    ("knn", None): "all: kNN",
    (WHITENED, None): "all: kNN, whitened",
}
"""Columns of the usual table, and their heads."""
_NEIGHBOURS: dict[tuple[str, int | None], str] = {
    ("knn", 5): "5 a class: kNN",
    (WHITENED, 5): "whitened",
    ("knn", 20): "20 a class: kNN",
    (WHITENED, 20): "whitened",
    ("knn", 100): "100: kNN",
    (WHITENED, 100): "whitened",
    ("knn", None): "all: kNN",
    (WHITENED, None): "whitened",
}
"""The same of the table of neighbours."""

logger = logging.getLogger("benchmarks")
Describe = Callable[[ImageSource], Features]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    given = _parser().parse_args(arguments)
    record = _begun(given.json)
    for set_name, address in given.sets:
        train, test = (_source(address, split) for split in ("train", "test"))
        fewest = min(Counter(labels_of(train)).values())
        for subject in _subjects(given.models, given.image_size, set_name, given.pool):

            def keep(row: dict[str, Any], facts: dict[str, Any]) -> None:
                logger.info("%s, %s: %s", facts["set"], facts["subject"], row)
                record["rows"].append({**facts, **row})
                write_atomically(given.json, json.dumps(record, indent=1) + "\n")

            facts = {
                "set": set_name,
                "address": public_address(address),
                "train_images": len(train),
                "test_images": len(test),
                "subject": subject.name,
                "size": subject.size,
                "weights_sha256": subject.sha256,
            }
            done = {
                (row["measure"], row["shots"])
                for row in record["rows"]
                if all(row[key] == facts[key] for key in ("set", "subject", "size"))
            }
            possible = [shots for shots in SHOTS if shots is None or shots <= fewest]
            wanted = {(measure, shots) for measure in FROZEN for shots in possible}
            if not done.issuperset(wanted):
                known, unknown = subject.describe(train), subject.describe(test)
                facts |= {"train_images": len(known.names), "test_images": len(unknown.names)}
                for row in _rows(known, unknown, done):
                    keep(row, facts)
            if subject.words is None or not given.finetune:
                continue
            words = [*subject.words, "--pool", given.pool]
            for shots in given.finetune_shots:
                if ("finetune", shots) in done or shots > fewest:
                    continue
                found = [
                    finetuned(words, address, shots, seed, subject.size, given.setting)
                    for seed in range(given.finetune)
                ]
                keep(_row("finetune", shots, found), facts)
    content = "\n".join(table_lines(record, neighbours=given.neighbours))
    print(content)
    if given.docs is not None:
        fill_between(given.docs, given.place, content)
    return 0


def table_lines(record: dict[str, Any], *, neighbours: bool = False) -> list[str]:
    """A Markdown table of a record, a row for every set and subject, a column for what it has.

    Of probes, fine-tuning and neighbours with all labels, or of `neighbours` alone.
    """
    columns = _NEIGHBOURS if neighbours else _USUAL
    measured = {(row["measure"], row["shots"]) for row in record["rows"]}
    shown = {column: head for column, head in columns.items() if column in measured}
    heads = ["set", "features", *shown.values()]
    lines = [f"| {' | '.join(heads)} |", rule_below(len(heads))]
    found: dict[tuple[str, str], dict[tuple[str, int | None], str]] = {}
    for row in record["rows"]:
        spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
        cells = found.setdefault((row["set"], row["subject"]), {})
        cells[row["measure"], row["shots"]] = f"{100 * row['mean']:.1f}{spread}"
    for (name, subject), cells in found.items():
        values = (cells.get(column, "") for column in shown)
        lines.append(f"| {name} | {subject} | {' | '.join(values)} |")
    return lines


def _begun(path: Path) -> dict[str, Any]:
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return {
        **day_and_machine(),
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
    words: list[str] | None = None
    """What crate-mae finetune is told of it; None for what cannot be trained further."""


def finetuned(
    words: list[str], address: str, shots: int, seed: int, size: int | None, settings: Sequence[str]
) -> float:
    """Test accuracy of a run of the recipe with `shots` labels a class, drawn by `seed`."""
    with TemporaryDirectory() as folder:
        told = [
            "--config", "finetune-few-labels", *words, "--data.source", address,
            "--data.shots", str(shots), "--seed", str(seed), "--out", f"{folder}/run",
            "--optim.epochs", str(FINETUNED[shots]), *settings,
        ]  # fmt: skip
        if size is not None:
            told += ["--image_size", str(size)]
        config, options = parse_finetune(told)
        with contextlib.redirect_stdout(io.StringIO()):
            accuracy = finetune(config, options["out"]).metrics["test/accuracy"]
    logger.info("%s, %d labels a class, draw %d: %.4f", words[1], shots, seed, accuracy)
    return accuracy


def _subjects(
    models: Sequence[tuple[str, str]], size: int | None, set_name: str, pool: FeaturePool
) -> Iterator[Subject]:
    """What is measured on a set, in turn; `{set}` in weights stands for the set's name."""
    more = "" if pool == USUAL else f", {pool}"

    def of(model: Backbone) -> Describe:
        if size is not None:
            model.preprocess = replace(model.preprocess, size=(size, size))

        def described(source: ImageSource) -> Features:
            return extract_features(model, source, pool=pool, batch_size=64)

        return described

    drawn: list[tuple[str | None, ModelConfig]] = []
    shown: list[tuple[str | None, ModelConfig, Preprocess]] = []
    for name, weights in models:
        path = weights.replace("{set}", set_name)
        if not Path(path).exists() and "/" in path:
            logger.info("%s is not there: passed over", path)
            continue
        model, sha256 = load_backbone(path)
        yield Subject(name + more, of(model), size, sha256, ["--weights", path])
        fresh = None
        network = (model.match, model.config)
        if network not in drawn:  # from scratch one network is trained once
            fresh = ["--from-scratch", path, *(w for pair in FROM_SCRATCH.items() for w in pair)]
            drawn.append(network)
        if (*network, model.preprocess) not in shown:  # the same weights, the same images
            shown.append((*network, model.preprocess))
            yield Subject(f"{name}, untrained{more}", of(model.untrained(0)), size, words=fresh)
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


def _rows(
    known: Features, unknown: Features, done: Collection[tuple[str, int | None]]
) -> Iterator[dict[str, Any]]:
    assert known.labels is not None
    fewest = int(torch.bincount(known.labels).min())
    for shots in SHOTS:
        if shots is not None and shots > fewest:
            continue
        seeds = range(1 if shots is None else DRAWS)
        parts = [known if shots is None else few_shot(known, shots, seed) for seed in seeds]
        if ("probe", shots) not in done:
            found = [
                linear_probe(part, unknown, seed=seed).accuracy
                for seed, part in zip(seeds, parts, strict=True)
            ]
            yield _row("probe", shots, found)
        for measure, tried in {"knn": (), WHITENED: STRENGTHS}.items():
            if (measure, shots) in done:
                continue
            results = [
                nearest_neighbours(part, unknown, whitening=(AS_THEY_ARE, *tried), seed=seed)
                for seed, part in zip(seeds, parts, strict=True)
            ]
            row = _row(measure, shots, [result.accuracy for result in results])
            yield {**row, "whitened": [result.whitened for result in results]}


def _row(measure: str, shots: int | None, found: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(found) if len(found) > 1 else None
    mean = statistics.fmean(found)
    return {"measure": measure, "shots": shots, "mean": mean, "std": spread, "values": found}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
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
    parser.add_argument(
        "--finetune", type=int, default=0, metavar="DRAWS", help="fine-tune for so many draws (0)"
    )
    parser.add_argument(
        "--finetune-shots",
        type=int,
        nargs="+",
        choices=tuple(FINETUNED),
        default=tuple(FINETUNED),
        help="labels a class of fine-tuning (20 5 100)",
    )
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="--KEY=VALUE",
        help="of fine-tuning, in place of the recipe's",
    )
    parser.add_argument(
        "--pool", default=USUAL, choices=(USUAL, "mean-std", "layers"), help="of tokens (mean)"
    )
    parser.add_argument("--neighbours", action="store_true", help="a table of neighbours")
    parser.add_argument("--json", type=Path, required=True, help="goes on there if it exists")
    parser.add_argument("--docs", type=Path, help="page that takes the table")
    parser.add_argument("--place", default=PLACE, help=f"name of its markers ({PLACE})")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
