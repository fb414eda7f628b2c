"""What segmentation heads learn on an encoder, frozen or trained with them, beside none at all.

python benchmarks/dense_heads.py --source parquet:PATH --masks column:mask --runs FOLDER \
    --json FILE

Trains every head (linear, DEPICT's two forms) on frozen weights, on a frozen random encoder of the
same sizes, and with the encoder, all by one recipe; then measures them on the test images. Beside
them: foreground of the same weights without labels (`crate-mae segment`), and masks that need no
model. Runs that are in FOLDER go on or are taken as they are, rows that stand in FILE are not
measured again. With --docs the table also goes between the markers of a Markdown page.

Two numbers of each: mean IoU of the classes, counted over all test images together, and the mean
over images of the foreground's IoU, which is what `segment` says without labels. Both are of images
as the model sees them, with masks of the nearest pixel.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crate_mae.batches.transforms import dense_fit, prepare
from crate_mae.common.files import write_atomically
from crate_mae.dense.class_masks import DenseSource, dense_source
from crate_mae.dense.segment_source import SegmentSettings, segment_images
from crate_mae.dense.segmentation import agreement, centred_ellipse, segment_brightness
from crate_mae.evaluation.pixel_scores import PixelScore, pixel_counts
from crate_mae.models.depict import CrateSegmenter, HeadName
from crate_mae.models.mask_classes import VOID
from crate_mae.sources.address import counted_source
from crate_mae.sources.images import to_channels
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.finetune import finetune
from crate_mae.training.parse import parse_finetune
from crate_mae.weights.weights_folder import load_model
from records import day_and_machine, parser_of
from tables import fill_between, rule_below

HEADS: tuple[HeadName, ...] = ("linear", "depict-cross", "depict-self")
ENCODERS = ("frozen", "random, frozen", "trained")
"""What becomes of the encoder; "random": of the same sizes, never trained."""
WITHOUT_LABELS = "no labels: first component"
PLACE = "dense-heads"

logger = logging.getLogger("benchmarks")
Masks = Tensor
"""(n, H, W) class numbers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    given = _parser().parse_args(arguments)
    record = _begun(given)
    measured = {(row["encoder"], row["head"]) for row in record["rows"]}
    for encoder, head in _order(given.heads):
        if (encoder, head) in measured:
            continue
        config = _config(given, encoder, head)
        folder = given.runs / f"{encoder.replace(', ', '-')}-{head}"
        if not finetune(config, folder, resume=folder.exists()).finished:
            return 143  # asked to stop: what was saved goes on with the same command
        record["rows"].append({"encoder": encoder, "head": head, **_trained(folder, given)})
        _keep(record, given.json)
    if WITHOUT_LABELS not in {row["encoder"] for row in record["rows"]}:
        record["rows"] += _untrained(given)
        _keep(record, given.json)
    content = "\n".join(table_lines(record))
    print(content)
    if given.docs is not None:
        fill_between(given.docs, PLACE, content)
    return 0


