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
address without its path, how many images there were and their fingerprints, and the SHA-256 of the
weights; one of fine-tuning also every --setting. Rows are written as they come; what stands in FILE
already is not measured again, and rows there of other images, weights or settings are refused
before anything is measured. With --docs the table also goes between the markers of a Markdown page;
--neighbours makes it a table of nearest neighbours, among few labels as well.
"""

import argparse
import contextlib
import functools
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
from crate_mae.publish.redact import public_address, public_text
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource, labels_of
from crate_mae.sources.images import Sample, UnreadableImage
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
COMPARED = (
    "weights_sha256", "train_images", "test_images", "train_fingerprint", "test_fingerprint",
)  # fmt: skip
"""What rows of the same names must agree in, to stand in one record."""

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


class ImageSet(NamedTuple):
    """A data set, and the models that are measured on it."""

    name: str
    address: str
    train: ImageSource
    test: ImageSource
    train_fingerprint: str
    test_fingerprint: str
    fewest: int
    """Training images of the smallest class."""
    models: list[tuple[str, str]]
    """Names and weights."""


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    given = _parsed(arguments)
    record = _begun(given.json)
    sets = [_opened(name, address, given.models) for name, address in given.sets]
    for images in sets if record["rows"] else ():
        for subject in _subjects(images.models, given.image_size, given.pool):
            _check_same(record["rows"], images, subject, given)
    for images in sets:
        for subject in _subjects(images.models, given.image_size, given.pool):
            _measure(record, images, subject, given)
    content = "\n".join(table_lines(record, neighbours=given.neighbours))
    print(content)
    if given.docs is not None:
        fill_between(given.docs, given.place, content)
    return 0


def _measure(
    record: dict[str, Any], images: ImageSet, subject: Subject, given: argparse.Namespace
) -> None:
    """Add the rows of a subject that the record lacks, and write it after each."""
    facts = _facts(images, subject)
    done = {(row["measure"], row["shots"]) for row in record["rows"] if _alike(row, facts)}

    def keep(row: dict[str, Any]) -> None:
        logger.info("%s, %s: %s", facts["set"], facts["subject"], row)
        record["rows"].append({**facts, **row})
        write_atomically(given.json, json.dumps(record, indent=1) + "\n")

    possible = [shots for shots in SHOTS if shots is None or shots <= images.fewest]
    if not done.issuperset((measure, shots) for measure in FROZEN for shots in possible):
        known, unknown = subject.describe(images.train), subject.describe(images.test)
        facts |= {"train_images": len(known.names), "test_images": len(unknown.names)}
        for row in _rows(known, unknown, done):
            keep(row)
    if subject.words is None or not given.finetune:
        return
    words = [*subject.words, "--pool", given.pool]
    for shots in given.finetune_shots:
        if ("finetune", shots) in done or shots > images.fewest:
            continue
        found = [
            finetuned(words, images.address, shots, seed, subject.size, given.setting)
            for seed in range(given.finetune)
        ]
        keep({**_row("finetune", shots, found), "settings": _public(given.setting)})


def _facts(images: ImageSet, subject: Subject) -> dict[str, Any]:
    """What every row says of its images and its subject."""
    return {
        "set": images.name,
        "address": public_address(images.address),
        "train_images": len(images.train),
        "test_images": len(images.test),
        "train_fingerprint": images.train_fingerprint,
        "test_fingerprint": images.test_fingerprint,
        "subject": subject.name,
        "size": subject.size,
        "weights_sha256": subject.sha256,
    }


def _alike(row: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Whether a row goes by the names and the size of these facts."""
    return all(row[key] == facts[key] for key in ("set", "subject", "size"))


def _check_same(
    rows: Sequence[dict[str, Any]],
    images: ImageSet,
    subject: Subject,
    given: argparse.Namespace,
) -> None:
    """Raise ValueError where rows of these names are of other weights, images or settings.

    What an older row does not say is no difference.
    """
    facts = _facts(images, subject)
    counted = {"train_images": images.train, "test_images": images.test}
    for row in rows:
        if not _alike(row, facts):
            continue
        here = {key: facts[key] for key in COMPARED}
        if given.finetune and row["measure"] == "finetune":
            here["settings"] = _public(given.setting)
        differing = [
            f"{key} {_short(row[key])} there, {_short(value)} here"
            for key, value in here.items()
            if key in row
            and row[key] != value
            # Rows of features count readable images alone.
            and not (key in counted and row[key] == _readable(counted[key]))
        ]
        if differing:
            raise ValueError(
                f"{given.json} has other rows of {subject.name!r} on {images.name!r},"
                f" {_size_words(subject.size)}: {'; '.join(differing)}. Name another --json"
            )


@functools.cache  # asked for every row, of few sources; every image is decoded
def _readable(source: ImageSource) -> int:
    return sum(isinstance(found, Sample) for found in source.samples())


