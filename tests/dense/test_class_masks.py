"""Masks that number classes: values against what was written, and what is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_cases import SIZE, encoded, shape, write_parquet, write_shapes
from PIL import Image

from crate_mae.dense.class_masks import (
    DenseSource,
    check_values,
    class_numbers,
    counted_values,
    dense_source,
    mask_values,
    with_ignored,
)
from crate_mae.dense.masks import encoded_masks
from crate_mae.models.mask_classes import VOID, ClassChoice, MaskClasses
from crate_mae.sources.address import counted_source
from crate_mae.sources.images import UnreadableImage, decode_class_values

CLASSES = MaskClasses(values=(0, 1, 2), names=("ground", "bright", "dark"), ignored=(255,))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0, 3, 7, 300, 255, 9]), min_size=4, max_size=4))
def test_numbers_of_values_and_back(values: list[int]) -> None:
    classes = MaskClasses(values=(7, 0, 300, 3), names=("a", "b", "c", "d"), ignored=(255,))
    mask = torch.tensor(values).view(2, 2)
    if 9 in values:
        with pytest.raises(UnreadableImage, match=r"holds the values 9, which are neither"):
            class_numbers(mask, classes, "it")
        return
    numbers = class_numbers(mask, classes, "it").flatten().tolist()
    expected = [VOID if v == 255 else classes.values.index(v) for v in values]
    assert numbers == expected
    known = torch.tensor([n for n in numbers if n != VOID], dtype=torch.uint8)
    assert mask_values(known, classes).tolist() == [v for v in values if v != 255]


@pytest.mark.parametrize("place", ["folder", "column"])
def test_images_with_their_masks(tmp_path: Path, place: str) -> None:
    if place == "folder":
        write_shapes(tmp_path / "shapes")
        source = counted_source(f"imagefolder:{tmp_path / 'shapes' / 'images'}", "train")
        masks = str(tmp_path / "shapes" / "masks")
    else:
        source = counted_source(write_parquet(tmp_path / "shapes"), "train")
        masks = "column:mask"
    found = dense_source(source, masks, CLASSES)
    by_image = {shape(n)[0].tobytes(): shape(n)[1] for n in range(24)}
    for index in range(len(found)):
        sample = found.load(index)
        assert sample.mask is not None
        assert sample.mask.dtype == torch.uint8
        written = by_image[sample.image[0].numpy().tobytes()]
        assert np.array_equal(sample.mask.numpy(), written)
    counts = counted_values(encoded_masks(source, masks))
    whole = np.concatenate([shape(n)[1].flatten() for n in range(24)])
    assert counts.values == (0, 1, 2, 255)
    assert counts.of_classes(CLASSES) == [int((whole == v).sum()) for v in (0, 1, 2)]
    assert counts.ignored_share(CLASSES) == pytest.approx(float((whole == 255).mean()))
    assert counts.classes(ClassChoice()).values == (0, 1, 2)
    other = DenseSource(source, {**found.masks, source.name(0): encoded(shape(0)[1][:2])}, CLASSES)
    assert (
        other.fingerprint()
        != found.fingerprint()
        == dense_source(source, masks, CLASSES).fingerprint()
    )
    with pytest.raises(UnreadableImage, match="its mask has another size now"):
        other.load(0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (SIZE[1], SIZE[0] + 1)), r"13x10 pixels, its image .* 12x10"),
        (Image.new("RGB", (SIZE[1], SIZE[0]), (90, 0, 20)), "it holds colours"),
        (Image.new("F", (SIZE[1], SIZE[0]), 0.5), None),
        (b"no picture", "not an image in a known format"),
        (b"", "the file is empty"),
        (Image.new("L", (SIZE[1], SIZE[0]), 9), "holds the values 9, which are neither classes"),
    ],
)
def test_masks_that_are_none(
    tmp_path: Path, mask: Image.Image | bytes, message: str | None
) -> None:
    write_shapes(tmp_path, train=2)
    target = tmp_path / "masks" / "0.png"
    if isinstance(mask, bytes):
        target.write_bytes(mask)
    elif mask.mode == "F":
        target.unlink()
        mask.save(target.with_suffix(".tiff"))
        message = "0.tiff"
    else:
        mask.save(target)
    source = counted_source(f"imagefolder:{tmp_path / 'images'}", "train")
    if message == "0.tiff":  # numbers with a fraction: whatever they are read as is no class
        values = decode_class_values(target.with_suffix(".tiff"), "float")
        assert not values.is_floating_point()
        return
    with pytest.raises(ValueError, match=message):
        check_values(encoded_masks(source, tmp_path / "masks"), CLASSES)
    if "neither" not in str(message):
        with pytest.raises(ValueError, match=message):
            counted_values(encoded_masks(source, tmp_path / "masks"))


def test_masks_that_are_not_there(tmp_path: Path) -> None:
    write_shapes(tmp_path / "a", train=2)
    source = counted_source(f"imagefolder:{tmp_path / 'a' / 'images'}", "train")
    (tmp_path / "a" / "masks" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no mask for .*1\.bmp"):
        encoded_masks(source, tmp_path / "a" / "masks")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        encoded_masks(source, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="masks in a column need images at an address parquet"):
        encoded_masks(source, "column:mask")
    table = counted_source(write_parquet(tmp_path / "b", train=2), "train")
    with pytest.raises(ValueError, match=r"no column of images 'label'.*image, mask"):
        encoded_masks(table, "column:label")


def test_grey_colours_are_grey_levels(tmp_path: Path) -> None:
    grey = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    colours = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    colours.save(tmp_path / "grey.png")
    assert decode_class_values(tmp_path / "grey.png", "it").tolist() == grey.tolist()
    palette = Image.fromarray(grey, mode="L").convert("P")
    palette.putdata(grey.flatten().tolist())
    palette.putpalette([7, 7, 7, 200, 0, 0] * 128)
    palette.save(tmp_path / "palette.png")
    assert decode_class_values(tmp_path / "palette.png", "it").tolist() == grey.tolist()
    deep = Image.fromarray(np.array([[0, 300]], dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    assert decode_class_values(tmp_path / "deep.png", "it").tolist() == [[0, 300]]


def test_another_value_may_be_ignored() -> None:
    assert with_ignored(CLASSES, 9).ignored == (9,)
    assert with_ignored(CLASSES, -1).ignored == ()
    with pytest.raises(ValueError, match=r"\[1\] are classes and ignored at once"):
        with_ignored(CLASSES, 1)
    assert json.loads(json.dumps(CLASSES.facts()))["ignored"] == [255]
