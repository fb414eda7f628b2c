"""A supervised run: what it leaves behind, how it goes on, what it refuses."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import MODEL
from sklearn.metrics import confusion_matrix
from torch import Tensor
from torch.utils.data import Dataset
from training_runs import (
    assert_same_run,
    command_line,
    final_state,
    killed_at_random,
    records,
    small_finetune,
    two_processes,
    write_recipe,
)

from crate_mae.batches.config import SupervisedAugment
from crate_mae.batches.transforms import prepare
from crate_mae.cli import main
from crate_mae.evaluation import probe as probing
from crate_mae.evaluation.backbones import load_backbone
from crate_mae.evaluation.features import extract_features
from crate_mae.evaluation.metrics import wilson_interval
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import Preprocess
from crate_mae.sources.address import open_source
from crate_mae.training.config import (
    CheckpointConfig,
    FinetuneConfig,
    FinetuneOptimConfig,
    TrainerConfig,
)
from crate_mae.training.final_test import evaluation_text
from crate_mae.training.finetune import finetune
from crate_mae.training.segment_config import SegmentConfig
from crate_mae.weights.weights_folder import load_model, save_model

PLAIN = SupervisedAugment(kind="none", flip=False)


class Shades(Dataset[tuple[Tensor, int]]):
    """Random images of three classes, each a shade of its own."""

    classes = ("dark", "middle", "light")

    def __init__(self, count: int = 24, channels: int = 1) -> None:
        noise = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))
        self.labels = [index % 3 for index in range(count)]
        self.images = noise * 0.4 + torch.tensor(self.labels).view(-1, 1, 1, 1) * 0.3

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert finetune(small_finetune(), folder, command=["crate-mae", "finetune", "x"]).finished
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an autoencoder of the small size, with a mean and std of their own."""
    torch.manual_seed(7)
    model = CrateMAE(replace(MODEL, depth=2))
    model.preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.3,), std=(0.4,))
    folder = tmp_path_factory.mktemp("pretrained") / "weights"
    save_model(model, folder)
    return folder


def frozen(**changes: Any) -> FinetuneConfig:
    """One epoch that hardly moves the weights."""
    optim = FinetuneOptimConfig(epochs=1, batch_size=32, base_lr=1e-12, warmup_epochs=0)
    return small_finetune(optim=optim, **changes)


# What it leaves behind


def test_the_run_folder_tells_everything(whole: Path) -> None:
    names = {item.name for item in whole.iterdir()}
    assert names == {
        "config.yaml", "command.txt", "environment.json", "data.json", "metrics.csv",
        "metrics.jsonl", "log.txt", "tensorboard", "checkpoints", "weights", "weights-best",
        "summary.json", "evaluation.json",
    }  # fmt: skip
    data = json.loads((whole / "data.json").read_text())
    assert (data["images"], data["validation_images"], data["test"]["images"]) == (161, 39, 60)
    assert data["classes"] == [str(digit) for digit in range(10)]
    assert sum(data["labels_per_class"]) == 161
    assert data["fingerprint"] != data["test"]["fingerprint"]
    log = (whole / "log.txt").read_text()
    assert "10 classes with" in log
    assert "from scratch" in log
    assert "learning rates from 0.000156 (embedding) to 0.00125 (head)" in log


