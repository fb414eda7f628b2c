"""Foreground: thresholds and masses by definition, overlaps by hand, truth found and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import images_for, make, tiny
from PIL import Image
from torch import Tensor

from crate_mae.dense.attention import AttentionMaps, attention_maps
from crate_mae.dense.layout import Layout, layout_of
from crate_mae.dense.masks import column_masks, load_masks, mask_files
from crate_mae.dense.segment_source import SegmentSettings, segment_images
from crate_mae.dense.segmentation import (
    agreement,
    centred_ellipse,
    intersection_over_union,
    segment_attention,
    segment_brightness,
    segment_pixels,
    segment_tokens,
)
from crate_mae.dense.thresholds import mass_mask, otsu_threshold
from crate_mae.dense.token_maps import TokenMap
from crate_mae.models.config import Preprocess
from crate_mae.sources.inputs import open_images

some = settings(max_examples=60)


def between_by_loops(values: list[float], threshold: float) -> float:
    low = [v for v in values if v <= threshold]
    high = [v for v in values if v > threshold]
    if not low or not high:
        return -1.0
    return len(low) * len(high) * (sum(low) / len(low) - sum(high) / len(high)) ** 2


@some
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1))
def test_otsu_is_the_best_of_all_splits(values: list[int]) -> None:
    numbers = [float(v) for v in values]
    found = otsu_threshold(torch.tensor(numbers))
    best = max(between_by_loops(numbers, threshold) for threshold in numbers)
    assert between_by_loops(numbers, found) == pytest.approx(best, rel=1e-9)


def test_otsu_by_hand() -> None:
    assert otsu_threshold(torch.tensor([0.0, 0.0, 1.0, 9.0, 10.0])) == 5.0
    assert otsu_threshold(torch.tensor([[1e9, 1e9 + 64]])) == 1e9 + 32
    for wrong in ([1.0, 1.0], [], [0.0, float("nan")]):
        with pytest.raises(ValueError, match="no threshold"):
            otsu_threshold(torch.tensor(wrong))


def test_mass_by_hand() -> None:
    weights = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 0.0]])
    expected = {
        0.4: ["0100", "1100", "0000"],
        0.41: ["0101", "1100", "0000"],
        0.7: ["0101", "1110", "0000"],
        0.9: ["0111", "1111", "0000"],
        1.0: ["1111", "1111", "0000"],
    }
    for mass, rows in expected.items():
        found = ["".join(str(int(v)) for v in row) for row in mass_mask(weights, mass).tolist()]
        assert found == rows, mass
    for mass in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="mass"):
            mass_mask(weights, mass)
    with pytest.raises(ValueError, match="at least 0"):
        mass_mask(-weights, 0.5)


@some
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.floats(0.01, 1))
def test_a_mass_is_held_by_the_fewest(values: list[int], mass: float) -> None:
    weights = torch.tensor(values, dtype=torch.float64)
    kept = mass_mask(weights, mass)
    assert float(weights[kept].sum()) >= mass * float(weights.sum()) - 1e-3
    one_less = sorted((v for v, k in zip(values, kept.tolist(), strict=True) if k), reverse=True)
    if one_less:
        assert sum(one_less[:-1]) < mass * sum(values)
        assert min(one_less) >= max(
            (v for v, k in zip(values, kept.tolist(), strict=True) if not k), default=0
        )


def masks(*rows: str) -> Tensor:
    return torch.tensor([[[c == "1" for c in line] for line in row.split()] for row in rows])


def test_intersection_over_union_by_hand() -> None:
    predicted = masks("1100 1100", "1111 1111", "0000 0000", "0000 0000")
    truth = masks("0110 0110", "1100 0000", "0000 0000", "1000 0000")
    assert intersection_over_union(predicted, truth).tolist() == [2 / 6, 2 / 8, 1.0, 0.0]
    both = agreement(predicted, truth)
    assert both.oracle.tolist() == [2 / 6, 2 / 8, 1.0, 1 / 8]
    assert both.everything.tolist() == [0.5, 0.25, 0.0, 1 / 8]
    plain = json.loads(json.dumps(both.to_dict()))
    assert plain["mean_iou"] == pytest.approx((2 / 6 + 2 / 8 + 1) / 4)
    with pytest.raises(ValueError, match="one shape"):
        intersection_over_union(predicted, truth[:2])
    with pytest.raises(ValueError, match="boolean"):
        intersection_over_union(predicted, truth.float())


def squares(images: int = 3) -> tuple[Tensor, Tensor]:
    """Grey images (B, 1, 16, 16) with a bright square, and where it is."""
    pictures = 0.1 * torch.rand(images, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    truth = torch.zeros(images, 16, 16, dtype=torch.bool)
    for index in range(images):
        truth[index, 4 : 10 + 2 * (index % 2), 4:12] = True
    return torch.where(truth[:, None], 0.9, pictures), truth


LAYOUT = Layout(image_hw=(16, 16), patch_hw=(2, 2), stride=(2, 2), trained_hw=(16, 16))


@pytest.mark.parametrize("each", [False, True])
def test_squares_are_found_whatever_their_sign(each: bool) -> None:
    pictures, truth = squares()
    for sign in (1, -1):
        found = segment_pixels(sign * pictures, LAYOUT, each=each)
        assert agreement(found.masks, truth).iou.min() > 0.75
        turned = segment_pixels(sign * pictures, LAYOUT, each=each, flip=True)
        assert agreement(turned.masks, ~truth).iou.min() > 0.75
    values = torch.nn.functional.avg_pool2d(pictures, 2).movedim(1, -1).repeat(1, 1, 1, 2)
    tokens = TokenMap(values=values, layer=None, kind="tokens", layout=LAYOUT)
    assert agreement(segment_tokens(tokens, each=each).masks, truth).iou.min() > 0.75


def test_attention_is_cut_by_its_mass() -> None:
    weights = torch.full((1, 1, 2, 65), 0.001)
    weights[0, 0, 1, 1 + 8 * 3 + 4] = 0.9  # head 1 looks at patch (3, 4)
    maps = AttentionMaps(weights=weights, layers=(0,), side="encoder", query="class", layout=LAYOUT)
    found = segment_attention(maps, head=1, mass=0.5)
    rows, columns = found.masks[0].nonzero().T
    assert {int(rows.min()), int(rows.max())} <= {5, 6, 7, 8}
    assert {int(columns.min()), int(columns.max())} <= {7, 8, 9, 10}
    spread = segment_attention(maps, head=0, mass=0.5).masks.double().mean()
    assert float(spread) == pytest.approx(0.5)
    assert "mean over heads" in segment_attention(maps).words()
    with pytest.raises(ValueError, match="heads"):
        segment_attention(maps, head=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images with their masks, in images/ and masks/."""
    pictures, truth = squares()
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for index in range(3):
        grey = (pictures[index, 0].numpy() * 255).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "images" / f"{index}.bmp")
        drawn = truth[index].numpy().astype(np.uint8) * (1 if index else 255)
        Image.fromarray(drawn).save(tmp_path / "masks" / f"{index}.png")
    return tmp_path


