"""A trained head's classes: numbers by loops, files at the images' own size, the verb."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask_cases import SIZE, shape, write_parquet, write_shapes
from model_cases import tiny
from PIL import Image

from crate_mae.batches.transforms import dense_fit, prepare
from crate_mae.cli import main
from crate_mae.dense.class_masks import dense_source
from crate_mae.dense.class_segmentation import (
    mask_place,
    save_class_masks,
    segment_classes,
    whole_image_classes,
)
from crate_mae.models.config import Preprocess
from crate_mae.models.depict import CrateSegmenter, segmentation_head
from crate_mae.models.encoder import Encoder
from crate_mae.models.mask_classes import MaskClasses
from crate_mae.sources.address import counted_source
from crate_mae.sources.inputs import open_images
from crate_mae.weights.weights_folder import save_model

CLASSES = MaskClasses(values=(0, 1, 2), names=("ground", "bright", "dark"), ignored=(255,))


def model_for(classes: MaskClasses = CLASSES) -> CrateSegmenter:
    """A segmenter whose scores differ from patch to patch, for images of 8 x 8."""
    torch.manual_seed(1)
    config = tiny(image_size=8, patch_size=2, channels=1)
    head = segmentation_head("depict-self", dim=config.dim, num_classes=len(classes.values))
    model = CrateSegmenter(Encoder(config), head, classes=classes).eval()
    model.preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.3,))
    return model


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=20)


def test_numbers_of_a_set_by_loops(shapes: Path) -> None:
    model = model_for()
    source = counted_source(f"imagefolder:{shapes / 'images'}", "train")
    found = segment_classes(model, dense_source(source, shapes / "masks", CLASSES), batch_size=7)
    counts, told_all, void = np.zeros((3, 3), dtype=int), np.zeros(3, dtype=int), 0
    for index in range(len(source)):
        image = source.load(index).image
        stem = Path(source.name(index)).stem
        mask = torch.from_numpy(shape(int(stem))[1])
        with torch.no_grad():
            told = model(prepare([image], model.preprocess)).argmax(dim=1)[0]
        _, true = dense_fit(image, mask, size=(8, 8))
        for t, y in zip(told.flatten().tolist(), true.flatten().tolist(), strict=True):
            told_all[t] += 1
            void += y == 255
            if y != 255:
                counts[y, t] += 1
    assert found.score is not None
    assert found.score.counts.tolist() == counts.tolist()
    assert found.shares == pytest.approx((told_all / told_all.sum()).tolist())
    assert found.ignored == pytest.approx(void / told_all.sum())
    assert len(found.names) == 20
    assert len(found.shown) == len(found.predicted) == 16, "the first are kept to be drawn"
    table = found.table()
    assert "ground" in table
    assert f"mean IoU {found.score.mean_iou:.4f}" in table
    assert "everywhere the most frequent class (ground)" in table
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["score"]["iou"]["dark"] == found.score.iou[2]
    bare = segment_classes(model, source)
    assert bare.score is None
    assert bare.truth is None
    assert bare.predicted.equal(found.predicted), "nothing looks at the truth"
    assert "mean IoU" not in bare.table()


@pytest.mark.parametrize("size", [(12, 10), (8, 8), (5, 21), (9, 8)])
def test_whole_images_keep_their_size_and_lose_no_edge(size: tuple[int, int]) -> None:
    model = model_for()
    image = torch.from_numpy(shape(3, (20, 20))[0])[None]
    image = F.interpolate(image[None].float(), size=size).to(torch.uint8)[0]
    found = whole_image_classes(model, image)
    assert found.shape == size
    if size == (8, 8):
        with torch.no_grad():
            plain = model(prepare([image], model.preprocess)).argmax(dim=1)[0]
        assert torch.equal(found.long(), plain)


def test_mask_files_have_the_values_that_were_trained_on(tmp_path: Path, shapes: Path) -> None:
    classes = replace(CLASSES, values=(4, 200, 17))
    model = model_for(classes)
    source = counted_source(f"imagefolder:{shapes / 'images'}", "test")
    assert save_class_masks(model, source, tmp_path / "told") == 8
    for index in range(8):
        written = Image.open(tmp_path / "told" / mask_place(source.name(index)))
        values = np.array(written)
        assert written.mode == "L"
        assert values.shape == SIZE
        numbers = whole_image_classes(model, source.load(index).image)
        assert np.array_equal(values, np.array(classes.values)[numbers.numpy()])
    with pytest.raises(FileExistsError, match="is not overwritten"):
        save_class_masks(model, source, tmp_path / "told")
    deep = model_for(replace(CLASSES, values=(0, 300, 17)))
    save_class_masks(deep, source, tmp_path / "deep")
    values = np.array(Image.open(tmp_path / "deep" / mask_place(source.name(0))))
    assert set(np.unique(values).tolist()) <= {0, 300, 17}
    for name in ("a.png", "a.bmp"):
        Image.new("L", (10, 10)).save(tmp_path / name)
    twins = open_images([str(tmp_path / "a.bmp"), str(tmp_path / "a.png")])
    with pytest.raises(ValueError, match="would share the mask"):
        save_class_masks(model, twins, tmp_path / "twins")
    assert not (tmp_path / "twins").exists()


def test_masks_lie_below_their_folder() -> None:
    assert mask_place("cats/1.jpg") == Path("cats/1.png")
    assert mask_place("/home/me/1.jpg") == Path("1.png")
    assert mask_place("../../1.jpg") == Path("1.png")
    assert mask_place("train.parquet/000012") == Path("train.parquet/000012.png")


def test_the_verb_tells_measures_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = write_parquet(tmp_path / "table", train=6, test=3)
    weights = str(save_model(model_for(), tmp_path / "weights"))
    words = ["segment", weights, address, "--split", "test", "--out", str(tmp_path / "a.png")]
    more = ["--masks", "column:mask", "--json", str(tmp_path / "a.json")]
    assert main([*words, *more, "--masks-out", str(tmp_path / "told")]) == 0
    told = capsys.readouterr().out
    assert "depict-self head" in told
    assert "wrote 3 masks" in told
    found = json.loads((tmp_path / "a.json").read_text())
    source = counted_source(address, "test")
    model = model_for()
    expected = segment_classes(model, dense_source(source, "column:mask", CLASSES))
    assert expected.score is not None
    assert found["score"]["mean_iou"] == expected.score.mean_iou
    assert len(list((tmp_path / "told").rglob("*.png"))) == 3
    assert main([*words, "--masks", str(tmp_path / "told"), "--overwrite"]) == 0
    assert "mean IoU" in capsys.readouterr().out, "masks that it wrote can be read beside images"
    assert main([*words, "--method", "pca", "--masks", "column:mask", "--overwrite"]) == 0
    assert "first component" in capsys.readouterr().out.lower()
    assert main([*words, *more[:2], "--ignore", "2", "--overwrite"]) == 1
    assert "are classes and ignored at once" in capsys.readouterr().err
    assert main([*words, *more[:2], "--ignore", "7", "--overwrite"]) == 1
    assert "holds the values 255, which are neither classes" in capsys.readouterr().err
    for wrong, message in (
        (["--flip"], "--flip is about foreground without labels"),
        (["--stride", "1"], "--stride is about foreground without labels"),
        (["--method", "pca", "--masks-out", str(tmp_path / "b")], "weights with a trained head"),
    ):
        with pytest.raises(SystemExit):
            main([*words, "--overwrite", *wrong])
        assert message in capsys.readouterr().err
    assert main([*words, "--overwrite", "--image-size", "16"]) == 0