def test_evaluation_against_scikit_learn(whole: Path) -> None:
    """Every test image classified again, one by one, with the saved weights."""
    found = json.loads((whole / "evaluation.json").read_text())
    model = load_model(whole)
    assert isinstance(model, CrateClassifier)
    assert (found["pool"], found["layer"]) == (model.pool, model.pooled_layer)
    assert model.class_names == tuple(map(str, range(10)))
    source = open_source("digits", split="test", limit=60)
    truth, answers, top5 = [], [], 0
    with torch.no_grad():
        for index in range(60):
            sample = source.load(index)  # type: ignore[union-attr]
            scores = model(prepare([sample.image], model.preprocess))[0]
            truth.append(sample.label)
            answers.append(int(scores.argmax()))
            top5 += sample.label in scores.topk(5).indices
    counts = confusion_matrix(truth, answers, labels=range(10))
    right = sum(t == a for t, a in zip(truth, answers, strict=True))
    assert found["accuracy"] == right / 60
    assert found["top5_accuracy"] == top5 / 60
    assert found["interval"] == list(wilson_interval(right, 60))
    assert found["confusion"] == {"classes": list(map(str, range(10))), "counts": counts.tolist()}
    assert found["per_class"] == {
        str(c): pytest.approx(counts[c, c] / counts[c].sum()) for c in range(10)
    }
    assert found["num_train"] == 161
    tensors = (whole / "weights" / "model.safetensors").read_bytes()
    assert found["sha256"] == hashlib.sha256(tensors).hexdigest()
    assert (found["weights"], found["step"], found["tested_on"]) == ("weights", 15, "digits test")
    assert found["data"]["test"]["images"] == 60
    assert found["settings"]["optim"]["drop_path"] == 0.5
    text = evaluation_text(whole)
    assert f"test accuracy {right / 60:.2%} (95 % interval" in text
    assert (
        json.loads((whole / "summary.json").read_text())["metrics"]["test/accuracy"] == right / 60
    )


def test_the_saved_weights_are_the_average(whole: Path) -> None:
    state = final_state(whole)
    for key, value in load_model(whole).state_dict().items():
        assert torch.equal(value, state[f"average.module.{key}"])


def test_validation_numbers_against_loops(whole: Path) -> None:
    """Loss and accuracy of the saved weights on the held-out images, one by one."""
    from crate_mae.training.labelled_images import open_labelled

    images = open_labelled(small_finetune().data, seed=0)
    model, val = load_model(whole), images.val
    assert val is not None
    right, total = 0, 0.0
    for index in range(len(val)):
        sample = val.load(index)
        with torch.no_grad():
            scores = model(prepare([sample.image], model.preprocess))[0].double()
        assert sample.label is not None
        right += int(scores.argmax()) == sample.label
        total -= float(scores.log_softmax(dim=0)[sample.label])
    last = [record for record in records(whole) if "val/loss" in record][-1]
    assert last["val/accuracy"] == pytest.approx(right / len(val))
    assert last["val/loss"] == pytest.approx(total / len(val), rel=1e-5)


def test_a_classifier_learns_a_handful_of_images_by_heart(tmp_path: Path) -> None:
    config = small_finetune(
        data=replace(small_finetune().data, augment=PLAIN, val_share=0.0),
        optim=FinetuneOptimConfig(epochs=50, batch_size=24, base_lr=0.1, warmup_epochs=2),
        record=CheckpointConfig(log_every=1, checkpoint_epochs=1000),
    )
    images = Shades()
    summary = finetune(config, tmp_path / "run", dataset=images, test_dataset=images)
    assert summary.metrics["test/accuracy"] == 1.0
    losses = [record["train/loss"] for record in records(tmp_path / "run")]
    assert losses[0] > 1.0
    assert losses[-1] < 0.1
    assert not (tmp_path / "run" / "weights-best").exists()