def test_masks_of_a_folder(folder: Path) -> None:
    source = open_images([str(folder / "images")])
    files = mask_files(source, folder / "masks")
    assert [files[source.name(i)].name for i in range(3)] == ["0.png", "1.png", "2.png"]
    assert load_masks(list(files.values()), (16, 16)).truth.equal(squares()[1])
    assert load_masks(list(files.values()), (8, 8)).truth.shape == (3, 8, 8)
    address = open_images([f"imagefolder:{folder / 'images'}"])
    assert list(mask_files(address, folder / "masks")) == ["0.bmp", "1.bmp", "2.bmp"]


def test_masks_that_do_not_belong(folder: Path) -> None:
    source = open_images([str(folder / "images")])
    with pytest.raises(FileNotFoundError, match="no folder"):
        mask_files(source, folder / "no")
    first = folder / "masks" / "0.png"
    good = first.read_bytes()
    Image.new("L", (16, 15), 255).save(first)
    with pytest.raises(ValueError, match=r"15x16 pixels, its image .* 16x16: they must agree"):
        mask_files(source, folder / "masks")
    first.write_bytes(b"")
    with pytest.raises(ValueError, match=r"the mask .*empty"):
        mask_files(source, folder / "masks")
    first.unlink()
    with pytest.raises(FileNotFoundError, match=r"no mask for .*0\.bmp"):
        mask_files(source, folder / "masks")
    outside = folder / "outside.png"
    outside.write_bytes(good)
    first.symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of"):
        mask_files(source, folder / "masks")
    first.unlink()
    Image.new("L", (16, 16)).save(first)
    with pytest.raises(ValueError, match="none of the 1 masks marks a pixel"):
        load_masks([first], (16, 16))
    (folder / "more").mkdir()
    Image.new("L", (16, 16)).save(folder / "more" / "0.bmp")
    doubled = open_images([str(folder / "images"), str(folder / "more")])
    with pytest.raises(ValueError, match="would share the mask"):
        mask_files(doubled, folder / "masks")


