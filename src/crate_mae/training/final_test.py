"""The test at the end of a supervised run: once, on the weights as they were saved."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from crate_mae.common.files import file_hash, write_atomically
from crate_mae.common.progress import progress_bar
from crate_mae.evaluation.backbones import as_classifier, load_backbone
from crate_mae.evaluation.features import extract_features
from crate_mae.evaluation.metrics import Score, chance_level, majority, score
from crate_mae.models.backbone import ImageClassifier
from crate_mae.sources.base import ImageSource
from crate_mae.training.callbacks import BEST, LAST, is_main_process
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.labelled_images import LabelledImages
from crate_mae.training.run_folder import last_step
from crate_mae.weights.shipped import TENSORS

EVALUATION = "evaluation.json"


def score_classifier(
    model: ImageClassifier,
    test: ImageSource,
    train_labels: torch.Tensor,
    *,
    all_labels: torch.Tensor | None = None,
    device: torch.device | str | None = None,
) -> tuple[Score, dict[str, Any]]:
    """The score on test images, and {top5_accuracy, unreadable}.

    Answers are among the classes that had training images; the most frequent one is that of
    `all_labels`, where the training images are a few of those, drawn class by class.
    `top5_accuracy` is None below ten classes.
    """
    progress = progress_bar("testing") if is_main_process() else None
    features = extract_features(
        model, test, pool=model.pool, layer=model.pooled_layer, device=device, progress=progress
    )
    assert features.labels is not None
    with torch.inference_mode():
        scores = model.score(features.values.to(model.head.weight.device)).cpu()
    known = torch.zeros(scores.shape[1], dtype=torch.bool)
    known[train_labels] = True
    scores = scores.masked_fill(~known, -torch.inf)
    found = score(features, features.labels, train_labels, scores.argmax(dim=1))
    if all_labels is not None:
        found = replace(
            found,
            chance=chance_level(all_labels, features.labels),
            majority=majority(features, all_labels),
        )
    top5 = None
    if scores.shape[1] >= 10:
        best = scores.topk(5, dim=1)
        hits = (best.indices == features.labels[:, None]) & torch.isfinite(best.values)
        hits = hits.any(dim=1)
        top5 = int(hits.sum()) / len(hits)
    unreadable = [list(pair) for pair in features.unreadable]
    return found, {"top5_accuracy": top5, "unreadable": unreadable}


def conclude_with_test(
    config: FinetuneConfig, folder: Path, images: LabelledImages, device: torch.device
) -> dict[str, float]:
    """The test metrics; `evaluation.json` is written, or read when the test has been made."""
    target = folder / EVALUATION
    if not target.exists():
        name = "weights" if config.evaluate == "last" else "weights-best"
        weights = folder / name
        model = as_classifier(load_backbone(weights)[0])
        assert model is not None  # a supervised run saves nothing else
        found, further = score_classifier(
            model, images.test, images.train_labels, all_labels=images.all_labels, device=device
        )
        facts = {
            "weights": name,
            "sha256": file_hash(weights / TENSORS),
            "step": last_step(folder, LAST if config.evaluate == "last" else BEST),
            "pool": config.pool,
            "layer": model.pooled_layer,
            "tested_on": " ".join(filter(None, (images.test.address, images.test.split))),
            **asdict(found),
            **further,
            "data": json.loads((folder / "data.json").read_text(encoding="utf-8")),
            "settings": config.to_dict(),
        }
        write_atomically(target, json.dumps(facts, indent=2) + "\n")
    accuracy = json.loads(target.read_text(encoding="utf-8"))["accuracy"]
    return {"test/accuracy": float(accuracy)}


def evaluation_text(folder: Path) -> str:
    """What `evaluation.json` of a run says, as lines of text: accuracy, classes, mistakes.

    Of a run on masks: mean intersection over union, and that of classes.
    """
    found = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
    if "mean_iou" in found:
        return _mask_text(found)
    low, high = found["interval"]
    named = f" ({found['majority']})" if found.get("majority") else ""
    lines = [
        f"test accuracy {found['accuracy']:.2%} (95 % interval {low:.1%} to {high:.1%}) on"
        f" {found['num_test']} images of {found['tested_on']}, {found['weights']} at step"
        f" {found['step']}; the most frequent class alone{named} gives {found['chance']:.2%}"
    ]
    if "balanced_accuracy" in found:
        lines.append(
            f"balanced accuracy (mean over classes) {found['balanced_accuracy']:.2%},"
            f" F1 (mean over classes) {found['macro_f1']:.2%}"
        )
    if found["top5_accuracy"] is not None:
        lines.append(f"among the five highest scores: {found['top5_accuracy']:.2%}")
    measured = {k: v for k, v in found["per_class"].items() if v is not None}
    for what, reverse in (("lowest", False), ("highest", True)):
        ends = sorted(measured.items(), key=lambda item: item[1], reverse=reverse)[:3]
        lines.append(f"{what} by class: " + ", ".join(f"{k} {v:.1%}" for k, v in ends))
    mistakes = [f"{m['true']} as {m['predicted']} ({m['count']})" for m in found["top_confusions"]]
    if mistakes:
        lines.append("most frequent mistakes: " + ", ".join(mistakes[:3]))
    return "\n".join(lines)


def _mask_text(found: dict[str, Any]) -> str:
    """What `evaluation.json` of a run on masks says, as lines of text."""
    lines = [
        f"test mean IoU {found['mean_iou']:.4f}, pixel accuracy {found['pixel_accuracy']:.2%} on"
        f" {found['num_test']} images of {found['tested_on']}, {found['weights']} at step"
        f" {found['step']}; everywhere the most frequent class ({found['majority']}) gives"
        f" {found['majority_mean_iou']:.4f} and {found['majority_pixel_accuracy']:.2%}"
    ]
    measured = {name: iou for name, iou in found["iou"].items() if iou is not None}
    ranked = sorted(measured.items(), key=lambda item: item[1])
    shown = ranked if len(ranked) <= 8 else [*ranked[:3], *ranked[-3:]]
    lines.append("IoU by class: " + ", ".join(f"{name} {iou:.4f}" for name, iou in shown))
    return "\n".join(lines)
