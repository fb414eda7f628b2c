"""The parts of supervised training against hand-computed values."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from model_cases import encoder_layer, tiny
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training_runs import small_finetune

from crate_mae.batches.config import LabelledDataConfig
from crate_mae.batches.labelled import LabelledBatch
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import resolve_config
from crate_mae.sources.inputs import open_images
from crate_mae.sources.splits import share_indices
from crate_mae.sources.torch_datasets import wrap_dataset
from crate_mae.training.classification import Classification
from crate_mae.training.config import FinetuneOptimConfig
from crate_mae.training.final_test import score_classifier
from crate_mae.training.finetune import finetune
from crate_mae.training.labelled_images import open_labelled
from crate_mae.training.optim import layer_decay_share, parameter_groups, warmup_cosine


def classification(**optim: Any) -> Classification:
    """A classifier of three classes with two layers, ready to train."""
    torch.manual_seed(0)
    config = small_finetune().model
    assert config is not None
    model = CrateClassifier(config, num_classes=3)
    return Classification(model, optim=FinetuneOptimConfig(**optim), seed=0)


def some_batch(targets: Tensor, keep: Tensor | None = None) -> LabelledBatch:
    """Random images with these targets."""
    images = torch.randn(len(targets), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return LabelledBatch(
        images=images, labels=torch.zeros(len(targets), dtype=torch.long), targets=targets,
        keep=keep, index=torch.arange(len(targets)), names=["x"] * len(targets), broken=[],
    )  # fmt: skip


def test_layer_decay_is_in_the_learning_rates_of_the_optimiser() -> None:
    """Two layers and decay 1/2: embedding 1/8, first layer 1/4, second 1/2, norm and head 1."""
    module = classification(layer_decay=0.5)
    groups = parameter_groups(
        cast("nn.Module", module.model), 0.05, module.decayed, learning_rate=0.8,
        share_of=module.learning_rate_share,
    )  # fmt: skip
    rates = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    expected = {
        "encoder.patch_embed": 0.1, "encoder.class_token": 0.1, "encoder.layers.0": 0.2,
        "encoder.layers.1": 0.4, "encoder.norm": 0.8, "head": 0.8,
    }  # fmt: skip
    seen = set()
    for name, parameter in module.model.named_parameters():
        (start,) = [key for key in expected if name.startswith(key)]
        seen.add(start)
        rate, decay = rates[id(parameter)]
        assert rate == pytest.approx(expected[start]), name
        assert decay == (0.05 if parameter.ndim > 1 and "token" not in name else 0.0), name
    assert seen == set(expected)
    assert len(rates) == len(list(module.model.parameters()))
    assert groups[0]["lr"] == 0.8, "the logged rate is the head's"


def test_an_unknown_parameter_has_no_layer() -> None:
    with pytest.raises(ValueError, match=r"decoder\.0\.x is no parameter of a classifier"):
        layer_decay_share("decoder.0.x", decay=0.5, depth=2)


def test_kept_and_dropped_steps_of_a_layer() -> None:
    torch.manual_seed(0)
    layer = encoder_layer(tiny(dim=8, num_heads=2, decoder_num_heads=2)).double()
    z = torch.randn(4, 5, 8, dtype=torch.float64)
    step = layer.compress(z) - z
    keep = torch.tensor([0.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    h = layer.compress(z, keep)
    for image, factor in enumerate(keep.tolist()):
        torch.testing.assert_close(h[image], z[image] + factor * step[image])
    assert torch.equal(layer.compress(z, torch.ones(4)), layer.compress(z))
    # The sparse step runs for a dropped image too: it has no skip that could replace it.
    torch.testing.assert_close(layer(z, keep)[0], layer.sparsify(z[:1])[0])


def test_dropped_steps_reach_every_layer_of_a_classifier() -> None:
    model = classification().model
    assert isinstance(model, CrateClassifier)
    model.double()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    keep = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    tokens = model.encoder.embed(images)
    first, second = model.encoder.layers
    rows = []
    for image in range(3):
        z = tokens[image : image + 1]
        for layer, factor in ((first, keep[0, image]), (second, keep[1, image])):
            z = layer.sparsify(layer.compress(z) if factor else z)
        rows.append(model.head(model.encoder.norm(z)[:, 1:].mean(dim=1))[0])
    torch.testing.assert_close(model(images, keep), torch.stack(rows))
    torch.testing.assert_close(model(images)[0], rows[0])


def test_the_loss_by_loops_with_mixed_and_smoothed_targets() -> None:
    module = classification(label_smoothing=0.3)
    targets = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    batch = some_batch(targets)
    scores = module.model(batch["images"]).detach().double()
    total = 0.0
    for row, target in zip(scores.tolist(), targets.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(s) for s in row))
        for s, share in zip(row, target, strict=True):
            total -= (0.7 * share + 0.3 / 3) * (s - log_sum)
    assert module.loss(batch).item() == pytest.approx(total / 2, rel=1e-5)
    hard = some_batch(torch.tensor([1, 2]))
    soft = some_batch(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert module.loss(hard).item() == pytest.approx(module.loss(soft).item(), rel=1e-6)


def test_where_a_classifier_breaks_is_named() -> None:
    module = classification()
    model, images = module.model, torch.randn(2, 1, 8, 8)

    def where(images: Tensor) -> str:
        return module.locate_nonfinite({**some_batch(torch.tensor([0, 1])), "images": images})

    assert where(images) == "loss"
    assert where(images.fill_(math.nan)) == "input images"
    huge = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        model.head.weight.fill_(3e38)
    assert where(huge) == "scores"
    with torch.no_grad():
        dict(model.named_parameters())["encoder.layers.1.ista.dictionary"].fill_(math.inf)
    assert "layers.1.ista.dictionary" in where(huge)


def test_the_average_of_the_weights_is_that_of_every_step(tmp_path: Path) -> None:
    """One step a session, so that every step's weights can be read; the formula by hand."""
    config = small_finetune()
    expected: dict[str, Tensor] = {}
    for step in range(4):
        finetune(config, tmp_path / "run", resume=step > 0, stop_after=1)
        state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        saved = state["state_dict"]
        weights = {k: v.double() for k, v in saved.items() if k.startswith("model.")}
        for key, value in weights.items():
            expected[key] = value if step == 0 else 0.6 * expected[key] + 0.4 * value
    for key, value in expected.items():
        average = saved["average.module." + key.removeprefix("model.")]
        torch.testing.assert_close(average.double(), value, atol=1e-6, rtol=1e-5)
        assert not torch.equal(average, saved[key])
    # The rates in the checkpoint's optimiser: 8/8, 4/8, 2/8, 1/8 of the peak, by the schedule.
    groups = state["optimizer_states"][0]["param_groups"]
    peak = config.optim.peak_lr
    assert sorted({g["initial_lr"] / peak for g in groups}) == pytest.approx([0.125, 0.25, 0.5, 1])
    share = warmup_cosine(4, total=15, warmup=5)
    assert all(g["lr"] == pytest.approx(g["initial_lr"] * share) for g in groups)