@pytest.mark.parametrize("method", ["pca", "mixture", "attention"])
def test_a_whole_source(folder: Path, method: str) -> None:
    model = make(tiny(image_size=16, patch_size=4, channels=1))
    model.preprocess = Preprocess(size=(16, 16), channels=1, mean=(0.3,), std=(0.4,))
    source = open_images([str(folder / "images")])
    wanted = SegmentSettings(method=method, stride=2)  # type: ignore[arg-type]
    found = segment_images(model, source, wanted, masks=folder / "masks")
    assert found.truth is not None
    assert found.scores is not None
    assert found.truth.equal(squares()[1])
    assert found.scores.iou.equal(intersection_over_union(found.segmentation.masks, found.truth))
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["settings"]["method"] == method
    table = found.table()
    assert "everything called foreground" in table
    assert "centred ellipse" in table
    assert found.brightness is not None
    assert float(found.brightness.iou.min()) == 1.0, "the squares are brighter than the rest"
    assert "these objects differ in brightness" in table
    if method != "attention":
        assert "raw pixels" in table
        assert found.heads is None
    else:
        assert "oracle: best head" in table
        assert found.heads is not None
        assert len(found.heads) == 3
        for head, mean in enumerate(found.heads):
            single = SegmentSettings(method="attention", stride=2, head=head)
            alone = segment_images(model, source, single, masks=folder / "masks")
            assert alone.scores is not None
            assert float(alone.scores.iou.mean()) == mean
    bare = segment_images(model, source, wanted)
    assert bare.scores is None
    assert "IoU" not in bare.table()
    assert bare.segmentation.masks.equal(found.segmentation.masks), "no mask looks at the truth"


def test_settings_are_checked_before_the_model_runs(folder: Path) -> None:
    model = make(tiny(image_size=16, patch_size=4, channels=1))
    source = open_images([str(folder / "images")])
    for wanted, message in (
        (SegmentSettings(method="attention", mass=0.0), "mass"),
        (SegmentSettings(method="attention", head=9), "heads"),
        (SegmentSettings(size=(17, 16)), "nearest size 16x16"),
        (SegmentSettings(stride=7), "stride"),
    ):
        with pytest.raises(ValueError, match=message):
            segment_images(model, source, wanted)


def test_layouts_agree_with_the_models() -> None:
    model = make(tiny())
    maps = attention_maps(model, images_for(model.config), layers=[0])
    assert maps.layout == layout_of(model.config, (8, 12))


def iou_by_loops(mask: Tensor, truth: Tensor, counted: Tensor) -> float:
    both = either = 0
    for m, t, c in zip(*(x.flatten().tolist() for x in (mask, truth, counted)), strict=True):
        both += m and t and c
        either += (m or t) and c
    return both / either if either else 1.0


@some
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=6, max_size=6))
def test_pixels_that_do_not_count_are_in_neither_mask(
    pixels: list[tuple[bool, bool, bool]],
) -> None:
    mask, truth, counted = torch.tensor(pixels).T.reshape(3, 1, 2, 3)
    found = agreement(mask, truth, counted)
    assert float(found.iou) == pytest.approx(iou_by_loops(mask, truth, counted))
    other = max(float(found.iou), iou_by_loops(~mask, truth, counted))
    assert float(found.oracle) == pytest.approx(other)
    ones = torch.ones_like(mask)
    assert float(found.everything) == pytest.approx(iou_by_loops(ones, truth, counted))


