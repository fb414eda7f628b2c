"""Masks drawn by people, found beside the images they belong to and fitted as these are."""

from pathlib import Path

import torch
from torch import Tensor

from crate_mae.data.images import UnreadableImage, decode_image, probe_image
from crate_mae.data.sources import ImageSource
from crate_mae.data.transforms import fit

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
