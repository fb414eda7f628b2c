"""Datasets of torch as sources."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from source_cases import PIXELS, Items, labels_of

from crate_mae.sources.images import UnreadableImage
from crate_mae.sources.torch_datasets import wrap_dataset


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        PIXELS,
        PIXELS.transpose(2, 0, 1),
    ],
)
@pytest.mark.parametrize(
    "shape_item",
    [
        lambda image: (image, 1),
        lambda image: [image, torch.tensor(1)],
        lambda image: {"image": image, "label": np.int64(1)},
        lambda image: {"pixel_values": image, "labels": 1},
    ],
)
def test_items_of_every_form(image: Any, shape_item: Callable[[Any], Any]) -> None:
    source = wrap_dataset(Items([shape_item(image)]), class_names=["a", "b"])
    sample = source.load(0)
    assert (source.label(0), sample.label, sample.name) == (1, 1, "items/000000")
    np.testing.assert_array_equal(sample.image.numpy(), PIXELS.transpose(2, 0, 1))
    assert (source.facts(0).height, source.facts(0).width) == (6, 7)


@pytest.mark.parametrize(
    ("image", "dtype", "shape"),
    [
        (torch.zeros(6, 7), torch.float32, (1, 6, 7)),
        (torch.zeros(5, 6, 7, dtype=torch.bfloat16), torch.float32, (5, 6, 7)),
        (torch.zeros(2, 6, 7, dtype=torch.bool), torch.float32, (2, 6, 7)),
        (np.zeros((6, 7), np.uint16), torch.float32, (1, 6, 7)),
    ],
)
def test_wrapped_pixels_take_the_common_types(
    image: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    sample = wrap_dataset(Items([image])).load(0)
    assert (sample.image.dtype, tuple(sample.image.shape), sample.label) == (dtype, shape, None)


def test_unsuitable_items_are_explained() -> None:
    broken = OSError("broken pipe")
    items = [torch.zeros(1, 2, 3, 4), torch.zeros(6, 7, dtype=torch.int64), np.zeros(3), broken]
    source = wrap_dataset(Items(items))
    for index, reason in enumerate(["not .C, H, W", "no known scale", "one image", "broken pipe"]):
        with pytest.raises(UnreadableImage, match=reason):
            source.load(index)
    with pytest.raises(ValueError, match="is a str, not a PIL image"):
        wrap_dataset(Items(["file.png"])).load(0)
    with pytest.raises(ValueError, match="it has photo, label"):
        wrap_dataset(Items([{"photo": 1, "label": 2}]))
    with pytest.raises(ValueError, match="empty"):
        wrap_dataset(Items([]))
    with pytest.raises(ValueError, match="not a map-style dataset"):
        wrap_dataset(object())  # type: ignore[arg-type]


def test_labels_come_from_the_dataset_without_decoding() -> None:
    image = Image.fromarray(PIXELS)
    never = RuntimeError("decoded")
    dataset = Items([never, (image, 1), never], targets=[0, 1, 2], classes=["x", "y", "z"])
    source = wrap_dataset(dataset)
    assert source.class_names == ("x", "y", "z")
    assert labels_of(source) == [0, 1, 2]
    part = wrap_dataset(torch.utils.data.Subset(dataset, [2, 1]))
    assert (part.class_names, labels_of(part)) == (("x", "y", "z"), [2, 1])


def test_labels_without_names_are_gathered() -> None:
    image = Image.fromarray(PIXELS)
    source = wrap_dataset(Items([(image, 3), OSError("broken"), (image, 0)]))
    assert source.class_names == ("0", "1", "2", "3")
    assert labels_of(source) == [3, None, 0]
    assert wrap_dataset(Items([(image, "cat")])).class_names is None
    transformed = Items([(image, 1)], targets=[0], target_transform=lambda t: t + 1)
    assert wrap_dataset(transformed).label(0) == 1


def test_wrapped_fingerprints_follow_the_pixels() -> None:
    def fingerprint(value: int, **attributes: Any) -> str:
        image = torch.full((3, 6, 7), value, dtype=torch.uint8)
        return wrap_dataset(Items([image], **attributes)).fingerprint()

    assert fingerprint(1) == fingerprint(1)
    assert fingerprint(1) != fingerprint(2)
    assert fingerprint(1, data=np.zeros(3)) != fingerprint(1, data=np.ones(3))
