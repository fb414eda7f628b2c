"""Training on masks: the loss by loops, whole runs on shapes, going on, and what is refused."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import MODEL
from mask_cases import small_segment, write_parquet, write_shapes
from PIL import Image
from training_runs import assert_same_run, final_state, records, two_processes, write_recipe

from crate_mae.batches.config import LabelledDataConfig, SupervisedAugment
from crate_mae.batches.transforms import dense_fit, prepare
from crate_mae.cli import main
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import Preprocess
from crate_mae.models.depict import CrateSegmenter
from crate_mae.models.mask_classes import VOID
from crate_mae.training.config import (
    CheckpointConfig,
    FinetuneConfig,
    FinetuneOptimConfig,
    TrainerConfig,
)
from crate_mae.training.finetune import finetune
from crate_mae.training.parse import parse_finetune
from crate_mae.training.segmentation import Segmentation, image_losses
from crate_mae.weights.weights_folder import load_model, save_model


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"))


def small(shapes: Path, **changes: Any) -> FinetuneConfig:
    return small_segment(f"imagefolder:{shapes / 'images'}", str(shapes / "masks"), **changes)


@pytest.fixture(scope="module")
def whole(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert finetune(small(shapes), folder).finished
    return folder


def test_the_loss_by_loops() -> None:
    """Each image counts alike, whatever share of it is void; one that is all void counts 0."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, 2, 3, generator=generator, dtype=torch.float64)
    masks = torch.tensor([[0, 1, 255], [3, 3, 2]]).repeat(3, 1, 1)
    masks[1, 0] = VOID
    masks[2] = VOID
    for smoothing in (0.0, 0.2):
        found = image_losses(scores, masks, label_smoothing=smoothing)
        for image in range(3):
            total, count = 0.0, 0
            for y in range(2):
                for x in range(3):
                    true = int(masks[image, y, x])
                    if true == VOID:
                        continue
                    values = scores[image, :, y, x].tolist()
                    log_sum = math.log(sum(math.exp(v) for v in values))
                    for number, value in enumerate(values):
                        share = smoothing / 4 + (1 - smoothing) * (number == true)
                        total -= share * (value - log_sum)
                    count += 1
            assert float(found[image]) == pytest.approx(total / max(1, count), rel=1e-12)


def test_a_run_on_masks_tells_everything(whole: Path, shapes: Path) -> None:
    """Every test image segmented again, one by one, with the saved weights."""
    names = {item.name for item in whole.iterdir()}
    assert {"weights", "weights-best", "evaluation.json", "segmentation.png"} <= names
    data = json.loads((whole / "data.json").read_text())
    assert (data["images"], data["validation_images"], data["test"]["images"]) == (17, 7, 8)
    assert (data["mask_values"], data["ignored_values"]) == ([0, 1, 2], [255])
    found = json.loads((whole / "evaluation.json").read_text())
    model = load_model(whole)
    assert isinstance(model, CrateSegmenter)
    assert model.classes.names == ("0", "1", "2")
    counts = np.zeros((3, 3), dtype=int)
    for path in sorted((shapes / "images" / "test").iterdir()):
        image = torch.from_numpy(np.array(Image.open(path)))[None]
        mask = torch.from_numpy(np.array(Image.open(shapes / "masks" / f"{path.stem}.png")))
        _, fitted = dense_fit(image, mask, size=(8, 8))
        with torch.no_grad():
            told = model(prepare([image], model.preprocess))[0].argmax(dim=0)
        for t, y in zip(told.flatten().tolist(), fitted.flatten().tolist(), strict=True):
            if y != 255:
                counts[y, t] += 1
    assert found["pixel_counts"]["counts"] == counts.tolist()
    iou = [counts[k, k] / (counts[k].sum() + counts[:, k].sum() - counts[k, k]) for k in range(3)]
    assert found["mean_iou"] == pytest.approx(sum(iou) / 3)
    assert found["settings"]["segment"]["head"] == "linear"
    lines = [record for record in records(whole) if "val/mean_iou" in record]
    assert len(lines) == 2
    assert {"val/iou/0", "val/iou/1", "val/iou/2", "val/pixel_accuracy"} <= set(lines[0])
    assert main(["info", str(whole)]) == 0


