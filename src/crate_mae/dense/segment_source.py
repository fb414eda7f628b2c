"""From images and, if there are any, true masks to foreground masks and their scores."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from crate_mae.batches.transforms import fit
from crate_mae.common.progress import Progress
from crate_mae.common.text_tables import named_values
from crate_mae.dense.attention import AttentionMaps, attention_maps, head_numbers
from crate_mae.dense.layout import Pair, layout_of
from crate_mae.dense.segmentation import (
    Agreement,
    Segmentation,
    agreement,
    check_attends,
    segment_attention,
    segment_pixels,
    segment_tokens,
)
from crate_mae.dense.thresholds import checked_mass
from crate_mae.dense.token_maps import AnyModel, TokenKind, shown_images, token_map
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import UnreadableImage, decode_image, probe_image

SegmentMethod = Literal["pca", "attention"]


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """How foreground is found; see `segment_tokens`, `segment_attention` and `token_map`."""

    method: SegmentMethod = "pca"
    layer: int | None = None
    """"pca": layers that the tokens have passed (None: all, and the final norm); "attention": the
    layer, from 0 (None: the last)."""
    kind: TokenKind = "tokens"
    each: bool = False
    flip: bool = False
    threshold: float | None = None
    head: int | None = None
    mass: float = 0.6
    size: Pair | None = None
    stride: int | Pair | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentedSource:
    """Foreground of the images of a source and, where there is a truth, how well it fits."""

    names: list[str]
    shown: Tensor
    """(B, C, H, W) images on the [0, 1] scale."""
    segmentation: Segmentation
    truth: Tensor | None
    """(B, H, W) boolean"""
    scores: Agreement | None
    pixels: Agreement | None
    """Of the same rule on raw pixels of patches, without a model; None for attention or without a
    truth, and where raw pixels have no threshold."""
    heads: list[float] | None
    """Mean IoU of every head by itself; for attention with a truth."""
    unreadable: list[tuple[str, str]]
    settings: SegmentSettings

    def table(self) -> str:
        """What was found, a line for each image and number."""
        share = self.segmentation.masks.double().mean(dim=(1, 2)).tolist()
        lines = [self.segmentation.words()]
        for row, name in enumerate(self.names):
            fit = "" if self.scores is None else f", IoU {float(self.scores.iou[row]):.3f}"
            lines.append(f"{name}: {share[row]:.0%} foreground{fit}")
        controls: list[tuple[str, Tensor | float]] = []
        if self.scores is not None:
            lines.append(f"mean IoU {float(self.scores.iou.mean()):.4f}")
            controls.append(("everything called foreground", self.scores.everything.mean()))
            if self.pixels is not None:
                controls.append(("same rule on raw pixels", self.pixels.iou.mean()))
            controls.append(("oracle: better side, by truth", self.scores.oracle.mean()))
        if self.heads is not None:
            best = max(range(len(self.heads)), key=self.heads.__getitem__)
            controls.append((f"oracle: best head, {best}", self.heads[best]))
        shown = ((name, f"{float(iou):.4f}") for name, iou in controls)
        lines += named_values(shown, indent="  ")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        share = self.segmentation.masks.double().mean(dim=(1, 2)).tolist()
        return {
            "settings": asdict(self.settings),
            "words": self.segmentation.words(),
            "names": self.names,
            "foreground_share": share,
            "unreadable": [list(entry) for entry in self.unreadable],
            "agreement": None if self.scores is None else self.scores.to_dict(),
            "raw_pixels": None if self.pixels is None else self.pixels.to_dict(),
            "mean_iou_by_head": self.heads,
        }


def segment_images(
    model: AnyModel,
    source: ImageSource,
    settings: SegmentSettings,
    *,
    masks: str | Path | None = None,
    progress: Progress | None = None,
) -> SegmentedSource:
    """The foreground of the readable images of a source, measured against a folder of `masks`.

    Raises ValueError as `token_map`, `attention_maps`, `mask_files` and the methods, before the
    model runs where that can be known.
    """
    checked_mass(settings.mass)
    if settings.method == "attention":
        check_attends(model.stacks["encoder"][0].mssa)
    files = None if masks is None else mask_files(source, masks)
    if settings.head is not None:
        head_numbers([settings.head], model.config.num_heads)
    found = shown_images(model, source, size=settings.size, stride=settings.stride)
    size = (found.images.shape[2], found.images.shape[3])
    truth = None if files is None else load_masks([files[name] for name in found.names], size)
    maps: AttentionMaps | None = None
    if settings.method == "attention":
        layer = -1 if settings.layer is None else settings.layer
        maps = attention_maps(
            model, found.images, layers=[layer], stride=settings.stride, progress=progress
        )
        result = segment_attention(maps, head=settings.head, mass=settings.mass)
    else:
        tokens = token_map(
            model,
            found.images,
            layer=settings.layer,
            kind=settings.kind,
            stride=settings.stride,
            progress=progress,
        )
        result = segment_tokens(
            tokens, each=settings.each, quantile=settings.threshold, flip=settings.flip
        )
    return SegmentedSource(
        names=found.names,
        shown=found.shown,
        segmentation=result,
        truth=truth,
        scores=None if truth is None else agreement(result.masks, truth),
        pixels=None if truth is None else _baseline(model, found.images, settings, truth),
        heads=None if truth is None or maps is None else _by_head(maps, settings.mass, truth),
        unreadable=found.unreadable,
        settings=settings,
    )


def _baseline(
    model: AnyModel, images: Tensor, settings: SegmentSettings, truth: Tensor
) -> Agreement | None:
    if settings.method != "pca":
        return None
    layout = layout_of(model.config, (images.shape[2], images.shape[3]))
    try:
        plain = segment_pixels(
            images, layout, each=settings.each, quantile=settings.threshold, flip=settings.flip
        )
    except ValueError:  # patches that are all alike have no foreground; tokens may still have one
        return None
    return agreement(plain.masks, truth)


def _by_head(maps: AttentionMaps, mass: float, truth: Tensor) -> list[float]:
    heads = range(maps.weights.shape[2])
    found = [segment_attention(maps, head=head, mass=mass).masks for head in heads]
    return [float(torch.mean(agreement(masks, truth).iou)) for masks in found]


MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".pgm")


def mask_files(source: ImageSource, folder: str | Path) -> dict[str, Path]:
    """The mask file of every readable image of a source, by the image's name.

    A mask has its image's name, with the suffix of a lossless format, below `folder`: at the same
    path, or by file name alone. It has the size of its image.
    Raises FileNotFoundError for a missing folder or mask, and ValueError for a mask that lies
    outside the folder, is no image, has another size, or would serve two images. Only headers are
    read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} with masks")
    found: dict[str, Path] = {}
    owners: dict[Path, str] = {}
    for index in range(len(source)):
        name = source.name(index)
        try:
            image = source.facts(index)
        except UnreadableImage:
            continue  # passed over later, with its reason
        path = _mask_of(name, folder)
        if path in owners:
            raise ValueError(
                f"{owners[path]} and {name} would share the mask {path}: put masks at the same"
                " paths as the images, or give images different names"
            )
        owners[path] = name
        mask = _facts(path)
        if mask != (image.height, image.width):
            raise ValueError(
                f"the mask {path} is {mask[0]}x{mask[1]} pixels, its image {name}"
                f" {image.height}x{image.width}: they must agree"
            )
        found[name] = path
    return found