def test_the_best_epoch_is_tested_when_asked_for(tmp_path: Path) -> None:
    """Its step is that of the first epoch with the highest accuracy."""
    config = small_finetune(evaluate="best")
    finetune(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    accuracies = [r["val/accuracy"] for r in records(tmp_path / "run") if "val/accuracy" in r]
    first_best = accuracies.index(max(accuracies))
    assert found["weights"] == "weights-best"
    assert found["step"] == 5 * (first_best + 1)
    tensors = (tmp_path / "run" / "weights-best" / "model.safetensors").read_bytes()
    assert found["sha256"] == hashlib.sha256(tensors).hexdigest()


# Where it starts


def test_it_starts_from_pre_trained_weights(pretrained: Path, tmp_path: Path) -> None:
    finetune(frozen(weights=str(pretrained), model=None), tmp_path / "run")
    before, after = load_model(pretrained), load_model(tmp_path / "run")
    for key, value in before.encoder.state_dict().items():
        torch.testing.assert_close(after.encoder.state_dict()[key], value, atol=1e-6, rtol=1e-6)
    assert after.preprocess == before.preprocess
    assert "model:\n  image_size:" in (tmp_path / "run" / "config.yaml").read_text()


def test_another_image_size_keeps_the_coordinates_of_the_weights(
    pretrained: Path, tmp_path: Path
) -> None:
    config = frozen(weights=str(pretrained), model=None, image_size=(8, 12))
    finetune(config, tmp_path / "run", stop_after=1)
    before, after = load_model(pretrained), load_model(tmp_path / "run")
    assert after.preprocess.size == (8, 12)
    assert after.config.image_hw == (8, 8)
    images = torch.randn(2, 1, 8, 12)
    torch.testing.assert_close(after.encode(images), before.encode(images), atol=1e-5, rtol=1e-5)
    assert finetune(config, tmp_path / "run", resume=True).finished


def test_a_run_goes_on_without_the_weights_it_began_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(CrateMAE(replace(MODEL, depth=2)), tmp_path / "weights")
    config = small_finetune(weights=str(tmp_path / "weights"), model=None)
    finetune(config, tmp_path / "run", stop_after=3)
    (tmp_path / "weights" / "model.safetensors").unlink()
    assert finetune(config, tmp_path / "run", resume=True).finished


def test_a_classifier_keeps_its_head_or_gets_a_new_one(whole: Path, tmp_path: Path) -> None:
    before = load_model(whole)
    finetune(frozen(weights=str(whole), model=None), tmp_path / "same")
    same = load_model(tmp_path / "same")
    assert isinstance(before, CrateClassifier)
    assert isinstance(same, CrateClassifier)
    torch.testing.assert_close(same.head.weight, before.head.weight, atol=1e-6, rtol=1e-6)
    three = frozen(weights=str(whole), model=None)
    three = replace(three, optim=replace(three.optim, batch_size=8))
    options = {"dataset": Shades(), "test_dataset": Shades()}
    with pytest.raises(ValueError, match=r"classifier of 10 classes \(0, 1, 2, ...\).*new_head"):
        finetune(three, tmp_path / "three", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trained on pool 'mean', not 'cls'"):
        finetune(replace(three, pool="cls"), tmp_path / "three", **options)  # type: ignore[arg-type]
    finetune(replace(three, new_head=True, pool="cls"), tmp_path / "three", **options)  # type: ignore[arg-type]
    other = load_model(tmp_path / "three")
    assert isinstance(other, CrateClassifier)
    assert (other.pool, other.class_names) == ("cls", Shades.classes)


@pytest.fixture
def penalties(monkeypatch: pytest.MonkeyPatch) -> tuple[float, ...]:
    """Those that a fitted head chooses from here: weak ones take it long."""
    few = (1.0, 0.1)
    monkeypatch.setattr(probing, "PENALTIES", few)
    return few


@pytest.mark.parametrize("pool", ["mean", "cls", "layers"])
def test_a_head_can_begin_as_the_linear_probe(
    pretrained: Path, tmp_path: Path, penalties: tuple[float, ...], pool: Any
) -> None:
    """With a rate of nearly nothing the run's test is that of the probe of the frozen weights."""
    data = replace(small_finetune().data, val_share=0.0, augment=PLAIN)
    config = frozen(weights=str(pretrained), model=None, head_start="probe", pool=pool, data=data)
    config = replace(config, optim=replace(config.optim, drop_path=0.0, ema=None))
    finetune(config, tmp_path / "run")
    model, _ = load_backbone(str(pretrained))
    rows = [
        extract_features(model, open_source("digits", split=split, limit=limit), pool=pool)
        for split, limit in (("train", 200), ("test", 60))
    ]
    probe = probing.linear_probe(*rows, penalties=penalties)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["accuracy"] == pytest.approx(probe.accuracy, abs=1 / 59)
    assert found["accuracy"] > 0.4, "a random head has a tenth"
    told = (tmp_path / "run" / "log.txt").read_text()
    assert f"the linear probe of 200 images: penalty {probe.setting['penalty']:g}" in told


@pytest.mark.usefixtures("penalties")
def test_a_fitted_head_and_resuming(pretrained: Path, tmp_path: Path) -> None:
    config = small_finetune(weights=str(pretrained), model=None, head_start="probe", pool="layers")
    finetune(config, tmp_path / "whole")
    finetune(config, tmp_path / "parts", stop_after=3)
    finetune(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_fitted_head_is_refused_where_there_is_a_head(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="brings its head, and head_start=probe"):
        finetune(frozen(weights=str(whole), model=None, head_start="probe"), tmp_path / "run")
    with pytest.raises(ValueError, match="head_start must be one of random, probe, not 'best'"):
        frozen(head_start="best")
    with pytest.raises(ValueError, match="head_start is about classes of images"):
        frozen(head_start="probe", task="segment", segment=SegmentConfig(masks="masks"))
    assert not (tmp_path / "run").exists()


def test_a_pool_that_does_not_fit_the_head_is_refused_before_any_work(tmp_path: Path) -> None:
    config = small_finetune(pool="layers")
    assert config.model is not None
    config = replace(config, model=replace(config.model, head_norm="pooled"))
    with pytest.raises(ValueError, match="choose cls, mean or mean-all"):
        finetune(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Going on


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_stopping_and_resuming_changes_nothing(whole: Path, tmp_path: Path, steps: int) -> None:
    """With mixing, erasing, RandAugment, dropped steps and the average of the weights."""
    folder = tmp_path / "run"
    assert not finetune(small_finetune(), folder, stop_after=steps).finished
    assert not (folder / "evaluation.json").exists()
    while not finetune(small_finetune(), folder, resume=True, stop_after=steps).finished:
        pass
    assert_same_run(whole, folder)
    first, second = (json.loads((f / "evaluation.json").read_text()) for f in (whole, folder))
    assert first == second


def test_workers_change_nothing_and_accumulation_no_sample(whole: Path, tmp_path: Path) -> None:
    config = small_finetune()
    config = replace(config, data=replace(config.data, workers=2))
    finetune(config, tmp_path / "workers", stop_after=7)
    finetune(config, tmp_path / "workers", resume=True)
    assert_same_run(whole, tmp_path / "workers")
    halves = replace(
        small_finetune(), trainer=TrainerConfig(accelerator="cpu", devices=1, accumulate=2)
    )
    finetune(halves, tmp_path / "halves")
    for a, b in zip(records(whole), records(tmp_path / "halves"), strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if key == "train/loss":
                assert b[key] == pytest.approx(value, rel=1e-3), "the same mixed images"


def test_the_test_is_made_once(whole: Path) -> None:
    before = (whole / "evaluation.json").read_bytes(), (whole / "summary.json").read_bytes()
    summary = finetune(small_finetune(), whole, resume=True)
    assert summary.finished
    assert summary.metrics["test/accuracy"] == json.loads(before[0])["accuracy"]
    assert (
        (whole / "evaluation.json").read_bytes(),
        (whole / "summary.json").read_bytes(),
    ) == before


def test_a_run_that_died_before_its_test_makes_it(whole: Path, tmp_path: Path) -> None:
    finetune(small_finetune(), tmp_path / "run")
    for name in ("evaluation.json", "summary.json"):
        (tmp_path / "run" / name).unlink()
    finetune(small_finetune(), tmp_path / "run", resume=True)
    made = (tmp_path / "run" / "evaluation.json").read_bytes()
    assert made == (whole / "evaluation.json").read_bytes()


def test_resume_after_kill_9_at_a_random_step(tmp_path: Path) -> None:
    config = small_finetune(record=CheckpointConfig(log_every=1, checkpoint_steps=3))
    config = replace(config, optim=replace(config.optim, epochs=5000))
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    run = command_line("finetune", "--config", recipe, "--out", tmp_path / "killed")
    reached = killed_at_random(run, tmp_path / "killed")
    assert reached > 0
    finetune(config, tmp_path / "killed", resume=True, stop_after=10)
    finetune(config, tmp_path / "whole", stop_after=reached + 10)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    """The same mixed, erased images and dropped steps; one process tests."""
    base = small_finetune()
    one = replace(base, optim=replace(base.optim, epochs=2, base_lr=1e-3))
    two = replace(one, trainer=TrainerConfig(accelerator="cpu", devices=2, strategy="ddp"))
    output = two_processes(
        "finetune", "--config", write_recipe(two, tmp_path / "two.yaml"), "--out", tmp_path / "two"
    )
    finetune(one, tmp_path / "one")
    first, second = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, atol=1e-4, rtol=1e-4)
    for a, b in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert a == {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in b.items()}
    assert output.count("test accuracy") == output.count("finished:") == 1


# What it refuses, before anything is written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "name weights to fine-tune, or an architecture"),
        ({"model": None, "weights": "nowhere"}, "no weights at nowhere"),
        ({"image_size": 9}, "image_size: image 9x9 is not a multiple of patch 2x2"),
        ({"data.shots": 100}, "100 images of every class were asked for"),
        ({"data.source": "imagefolder:nowhere"}, "nowhere"),
        ({"data.val_split": "test"}, "validation images would be test images"),
        ({"data.val_split": "train"}, "validation images would be training images"),
        ({"optim.batch_size": 15}, "mixup and cutmix take images in pairs: 15"),
        ({"optim.batch_size": 1}, "mixup and cutmix take images in pairs: 1"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = small_finetune()
    for key, value in change.items():
        section, dot, name = key.partition(".")
        if dot:
            value, key = replace(getattr(config, section), **{name: value}), section
        config = replace(config, **{key: value})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        finetune(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_and_settings_that_disagree(pretrained: Path, tmp_path: Path) -> None:
    config = frozen(weights=str(pretrained))
    assert config.model is not None
    with pytest.raises(ValueError, match=r"another architecture: model\.dim: 16 -> 32"):
        finetune(replace(config, model=replace(config.model, dim=32)), tmp_path / "run")
    with pytest.raises(ValueError, match="bring the mean and std"):
        finetune(
            replace(config, data=replace(config.data, mean=[0.0], std=[1.0])), tmp_path / "run"
        )


def test_images_that_do_not_fit(pretrained: Path, tmp_path: Path) -> None:
    config = replace(
        frozen(weights=str(pretrained), model=None),
        optim=FinetuneOptimConfig(epochs=1, batch_size=8, warmup_epochs=0),
    )

    def run(train: Any, test: Any) -> None:
        finetune(config, tmp_path / "run", dataset=train, test_dataset=test)

    class OneClass(Shades):
        def __init__(self) -> None:
            super().__init__()
            self.labels = [0] * 24

    unlabelled: Any = [torch.rand(1, 8, 8) for _ in range(20)]
    with pytest.raises(ValueError, match="has no labels: put images into one folder per class"):
        run(unlabelled, unlabelled)
    with pytest.raises(ValueError, match="of one class: a classifier needs two"):
        run(OneClass(), OneClass())
    with pytest.raises(ValueError, match="give both or neither"):
        run(Shades(), None)
    with pytest.raises(ValueError, match="image of 5 channels"):
        run(Shades(channels=5), Shades(channels=5))
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_and_another_run_are_refused(whole: Path) -> None:
    with pytest.raises(FileExistsError, match="never overwritten"):
        finetune(small_finetune(), whole)
    config = small_finetune()
    for change, named in (
        ({"optim": replace(config.optim, drop_path=0.1)}, "drop_path: 0.5 -> 0.1"),
        ({"data": replace(config.data, shots=3)}, "shots"),
        ({"pool": "cls"}, "pool: mean -> cls"),
    ):
        with pytest.raises(ValueError, match=f"another run: .*{named}.*--weights"):
            finetune(replace(config, **change), whole, resume=True)


# The command line


def test_the_command_from_weights_to_features(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    small = ["--data.source", "digits", "--data.limit", "100", "--data.augment.padding", "1"]
    small += ["--optim.epochs", "1", "--optim.batch_size", "32", "--trainer.accelerator", "cpu"]
    words = ["finetune", str(pretrained), "--config", "finetune-cifar10-small", *small]
    assert main([*words, "--out", run, "--stop-after", "1"]) == 143
    assert f"crate-mae finetune --resume {run}" in capsys.readouterr().out
    assert main(["finetune", "--resume", run]) == 0
    out = capsys.readouterr().out
    assert "test accuracy" in out
    assert "the most frequent class alone" in out
    assert main(["info", run]) == 0
    assert "CrateClassifier" in capsys.readouterr().out
    features = str(tmp_path / "features.safetensors")
    assert main(["extract", run, "digits", "--limit", "8", "--out", features]) == 0
    assert main([*words, "--out", run]) == 1
    assert "never overwritten" in capsys.readouterr().err