@pytest.mark.parametrize("head", ["linear", "depict-self", "depict-cross"])
@pytest.mark.parametrize("place", ["folder", "column"])
def test_shapes_are_learned(shapes: Path, tmp_path: Path, head: str, place: str) -> None:
    """Each head beats telling every pixel to be of the most frequent class, by a wide margin."""
    if place == "column" and head != "linear":
        pytest.skip("masks are read by one reader, whatever the head")
    optim = FinetuneOptimConfig(epochs=30, batch_size=4, base_lr=0.6, warmup_epochs=1)
    data = LabelledDataConfig(
        source=f"imagefolder:{shapes / 'images'}", val_share=0.2, workers=0,
        augment=SupervisedAugment(kind="none"),
    )  # fmt: skip
    record = CheckpointConfig(log_every=1, checkpoint_steps=50)
    # DEPICT's steps begin with a random sign: of some seeds so small a head finds two classes.
    config = small(
        shapes, head=head, optim=optim, data=data, record=record, evaluate="best", seed=1
    )
    if place == "column":
        address = write_parquet(tmp_path / "table")
        segment = replace(config.segment, masks="column:mask")
        config = replace(config, data=replace(data, source=address), segment=segment)
    finetune(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["mean_iou"] > 0.6
    assert found["majority_mean_iou"] < 0.3
    assert found["pixel_accuracy"] > found["majority_pixel_accuracy"] + 0.2
    assert found["weights"] == "weights-best"
    best = max(r["val/mean_iou"] for r in records(tmp_path / "run") if "val/mean_iou" in r)
    lines = [r for r in records(tmp_path / "run") if r.get("val/mean_iou") == best]
    assert found["step"] == lines[0]["step"] + 1, "the first epoch with the highest mean IoU"


@pytest.mark.parametrize("head", ["linear", "depict-cross"])
def test_a_frozen_encoder_stays_as_it_is(shapes: Path, tmp_path: Path, head: str) -> None:
    torch.manual_seed(7)
    before = CrateMAE(MODEL)
    before.preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.3,))
    save_model(before, tmp_path / "weights")
    optim = FinetuneOptimConfig(epochs=1, batch_size=4, base_lr=0.3, warmup_epochs=0, ema=0.5)
    config = small(
        shapes, weights=str(tmp_path / "weights"), model=None, head=head, freeze=True, optim=optim
    )
    finetune(config, tmp_path / "run")
    after = load_model(tmp_path / "run")
    for key, value in before.encoder.state_dict().items():
        assert torch.equal(after.encoder.state_dict()[key], value), key
    assert after.preprocess == before.preprocess
    if head == "linear":
        return  # the encoder is frozen, or not, whatever the head
    assert not finetune(config, tmp_path / "cut", stop_after=2).finished
    assert finetune(config, tmp_path / "cut", resume=True).finished
    assert_same_run(tmp_path / "run", tmp_path / "cut")
    free = replace(config, segment=replace(config.segment, freeze=False))
    finetune(free, tmp_path / "free")
    moved = load_model(tmp_path / "free").encoder.state_dict()
    assert any(not torch.equal(moved[k], v) for k, v in before.encoder.state_dict().items())
    for wrong, message in (
        ({"optim": replace(optim, drop_path=0.1)}, "set optim.drop_path to 0"),
        ({"vitmae": "configuration"}, "not on a ViT-MAE's"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **wrong)


def test_a_head_is_kept_or_replaced(whole: Path, shapes: Path, tmp_path: Path) -> None:
    optim = FinetuneOptimConfig(epochs=1, batch_size=4, base_lr=1e-12, warmup_epochs=0)
    config = small(shapes, weights=str(whole), model=None, optim=optim)
    finetune(config, tmp_path / "same")
    before, same = load_model(whole), load_model(tmp_path / "same")
    assert isinstance(before, CrateSegmenter)
    assert isinstance(same, CrateSegmenter)
    for key, value in before.decoder.state_dict().items():
        torch.testing.assert_close(same.decoder.state_dict()[key], value, atol=1e-6, rtol=1e-6)
    other = replace(config, segment=replace(config.segment, head="depict-self"))
    with pytest.raises(ValueError, match=r"has a head 'linear', not 'depict-self'.*new_head"):
        finetune(other, tmp_path / "other")
    two = replace(config, segment=replace(config.segment, classes=[0, 1], ignore=[2, 255]))
    with pytest.raises(ValueError, match=r"tells 3 classes of pixels apart.*have 2 \(0, 1\)"):
        finetune(two, tmp_path / "other")
    finetune(replace(two, new_head=True), tmp_path / "other", stop_after=1)
    found = load_model(tmp_path / "other")
    assert isinstance(found, CrateSegmenter)
    assert (found.classes.values, found.classes.ignored) == ((0, 1), (2, 255))


# Going on


@pytest.mark.parametrize("steps", [1, 3])
def test_stopping_and_resuming_changes_nothing(
    whole: Path, shapes: Path, tmp_path: Path, steps: int
) -> None:
    folder = tmp_path / "run"
    assert not finetune(small(shapes), folder, stop_after=steps).finished
    assert not (folder / "evaluation.json").exists()
    moved = tmp_path / "moved"
    shutil.copytree(shapes, moved)
    while not finetune(small(moved), folder, resume=True, stop_after=steps).finished:
        pass
    assert_same_run(whole, folder)
    first, second = (json.loads((f / "evaluation.json").read_text()) for f in (whole, folder))
    assert first["pixel_counts"] == second["pixel_counts"]
    again = json.loads((folder / "evaluation.json").read_text())
    finetune(small(moved), folder, resume=True)
    assert json.loads((folder / "evaluation.json").read_text()) == again


def test_two_gloo_processes_and_accumulation_equal_one(shapes: Path, tmp_path: Path) -> None:
    one = small(shapes)
    one = replace(one, optim=replace(one.optim, base_lr=1e-3, ema=None))
    two = replace(one, trainer=TrainerConfig(accelerator="cpu", devices=2, strategy="ddp"))
    recipe = write_recipe(two, tmp_path / "two.yaml")
    output = two_processes("finetune", "--config", recipe, "--out", tmp_path / "two")
    finetune(one, tmp_path / "one")
    parts = TrainerConfig(accelerator="cpu", devices=1, accumulate=2)
    finetune(replace(one, trainer=parts), tmp_path / "parts")
    assert output.count("finished:") == 1, "one process speaks"
    first = final_state(tmp_path / "one")
    for name in ("two", "parts"):
        second = final_state(tmp_path / name)
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, atol=1e-4, rtol=1e-4)
        for a, b in zip(records(tmp_path / "one"), records(tmp_path / name), strict=True):
            assert {k: v for k, v in a.items() if k != "train/grad_norm"} == pytest.approx(
                {k: v for k, v in b.items() if k != "train/grad_norm"}, rel=1e-3, abs=1e-5
            )


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 2}, "hold the values 2, which are neither among the 2 classes"),
        ({"ignore": [0, 1, 255]}, "hold 1 class that counts"),
        ({"class_names": ["a", "b"]}, "2 class names for the 3 classes"),
        ({"test_masks": "nowhere"}, "there is no folder nowhere"),
    ],
)
def test_masks_that_do_not_fit_are_refused_before_anything_is_written(
    shapes: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        finetune(small(shapes, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mask_of_another_size_is_refused_before_anything_is_written(
    shapes: Path, tmp_path: Path
) -> None:
    shutil.copytree(shapes, tmp_path / "shapes")
    Image.new("L", (10, 11)).save(tmp_path / "shapes" / "masks" / "1003.png")
    with pytest.raises(ValueError, match=r"11x10 pixels, its image .*1003\.bmp 12x10"):
        finetune(small(tmp_path / "shapes"), tmp_path / "run")
    shutil.copy(shapes / "images" / "test" / "1003.bmp", tmp_path / "photo.bmp")
    Image.open(tmp_path / "photo.bmp").save(tmp_path / "shapes" / "masks" / "1003.png")
    with pytest.raises(ValueError, match="which are neither classes"):
        finetune(small(tmp_path / "shapes"), tmp_path / "run")
    with pytest.raises(ValueError, match="give no Python dataset"):
        finetune(small(shapes), tmp_path / "run", dataset=[], test_dataset=[])  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--segment.masks", "column:m", "--data.augment.mixup", "0.2"],
            "data.augment.mixup is about",
        ),
        (
            ["--segment.masks", "column:m", "--data.shots", "3"],
            "data.shots is about classes of images",
        ),
        (["--segment.masks", "column:m", "--pool", "cls"], "pool is about classes of images"),
        (["--segment.masks", "column:m", "--segment.classes", "1"], "2 to 255 classes, not 1"),
        (["--segment.masks", "column:m", "--segment.head", "deep"], "segment.head"),
        (["--segment.freez", "true"], "--segment.freeze"),
        ([], "give segment.masks"),
    ],
)
def test_settings_that_contradict_each_other(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["finetune", "--from-scratch", "debug", "--task", "segment", *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_settings_come_back_from_the_file_of_a_run(tmp_path: Path) -> None:
    config = small_segment(
        "digits", "m", classes=[0, 3], class_names=["a", "b"], ignore=[], head="depict-self"
    )
    recipe = write_recipe(config, tmp_path / "config.yaml")
    assert parse_finetune(["--config", str(recipe)])[0] == config
    words = ["--segment.classes", "2", "--segment.ignore", "[7, 9]", "--segment.freeze", "true"]
    changed, _ = parse_finetune(["--config", str(recipe), *words, "--optim.drop_path", "0"])
    assert (changed.segment.classes, changed.segment.ignore) == (2, [7, 9])
    assert changed.segment.choice.of([0, 1, 7], beside_void=False).ignored == (7, 9)


def test_masks_have_no_meaning_for_classes_of_images() -> None:
    with pytest.raises(ValueError, match="section segment has no meaning with task classify"):
        replace(small_segment("digits", "m"), task="classify")
    assert "segment" not in FinetuneConfig().to_dict()
    assert small_segment("digits", "m").to_dict()["segment"]["masks"] == "m"


def test_heads_learn_at_the_full_rate_and_their_embeddings_do_not_decay() -> None:
    from crate_mae.models.depict import segmentation_head
    from crate_mae.models.encoder import Encoder

    model = CrateSegmenter(Encoder(MODEL), segmentation_head("depict-cross", dim=16, num_classes=3))
    module = Segmentation(model, optim=FinetuneOptimConfig(layer_decay=0.5), seed=0)
    assert "decoder.classes" not in module.decayed
    assert "decoder.layers.0.subspaces" in module.decayed
    rates = {name: module.learning_rate_share(name) for name, _ in model.named_parameters()}
    assert {rate for name, rate in rates.items() if name.startswith("decoder.")} == {1.0}
    assert rates["encoder.class_token"] == 0.25