def _public(settings: Sequence[str]) -> list[str]:
    """Settings as records hold them: without paths."""
    pairs = (word.partition("=") for word in settings)
    return [f"{key}{equals}{public_text(value)}" for key, equals, value in pairs]


def _short(value: Any) -> str:
    """A value as messages show it: of a digest the beginning."""
    if isinstance(value, list):
        return " ".join(value) or "none"
    return "none" if value is None else str(value)[:12]


def _size_words(size: int | None) -> str:
    return "own size" if size is None else f"{size} px"


def table_lines(record: dict[str, Any], *, neighbours: bool = False) -> list[str]:
    """A Markdown table of a record, a row for every set and subject, a column for what it has.

    Of probes, fine-tuning and neighbours with all labels, or of `neighbours` alone. A subject that
    was measured at several sizes has a row for each, which says it.
    """
    columns = _NEIGHBOURS if neighbours else _USUAL
    measured = {(row["measure"], row["shots"]) for row in record["rows"]}
    shown = {column: head for column, head in columns.items() if column in measured}
    heads = ["set", "features", *shown.values()]
    lines = [f"| {' | '.join(heads)} |", rule_below(len(heads))]
    sizes: dict[str, set[int | None]] = {}
    for row in record["rows"]:
        sizes.setdefault(row["subject"], set()).add(row["size"])
    found: dict[tuple[str, str], dict[tuple[str, int | None], str]] = {}
    for row in record["rows"]:
        several = len(sizes[row["subject"]]) > 1
        label = row["subject"] + (f", {_size_words(row['size'])}" if several else "")
        spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
        cells = found.setdefault((row["set"], label), {})
        cells[row["measure"], row["shots"]] = f"{100 * row['mean']:.1f}{spread}"
    for (name, label), cells in found.items():
        values = (cells.get(column, "") for column in shown)
        lines.append(f"| {name} | {label} | {' | '.join(values)} |")
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


def _opened(name: str, address: str, models: Sequence[tuple[str, str]]) -> ImageSet:
    """A set with those models that are there; `{set}` in weights stands for the set's name."""
    train, test = (
        cast("ImageSource", open_source(address, split=split)) for split in ("train", "test")
    )
    there = []
    for model, weights in models:
        path = weights.replace("{set}", name)
        if not Path(path).exists() and "/" in path:
            logger.info("%s is not there: passed over", path)
        else:
            there.append((model, path))
    return ImageSet(
        name=name,
        address=address,
        train=train,
        test=test,
        train_fingerprint=train.fingerprint(),
        test_fingerprint=test.fingerprint(),
        fewest=min(Counter(labels_of(train)).values()),
        models=there,
    )


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
    models: Sequence[tuple[str, str]], size: int | None, pool: FeaturePool
) -> Iterator[Subject]:
    """What is measured on a set, in turn."""
    more = "" if pool == USUAL else f", {pool}"

    def of(model: Backbone) -> Describe:
        if size is not None:
            model.preprocess = replace(model.preprocess, size=(size, size))

        def described(source: ImageSource) -> Features:
            return extract_features(model, source, pool=pool, batch_size=64)

        return described

    drawn: list[tuple[str | None, ModelConfig]] = []
    shown: list[tuple[str | None, ModelConfig, Preprocess]] = []
    for name, path in models:
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
    """A grey or RGB image (C, H, W) as (3, side, side); bytes are brought to 0 to 1.

    Other values are floats, which sources give as they are meant.
    """
    whole = image.expand(3, -1, -1) if len(image) == 1 else image[:3]
    values = whole.float() / 255 if image.dtype == torch.uint8 else whole
    small: Tensor = resize(values, [side, side], antialias=True)
    return small


def _collected(source: ImageSource, describe: Callable[[Tensor], Tensor], pool: str) -> Features:
    """A row for every readable image, as of a model's features."""
    rows, names, labels, unreadable = [], [], [], []
    for sample in source.samples():
        if isinstance(sample, UnreadableImage):
            unreadable.append((sample.name, sample.reason))
            continue
        rows.append(describe(sample.image))
        names.append(sample.name)
        labels.append(-1 if sample.label is None else sample.label)
    if not rows:
        raise ValueError(
            f"none of the {len(source)} images of {source.address} can be read, such as"
            f" {': '.join(unreadable[0])}: name another --set"
        )
    return Features(
        values=torch.stack(rows),
        labels=torch.tensor(labels),
        names=names,
        class_names=source.class_names,
        pool=pool,
        unreadable=unreadable,
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


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    given = parser.parse_args(arguments)
    for option, pairs in (("--set", given.sets), ("--model", given.models)):
        name, times = Counter(name for name, _ in pairs).most_common(1)[0]
        if times > 1:  # the second would pass for measured already
            parser.error(f"{option} {name} stands there {times} times: give each a name of its own")
    return given


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
