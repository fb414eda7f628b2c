"""The test at the end of a run on masks: once, on the weights as they were saved."""

import json
import logging
from pathlib import Path

import torch

from crate_mae.common.files import file_hash, write_atomically
from crate_mae.common.progress import progress_bar
from crate_mae.dense.class_segmentation import ClassSegmentation, segment_classes
from crate_mae.evaluation.backbones import as_segmenter, load_backbone
from crate_mae.figures.class_sheet import draw_classes
from crate_mae.training.callbacks import BEST, LAST
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.dense_images import DenseImages
from crate_mae.training.final_test import EVALUATION
from crate_mae.training.run_folder import last_step
from crate_mae.weights.shipped import TENSORS

SHEET = "segmentation.png"
"""The picture of test images, truth and prediction in a run folder."""
DRAWN = 8

logger = logging.getLogger(__name__)


def conclude_with_masks(
    config: FinetuneConfig, folder: Path, images: DenseImages, device: torch.device
) -> dict[str, float]:
    """The test metrics; `evaluation.json` and a picture are written, or read when there."""
    target = folder / EVALUATION
    if not target.exists():
        name = "weights" if config.evaluate == "last" else "weights-best"
        weights = folder / name
        model = as_segmenter(load_backbone(weights)[0])
        assert model is not None  # a run on masks saves nothing else
        model.to(device)
        found = segment_classes(model, images.test, progress=progress_bar("testing"))
        assert found.score is not None  # its images have masks
        facts = {
            "weights": name,
            "sha256": file_hash(weights / TENSORS),
            "step": last_step(folder, LAST if config.evaluate == "last" else BEST),
            "head": found.head,
            "frozen": config.segment.freeze,
            "tested_on": " ".join(filter(None, (images.test.address, images.test.split))),
            **found.score.to_dict(images.class_names),
            "ignored_share": found.ignored,
            "num_train": len(images.train),
            "num_test": len(found.names),
            "num_classes": len(images.class_names),
            "unreadable": [list(pair) for pair in found.unreadable],
            "data": json.loads((folder / "data.json").read_text(encoding="utf-8")),
            "settings": config.to_dict(),
        }
        _draw(found, folder, str(facts["tested_on"]))
        write_atomically(target, json.dumps(facts, indent=2) + "\n")
    known = json.loads(target.read_text(encoding="utf-8"))
    return {
        "test/mean_iou": float(known["mean_iou"]),
        "test/pixel_accuracy": float(known["pixel_accuracy"]),
    }


def _draw(found: ClassSegmentation, folder: Path, tested_on: str) -> None:
    count = min(DRAWN, len(found.shown))
    try:
        draw_classes(
            found.shown[:count],
            found.predicted[:count],
            folder / SHEET,
            classes=found.classes,
            truth=None if found.truth is None else found.truth[:count],
            names=found.names[:count],
            caption=f"{found.words()} The first {count} of {len(found.names)} test images of"
            f" {tested_on}.",
            overwrite=True,
        )
    except Exception as error:  # the numbers count; whatever drawing stumbles over
        logger.warning("no picture of the test was drawn: %s", error)