def test_few_shot_and_share_counts() -> None:
    data = small_finetune().data

    everything = replace(data, limit=None, val_share=0.0, test_limit=None)
    three = open_labelled(replace(everything, shots=3), seed=0)
    assert torch.bincount(three.train_labels).tolist() == [3] * 10
    again, other = (open_labelled(replace(everything, shots=3), seed=s) for s in (0, 1))
    names = [[i.train.name(n) for n in range(30)] for i in (three, again, other)]
    assert names[0] == names[1]
    assert names[0] != names[2]
    whole = open_labelled(everything, seed=0)
    tenth = open_labelled(replace(everything, share=0.1), seed=0)
    counts = torch.bincount(whole.train_labels)
    assert torch.bincount(tenth.train_labels).tolist() == [round(c / 10) for c in counts.tolist()]
    assert {tenth.test.name(i) for i in range(len(tenth.test))} == {
        whole.test.name(i) for i in range(len(whole.test))
    }
    with pytest.raises(ValueError, match="200 images of every class were asked for"):
        open_labelled(replace(everything, shots=200), seed=0)


def test_a_share_keeps_one_image_of_every_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 5 + [2])
    chosen = share_indices(labels, 0.1, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [10, 1, 1]
    assert share_indices(torch.arange(4), 0.5, seed=0) == [0, 1, 2, 3]


def test_validation_images_come_from_training_images_alone() -> None:

    data = replace(small_finetune().data, limit=None, val_share=0.25, shots=8)
    images = open_labelled(data, seed=0)
    assert images.val is not None
    parts = [
        {source.name(i) for i in range(len(source))}
        for source in (images.train, images.val, images.test)
    ]
    assert [len(part) for part in parts] == [60, 20, 60]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    assert torch.bincount(images.train_labels).tolist() == [6] * 10
    few = open_labelled(replace(data, val_limit=10), seed=0)
    assert few.val is not None
    assert len(few.val) == 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"ema": 1.0}, "ema"),
        ({"clip": 0.0}, "clip"),
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"optim.{message}"):
        FinetuneOptimConfig(**wrong)


def test_a_class_without_training_images_is_never_among_the_five_best() -> None:
    """Ten classes, two of them trained: the other eight share the score of minus infinity."""
    config = resolve_config("debug", image_size=8, patch_size=4, channels=1, dim=16)
    model = CrateClassifier(config, num_classes=10)
    test = open_images(["digits"], limit=100)
    found, further = score_classifier(model, test, torch.tensor([3, 7]))
    labels = [test.label(index) for index in range(len(test))]
    assert further["top5_accuracy"] == sum(label in (3, 7) for label in labels) / 100
    assert found.accuracy <= further["top5_accuracy"]


def test_validation_images_of_other_classes_are_refused_before_training() -> None:
    """Python datasets of two classes, validated on the ten of the digits."""
    pairs = TensorDataset(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    pictures = wrap_dataset(pairs, class_names=("a", "b"))
    with pytest.raises(ValueError, match="digits train have classes that the training images"):
        open_labelled(
            LabelledDataConfig(val_source="digits"), seed=0, dataset=pictures, test_dataset=pictures
        )


def test_a_python_dataset_has_no_split_to_validate_with() -> None:
    """Without a source of its own the split would be looked up in the default one, the digits."""
    pairs = TensorDataset(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    pictures = wrap_dataset(pairs, class_names=("a", "b"))
    with pytest.raises(ValueError, match=r"has no split 'test': name data\.val_source"):
        open_labelled(
            LabelledDataConfig(val_split="test"), seed=0, dataset=pictures, test_dataset=pictures
        )
