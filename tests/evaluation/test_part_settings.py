"""Which images a part has, and which settings may not differ."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from part_cases import SETTINGS

from crate_mae.evaluation.part_settings import MAX_PARTS, PartSettings, parts_of
from crate_mae.models.config import Preprocess


@given(images=st.integers(1, 300), shards=st.integers(1, 20), part_size=st.integers(1, 400))
def test_every_image_is_in_one_part_of_one_shard(images: int, shards: int, part_size: int) -> None:
    if shards > images:
        with pytest.raises(ValueError, match=f"{shards} shards are more than the {images} images"):
            parts_of(images, shards, part_size)
        return
    parts = parts_of(images, shards, part_size)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(images))
    of_shards = [sum(p.stop - p.start for p in parts if p.shard == s) for s in range(shards)]
    assert max(of_shards) - min(of_shards) <= 1
    assert [part.shard for part in parts] == sorted(part.shard for part in parts)
    for one, following in pairwise(parts):
        assert 0 < one.stop - one.start <= part_size
        if one.shard == following.shard:
            assert one.stop - one.start == part_size, "only the last of a shard is smaller"


@pytest.mark.parametrize(
    ("images", "shards", "part_size", "message"),
    [
        (0, 1, 1, "images must be a whole number from 1, not 0"),
        (1, 0, 1, "shards must be"),
        (5, 1, 0, "part_size must be a whole number from 1, not 0"),
        (5, 1, True, "part_size must be"),
        (MAX_PARTS + 1, 1, 1, "larger --part-size"),
        (10**15, 10**9, 10**14, "larger --part-size"),
    ],
)
def test_numbers_that_cannot_be(images: int, shards: int, part_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts_of(images, shards, part_size)


def test_settings_come_back() -> None:
    assert PartSettings.from_dict(SETTINGS.to_dict()) == SETTINGS
    unlabelled = replace(SETTINGS, class_names=None, layer=2, weights_sha256=None)
    assert PartSettings.from_dict(unlabelled.to_dict()) == unlabelled


def test_where_the_images_lie_makes_no_difference() -> None:
    moved = replace(SETTINGS, address="imagefolder:elsewhere")
    assert moved.differences(SETTINGS) == []
    assert moved.digest == SETTINGS.digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights_sha256": "v" * 64}, "weights"),
        ({"fingerprint": "g" * 64}, "images"),
        ({"images": 11}, "number of images (10 there, 11 here)"),
        ({"pool": "cls"}, "--pool (mean there, cls here)"),
        ({"layer": 1}, "--after (None there, 1 here)"),
        ({"engine": "onnx"}, "--engine (torch there, onnx here)"),
        ({"part_size": 4}, "--part-size (3 there, 4 here)"),
        ({"shards": 3}, "number of shards (2 there, 3 here)"),
        ({"split": None}, "split (test there, None here)"),
        ({"preprocess": Preprocess(size=(16, 8)).to_dict()}, "preprocessing, size"),
        ({"class_names": ("cat", "cow")}, "class_names"),
        ({"row_shape": (5,)}, "row_shape"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], words: str) -> None:
    other = replace(SETTINGS, **change)
    (told,) = other.differences(SETTINGS)
    assert words in told
    assert other.digest != SETTINGS.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format 'other' is not"),
        ({"pool": None}, "its pool cannot be 'None'"),
        ({"row_shape": []}, "its row_shape"),
        ({"row_shape": [1 << 20, 1 << 20]}, "its row_shape"),
        ({"row_shape": [-1, -4]}, "its row_shape"),
        ({"layer": True}, "its layer"),
        ({"class_names": "cat"}, "its class_names"),
        ({"class_names": [1]}, "its class_names"),
        ({"preprocess": []}, "its preprocess"),
        ({"fingerprint": 7}, "its fingerprint"),
    ],
)
def test_manifests_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartSettings.from_dict(SETTINGS.to_dict() | change)
    with pytest.raises(ValueError, match="does not say its pool"):
        PartSettings.from_dict({k: v for k, v in SETTINGS.to_dict().items() if k != "pool"})