def load_masks(paths: list[Path], size: tuple[int, int]) -> Tensor:
    """Masks (B, H, W), boolean, of image files: True where a pixel is not black.

    Scaled and cropped as images are; a pixel of the result is foreground when at least half of it
    is. So 0/1, 0/255 and palettes on black all mean what they say; "void" borders count as
    foreground. Raises ValueError for a file that cannot be decoded or a truth without foreground.
    """
    masks = []
    for path in paths:
        try:
            image = decode_image(path, str(path))
        except UnreadableImage as error:
            raise ValueError(f"the mask {error}") from error
        marked = (image != 0).any(dim=0, keepdim=True)
        masks.append(fit(marked.to(torch.uint8) * 255, size)[0] >= 128)
    truth = torch.stack(masks)
    if not bool(truth.any()):
        raise ValueError(f"none of the {len(paths)} masks marks a pixel: foreground is not black")
    return truth


def _mask_of(name: str, folder: Path) -> Path:
    given = Path(name)
    below = not given.is_absolute() and ".." not in given.parts
    places = [*([folder / given] if below else []), folder / given.name]
    root = folder.resolve()
    for place in places:
        for suffix in MASK_SUFFIXES:
            path = place.with_suffix(suffix)
            if path.is_file() and path.resolve().is_relative_to(root):
                return path
    outside = [p for place in places for s in MASK_SUFFIXES if (p := place.with_suffix(s)).exists()]
    if outside:
        raise ValueError(f"the mask {outside[0]} leads out of {folder}; put the file itself there")
    raise FileNotFoundError(
        f"there is no mask for {name} in {folder}: expected {given.stem} with one of"
        f" {', '.join(MASK_SUFFIXES)}"
    )


def _facts(path: Path) -> tuple[int, int]:
    try:
        facts = probe_image(path, str(path))
    except UnreadableImage as error:
        raise ValueError(f"the mask {error}") from error
    return facts.height, facts.width
