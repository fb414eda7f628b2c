"""Classes of pixels as a trained head tells them: predicted, measured, and as mask files.

Numbers are of images as the model sees them: scaled to cover its size, the middle cut out, and the
masks with them. Files hold whole images at their own size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from crate_mae.batches.broken import listed, readable
from crate_mae.batches.transforms import (
    covering_size,
    dense_fit,
    displayed,
    normalised_batch,
    prepare,
    resized,
)
from crate_mae.common.files import check_new_folder, replacing_tree
from crate_mae.common.progress import Progress
from crate_mae.common.text_tables import named_values
from crate_mae.dense.class_masks import DenseSource, mask_values
from crate_mae.dense.layout import layout_of
from crate_mae.evaluation.backbones import evaluating
from crate_mae.evaluation.pixel_scores import PixelScore, pixel_counts
from crate_mae.models.config import Preprocess
from crate_mae.models.depict import CrateSegmenter, head_name
from crate_mae.models.mask_classes import VOID, MaskClasses
from crate_mae.sources.address import few
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import Sample, to_channels

SHOWN = 16
"""Images that are kept to be drawn."""
LISTED_CLASSES = 40
"""Classes that get a line each; JSON has all."""


@dataclass(frozen=True, kw_only=True)
class ClassSegmentation:
    """What a head tells of the pixels of a source and, where there are masks, how right it is."""

    names: list[str]
    """Of the readable images."""
    shown: Tensor
    """(S, C, H, W) the first of them on the [0, 1] scale."""
    predicted: Tensor
    """(S, H, W) uint8, class numbers of these."""
    truth: Tensor | None
    """(S, H, W) uint8, true class numbers of these, `VOID` where nothing counts."""
    shares: list[float]
    """Of each class, the share of all pixels that are told as it."""
    score: PixelScore | None
    ignored: float
    """The share of true pixels that do not count."""
    classes: MaskClasses
    head: str
    unreadable: list[tuple[str, str]]

    def words(self) -> str:
        """What was done, as a caption says it."""
        return f"Classes of pixels: {self.head} head, trained on masks; the highest score counts."

    def table(self) -> str:
        """The share and, with a truth, the intersection over union of every class; means."""
        lines = [self.words()]
        iou: Sequence[float | None] = (
            [None] * len(self.shares) if self.score is None else self.score.iou
        )
        rows = []
        for name, share, fit in list(zip(self.classes.names, self.shares, iou, strict=True))[
            :LISTED_CLASSES
        ]:
            measured = "" if fit is None else f", IoU {fit:.4f}"
            rows.append((name, f"{share:.1%} of the pixels{measured}"))
        lines += named_values(rows, indent="  ")
        if len(self.shares) > LISTED_CLASSES:
            lines.append(f"{len(self.shares) - LISTED_CLASSES} more classes: --json FILE")
        if self.score is not None:
            trivial = self.score.always(self.score.majority)
            lines.append(
                f"mean IoU {self.score.mean_iou:.4f}, pixel accuracy {self.score.accuracy:.4f} of"
                f" {len(self.names)} images; everywhere the most frequent class"
                f" ({self.classes.names[self.score.majority]}) gives {trivial.mean_iou:.4f} and"
                f" {trivial.accuracy:.4f}"
            )
            there = self.score.counts.sum(dim=1).tolist()
            absent = [n for n, pixels in zip(self.classes.names, there, strict=True) if not pixels]
            if absent:
                lines.append(f"no true pixels of {few(absent)}")
        if self.ignored:
            lines.append(f"{self.ignored:.1%} of the pixels do not count")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = self.classes.names
        return {
            "head": self.head,
            "names": self.names,
            "class_names": list(names),
            "mask_values": list(self.classes.values),
            "shares": dict(zip(names, self.shares, strict=True)),
            "score": None if self.score is None else self.score.to_dict(names),
            "ignored_share": self.ignored,
            "unreadable": [list(entry) for entry in self.unreadable],
        }


def segment_classes(
    model: CrateSegmenter,
    source: ImageSource,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ClassSegmentation:
    """The classes of the pixels of a source's readable images, at the size of `model.preprocess`.

    With masks beside the images (`DenseSource`) they are measured, summed over the whole set.
    Raises ValueError for a size that does not fit the model, and where no image can be read.
    """
    preprocess, count = model.preprocess, len(model.classes.values)
    layout_of(model.config, preprocess.size)
    place = next(model.parameters()).device
    truth_known = isinstance(source, DenseSource)
    names: list[str] = []
    unreadable: list[tuple[str, str]] = []
    kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
    told = torch.zeros(count, dtype=torch.int64)
    counts, void, pixels = torch.zeros(count, count, dtype=torch.int64), 0, 0
    done, entries = 0, source.samples()
    with evaluating(model), torch.inference_mode():
        while batch := list(islice(entries, batch_size)):
            samples = list(readable(batch, unreadable))
            done += len(batch)
            if samples:
                images, masks = _fitted(samples, preprocess)
                found = model(images.to(place)).argmax(dim=1).cpu()
                told += torch.bincount(found.flatten(), minlength=count)
                if masks is not None:
                    counts += pixel_counts(found, masks, count)
                    void, pixels = void + int((masks == VOID).sum()), pixels + masks.numel()
                for row in range(max(0, min(len(samples), SHOWN - len(names)))):
                    picture = displayed(images[row], preprocess)
                    true = None if masks is None else masks[row]
                    kept.append((picture, found[row].to(torch.uint8), true))
                names += [sample.name for sample in samples]
            if progress is not None:
                progress(done, len(source))
    if not names:
        raise ValueError(
            f"none of the images of {source.address} can be read: {listed(unreadable)}"
        )
    truths = [true for _, _, true in kept if true is not None]
    return ClassSegmentation(
        names=names,
        shown=torch.stack([picture for picture, _, _ in kept]),
        predicted=torch.stack([found for _, found, _ in kept]),
        truth=torch.stack(truths) if truth_known else None,
        shares=(told.double() / told.sum()).tolist(),
        score=PixelScore(counts=counts) if truth_known else None,
        ignored=void / pixels if pixels else 0.0,
        classes=model.classes,
        head=head_name(model.decoder),
        unreadable=unreadable,
    )


def _fitted(samples: Sequence[Sample], preprocess: Preprocess) -> tuple[Tensor, Tensor | None]:
    """Model input (B, C, H, W) and masks (B, H, W) uint8, where the samples have them."""
    images = [to_channels(sample.image, preprocess.channels) for sample in samples]
    if samples[0].mask is None:
        return prepare(images, preprocess), None
    pairs = [
        dense_fit(image, sample.mask, size=preprocess.size)
        for image, sample in zip(images, samples, strict=True)
        if sample.mask is not None
    ]
    fitted = normalised_batch([image for image, _ in pairs], preprocess)
    return fitted, torch.stack([mask for _, mask in pairs])


def whole_image_classes(model: CrateSegmenter, image: Tensor) -> Tensor:
    """The class number (H, W), uint8, of every pixel of a whole decoded image (C, H, W).

    The image is scaled so that it just covers the model's size, with its proportions kept and
    nothing cut off; scores are brought back to its own size bilinearly before they are compared.
    """
    preprocess = model.preprocess
    image = to_channels(image, preprocess.channels)
    size = (image.shape[1], image.shape[2])
    whole = covering_size(size, preprocess.size)
    scaled = resized(image, whole)
    rows, columns = (-(-s // p) for s, p in zip(whole, model.config.patch_hw, strict=True))
    model.encoder.expect_grid((rows, columns))  # another one for every proportion: no news
    place = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        scores = model(normalised_batch([scaled], preprocess).to(place)).cpu()
        best, numbers = torch.full(size, -torch.inf), torch.zeros(size, dtype=torch.uint8)
        for number in range(scores.shape[1]):  # one class at a time: photographs are large
            own = F.interpolate(
                scores[:, number : number + 1], size=size, mode="bilinear", align_corners=False
            )[0, 0]
            numbers[own > best] = number
            best = torch.maximum(best, own)
    return numbers


def save_class_masks(
    model: CrateSegmenter,
    source: ImageSource,
    folder: str | Path,
    *,
    progress: Progress | None = None,
) -> int:
    """How many PNG masks of whole images were written into a new folder; all or none.

    Each has its image's name and size; pixels have the values of the masks that were trained on,
    8 bits where these fit and else 16. Raises as `check_new_folder`, and ValueError where two
    images would share a file or none can be read.
    """
    folder = check_new_folder(folder)
    classes = model.classes
    deep = max(classes.values) > VOID
    written: dict[Path, str] = {}
    with replacing_tree(folder) as fresh:
        for done, sample in enumerate(_readable(source), start=1):
            place = mask_place(sample.name)
            if place in written:
                raise ValueError(
                    f"{written[place]} and {sample.name} would share the mask {place}: give the"
                    " images different names"
                )
            written[place] = sample.name
            values = mask_values(whole_image_classes(model, sample.image), classes).numpy()
            (fresh / place).parent.mkdir(parents=True, exist_ok=True)
            array = values.astype("uint16" if deep else "uint8")
            Image.fromarray(array).save(fresh / place, "PNG")
            if progress is not None:
                progress(done, len(source))
        if not written:
            raise ValueError(f"none of the images of {source.address} can be read")
    return len(written)


def mask_place(name: str) -> Path:
    """Where the mask of an image of that name lies below a folder of masks; never outside of it."""
    given = Path(name)
    if given.is_absolute() or ".." in given.parts:
        given = Path(given.name)
    return given.with_suffix(".png")


def _readable(source: ImageSource) -> Iterator[Sample]:
    return (entry for entry in source.samples() if isinstance(entry, Sample))