def table_lines(record: dict[str, Any]) -> list[str]:
    """A Markdown table of a record, a row for every encoder and head."""
    heads = ["encoder", "head", "mean IoU", "foreground IoU", "pixel accuracy"]
    lines = [f"| {' | '.join(heads)} |", rule_below(len(heads))]
    order = [*ENCODERS, *(row["encoder"] for row in record["rows"] if not row["head"])]
    for row in sorted(record["rows"], key=lambda row: order.index(row["encoder"])):
        numbers = (row["mean_iou"], row["foreground_iou"], row["pixel_accuracy"])
        cells = [row["encoder"], row["head"], *(f"{number:.3f}" for number in numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _order(heads: Sequence[HeadName]) -> Iterator[tuple[str, HeadName]]:
    """Encoders and heads, the plainest first."""
    for head in heads:
        for encoder in ENCODERS:
            yield encoder, head


def _begun(given: argparse.Namespace) -> dict[str, Any]:
    if given.json.exists():
        found: dict[str, Any] = json.loads(given.json.read_text())
        return found
    return {
        **day_and_machine(),
        "data": given.name,
        "weights": given.weights,
        "seed": given.seed,
        "epochs": given.epochs,
        "rows": [],
    }


def _keep(record: dict[str, Any], path: Path) -> None:
    logger.info("%s", record["rows"][-1])
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def _config(given: argparse.Namespace, encoder: str, head: HeadName) -> FinetuneConfig:
    words = [
        "--config", "finetune-segment", "--data.source", given.source, "--seed", str(given.seed),
        "--segment.masks", given.masks, "--segment.head", head, "--data.workers", "0",
        "--segment.freeze", str(encoder != "trained").lower(), "--optim.epochs", str(given.epochs),
    ]  # fmt: skip
    config, _ = parse_finetune(words)
    if not encoder.startswith("random"):
        return replace(config, weights=given.weights)
    model = load_model(given.weights)
    mean, std = list(model.preprocess.mean), list(model.preprocess.std)
    return replace(config, model=model.config, data=replace(config.data, mean=mean, std=std))


def _trained(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    model = load_model(folder / "weights-best")
    assert isinstance(model, CrateSegmenter)
    test = dense_source(counted_source(given.source, "test"), given.masks, model.classes)
    pairs = list(_pairs(test, model.preprocess.size, model.config.channels))
    told = []
    with torch.inference_mode():
        for start in range(0, len(pairs), 16):
            images = [image for image, _ in pairs[start : start + 16]]
            told.append(model(prepare(images, model.preprocess)).argmax(dim=1))
    known = json.loads((folder / "evaluation.json").read_text())
    row = _numbers(torch.cat(told), torch.stack([mask for _, mask in pairs]))
    if abs(row["mean_iou"] - known["mean_iou"]) > 1e-3:
        raise RuntimeError(f"{folder}: {row['mean_iou']} here, {known['mean_iou']} in its test")
    summary = json.loads((folder / "summary.json").read_text())
    more = {"iou": known["iou"], "steps": summary["step"], "best_step": known["step"]}
    return {**row, **more, "parameters": sum(p.numel() for p in model.decoder.parameters())}


def _untrained(given: argparse.Namespace) -> list[dict[str, Any]]:
    """What needs no labels, on the same test masks of the nearest pixel."""
    model = load_model(given.weights)
    source = counted_source(given.source, "test")
    found = segment_images(model, source, SegmentSettings(), masks=given.masks)
    reference = load_model(given.runs / f"frozen-{given.heads[0]}" / "weights")
    assert isinstance(reference, CrateSegmenter)
    test = dense_source(source, given.masks, reference.classes)
    size = model.preprocess.size
    truth = torch.stack([mask for _, mask in _pairs(test, size, model.config.channels)])
    ellipse = centred_ellipse(size).expand_as(found.segmentation.masks)
    return [
        {"encoder": name, "head": "", **_numbers(masks.long(), truth)}
        for name, masks in (
            (WITHOUT_LABELS, found.segmentation.masks),
            ("no model: Otsu on brightness", segment_brightness(found.shown).masks),
            ("no model: a centred ellipse", ellipse),
            ("no model: all foreground", torch.ones_like(ellipse)),
            ("no model: all background", torch.zeros_like(ellipse)),
        )
    ]


def _pairs(
    source: DenseSource, size: tuple[int, int], channels: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for index in range(len(source)):
        sample = source.load(index)
        assert sample.mask is not None
        yield dense_fit(to_channels(sample.image, channels), sample.mask, size=size)


def _numbers(told: Masks, truth: Masks) -> dict[str, float]:
    """Of two classes, the second of which is the foreground."""
    score = PixelScore(counts=pixel_counts(told, truth, 2))
    by_image = agreement(told == 1, truth == 1, counted=truth != VOID)
    return {
        "mean_iou": score.mean_iou,
        "foreground_iou": float(by_image.iou.mean()),
        "pixel_accuracy": score.accuracy,
    }


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--source", required=True, help="images in two splits, train and test")
    parser.add_argument("--name", required=True, help="what the images are called in the record")
    parser.add_argument("--masks", required=True, metavar="FOLDER|column:NAME")
    parser.add_argument("--weights", default="photos64", help="of the encoder (photos64)")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS, help="(all)")
    parser.add_argument("--epochs", type=int, default=8, help="of every run (8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, required=True, help="goes on there if it exists")
    parser.add_argument("--docs", type=Path, help="page that takes the table")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
