"""True masks: from a folder or a column of parquet files, with the pixels that are not to count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crate_mae.batches.transforms import fit
from crate_mae.common.files import user_path
from crate_mae.models.mask_classes import COLUMN, MOST_CLASSES, VOID
from crate_mae.sources.base import ImageSource
from crate_mae.sources.found import NO_LABELS, Reading
from crate_mae.sources.images import (
    ImageData,
    ImageFacts,
    UnreadableImage,
    decode_labels,
    probe_image,
)

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".pgm")


def encoded_masks(source: ImageSource, masks: str | Path) -> Mapping[str, ImageData]:
    """The mask, a file or its bytes, of every readable image of a source, by the image's name.

    `masks` is a folder (`mask_files`) or "column:NAME" (`column_masks`); raises as these do.
    """
    if not str(masks).startswith(COLUMN):
        return mask_files(source, masks)
    names = []
    for index in range(len(source)):
        try:
            source.facts(index)
        except UnreadableImage:
            continue  # passed over later, with its reason
        names.append(source.name(index))
    column = str(masks).removeprefix(COLUMN)
    return dict(zip(names, column_masks(source, column, names), strict=True))


def mask_files(source: ImageSource, folder: str | Path) -> dict[str, Path]:
    """The mask file of every readable image of a source, by the image's name.

    A mask has its image's name, with the suffix of a lossless format, below `folder`: at the same
    path, or by file name alone. It has the size of its image.
    Raises FileNotFoundError for a missing folder or mask, and ValueError for a mask that lies
    outside the folder, is no image, has another size, or would serve two images. Only headers are
    read.
    """
    folder = user_path(folder)
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
        _check_size(_facts(path), image, f"mask {path}", name)
        found[name] = path
    return found


def _check_size(mask: tuple[int, int], image: ImageFacts, what: str, name: str) -> None:
    if mask != (image.height, image.width):
        raise ValueError(
            f"the {what} is {mask[0]}x{mask[1]} pixels, its image {name}"
            f" {image.height}x{image.width}: they must agree"
        )


@dataclass(frozen=True, kw_only=True)
class TrueMasks:
    """Which pixels are foreground, and which count at all."""

    truth: Tensor
    """(B, H, W) boolean, True = foreground."""
    counted: Tensor
    """(B, H, W) boolean, False = to be ignored."""
    words: str
    """What was ignored, in words; empty where nothing was."""


def load_masks(
    masks: Sequence[ImageData],
    size: tuple[int, int],
    *,
    ignore: int | None = None,
    names: Sequence[str] | None = None,
) -> TrueMasks:
    """True masks (B, H, W) of encoded images or image files, scaled and cropped as images are.

    What is not 0 (or black) is foreground: 0/1, 0/255 and palettes on black all mean what they say.
    Where masks number classes, 255 is void and ignored: some hold values between 0 and 255 beside
    it, few of them, that fill more than it does. `ignore` names the void value instead (-1: none).
    A pixel of the result is void when at least half of it is, else foreground when at least half of
    what counts of it is. Raises ValueError for a file that cannot be decoded and a truth without
    foreground.
    """
    shown = [str(mask) for mask in masks] if names is None else names
    value = VOID if ignore is None else ignore
    beside = torch.zeros(VOID + 1, dtype=torch.int64)
    marked, void = [], []
    total = of_value = 0
    for mask, name in zip(masks, shown, strict=True):
        try:
            labels = decode_labels(mask, name)
        except UnreadableImage as error:
            raise ValueError(f"the mask {error}") from error
        of_mask = torch.bincount(labels.flatten().clamp(0, VOID), minlength=VOID + 1)
        if bool(of_mask[VOID]) and bool(of_mask[1:VOID].any()):
            beside += of_mask
        total, of_value = total + labels.numel(), of_value + int((labels == value).sum())
        marked.append(_share(labels != 0, size))
        void.append(_share(labels == value, size))
    object_share, void_share = torch.stack(marked), torch.stack(void)
    if ignore is None and not numbers_classes(beside):
        void_share = torch.zeros_like(void_share)
        of_value = 0
    elif value == 0:  # black itself is void: what is left of the rest is foreground
        object_share = object_share + void_share
    counted = void_share < 128
    foreground = object_share - void_share
    truth = counted & (2 * foreground >= 255 - void_share) & (foreground > 0)
    if not bool(truth.any()):
        raise ValueError(f"none of the {len(masks)} masks marks a pixel: foreground is not black")
    words = ""
    if of_value:
        words = f"{of_value / total:.1%} of the masks is {value}, which is ignored"
    return TrueMasks(truth=truth, counted=counted, words=words)


def _share(marked: Tensor, size: tuple[int, int]) -> Tensor:
    """How much of each pixel is marked (H, W), from 0 to 255, on the grid of the model's images."""
    return fit(marked[None].to(torch.uint8) * 255, size)[0].to(torch.int32)


def numbers_classes(counts: Tensor) -> bool:
    """Whether pixels by value, 0 to 255, of masks that hold 255 beside others, number classes."""
    between = counts[1:VOID]
    few = 0 < int((between > 0).sum()) <= MOST_CLASSES
    return few and int(between.sum()) > int(counts[VOID]) > 0


def column_masks(source: ImageSource, column: str, names: Sequence[str]) -> list[ImageData]:
    """The encoded masks of images of a parquet source, from a column beside them, by name.

    Raises ValueError for a source of another kind, a column that is not there, an image without a
    mask, and a mask of another size than its image.
    """
    scheme, _, rest = source.address.partition(":")
    if scheme != "parquet":
        raise ValueError(
            f"masks in a column need images at an address parquet:PATH, not {source.address}: name"
            " the folder of the masks"
        )
    from crate_mae.sources.parquet import open_parquet  # pyarrow takes a while

    masks = open_parquet(rest, source.split, Reading(image_key=column, label_key=NO_LABELS))
    places = {masks.name(index): index for index in range(len(masks))}
    images = {source.name(index): index for index in range(len(source))}
    found: list[ImageData] = []
    for name in names:
        if name not in places or name not in images:
            raise ValueError(f"{source.address} has no image {name} with a mask in {column!r}")
        try:
            found.append(masks.encoded(places[name]))
            facts = masks.facts(places[name])
        except UnreadableImage as error:
            raise ValueError(f"{source.address}: no mask in column {column!r}: {error}") from error
        size = (facts.height, facts.width)
        _check_size(size, source.facts(images[name]), f"mask in column {column!r}", name)
    return found


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