def written(folder: Path, values: np.ndarray, mode: str, name: str = "mask.png") -> Path:
    image = Image.fromarray(values)
    if mode == "P":
        image = Image.fromarray(values, mode="L").convert("P")
        image.putdata(values.flatten().tolist())
    path = folder / name
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_void_pixels_are_ignored_where_masks_number_classes(tmp_path: Path, mode: str) -> None:
    """Object 1 or 2, a void border, background; as palette, grey or PASCAL VOC's colours."""
    values = np.zeros((16, 16), dtype=np.uint8)
    values[4:12, 4:8], values[4:12, 8:12], values[3, 3:13] = 1, 2, 255
    drawn = values
    if mode == "RGB":
        palette = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}
        drawn = np.array([[palette[int(v)] for v in row] for row in values], dtype=np.uint8)
    path = written(tmp_path, drawn, mode)
    found = load_masks([path], (16, 16))
    assert np.array_equal(found.truth[0].numpy(), (values == 1) | (values == 2))
    assert np.array_equal(found.counted[0].numpy(), values != 255)
    assert found.words == f"{10 / 256:.1%} of the masks is 255, which is ignored"
    kept = load_masks([path], (16, 16), ignore=-1)
    assert np.array_equal(kept.truth[0].numpy(), values != 0)
    assert kept.counted.all()
    assert kept.words == ""
    if mode != "RGB":
        second = load_masks([path], (16, 16), ignore=2)
        assert np.array_equal(second.truth[0].numpy(), (values == 1) | (values == 255))
        assert np.array_equal(second.counted[0].numpy(), values != 2)


def test_255_is_foreground_where_it_is_all_there_is_or_edges_are_soft(tmp_path: Path) -> None:
    plain = np.zeros((16, 16), dtype=np.uint8)
    plain[4:12, 4:12] = 255
    soft = plain.copy()
    soft[3, 4:12] = [20, 40, 60, 80, 100, 120, 140, 160]
    for values in (plain, soft):
        found = load_masks([written(tmp_path, values, "L")], (16, 16))
        assert np.array_equal(found.truth[0].numpy(), values != 0)
        assert found.counted.all()


def test_masks_in_a_column(tmp_path: Path) -> None:
    """The same images and masks, from folders and from a parquet file, agree."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures, truth = squares()
    rows: dict[str, list[dict[str, bytes]]] = {"image": [], "mask": []}
    for index in range(3):
        for key, values in (("image", pictures[index, 0] * 255), ("mask", truth[index] * 1)):
            data = io.BytesIO()
            Image.fromarray(values.numpy().astype(np.uint8)).save(data, "png")
            rows[key].append({"bytes": data.getvalue()})
    features = {"image": {"_type": "Image"}, "mask": {"dtype": "binary"}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(rows)
    pq.write_table(table.replace_schema_metadata(noted), tmp_path / "train.parquet")
    model = make(tiny(image_size=16, patch_size=4, channels=1))
    source = open_images([f"parquet:{tmp_path}"], limit=2)
    found = segment_images(model, source, SegmentSettings(), masks="column:mask")
    assert found.truth is not None
    wanted = [int(name.rpartition("/")[2]) for name in found.names]
    assert found.truth.equal(truth[wanted])
    with pytest.raises(ValueError, match=r"no column of images 'masks'.*image, mask"):
        segment_images(model, source, SegmentSettings(), masks="column:masks")
    with pytest.raises(ValueError, match="has no image stranger with a mask in 'mask'"):
        column_masks(source, "mask", ["stranger"])
    small = io.BytesIO()
    Image.new("L", (64, 8)).save(small, "png")
    rows["mask"][0] = {"bytes": small.getvalue()}
    (tmp_path / "wrong").mkdir()
    table = pa.table(rows).replace_schema_metadata(noted)
    pq.write_table(table, tmp_path / "wrong" / "train.parquet")
    wrong = open_images([f"parquet:{tmp_path / 'wrong'}"])
    with pytest.raises(ValueError, match=r"is 8x64 pixels, its image .*they must agree"):
        segment_images(model, wrong, SegmentSettings(), masks="column:mask")
    other = open_images(["digits"], limit=2)
    with pytest.raises(ValueError, match="masks in a column need images at an address parquet"):
        segment_images(model, other, SegmentSettings(), masks="column:mask")


def test_the_ellipse_covers_half_and_is_centred() -> None:
    for size in ((64, 64), (40, 90)):
        mask = centred_ellipse(size)
        assert float(mask.double().mean()) == pytest.approx(0.5, abs=0.01)
        assert mask.equal(mask.flip(0))
        assert mask.equal(mask.flip(1))
        assert not mask[0, 0]
        assert mask[size[0] // 2, size[1] // 10 + 2], "as wide as 4/5 of the image"


def test_brightness_is_cut_image_by_image_whichever_side() -> None:
    pictures, truth = squares()
    dark = 1 - pictures
    assert agreement(segment_brightness(pictures).masks, truth).iou.min() == 1
    assert agreement(segment_brightness(dark).masks, truth).iou.min() == 1
    assert not segment_brightness(torch.ones(1, 3, 8, 8)).masks.any()
