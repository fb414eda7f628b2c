"""SimDINO runs: their loss, teacher, validation, resume and split, and what they leave behind."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import MODEL
from lightning.pytorch import seed_everything
from torch import Tensor
from training_runs import (
    assert_same_run,
    final_state,
    records,
    small_config,
    two_processes,
    write_recipe,
)

from crate_mae.batches.config import VALIDATION_SEED, Augment, Crops, DataConfig, Masking
from crate_mae.batches.crops import CropMaker
from crate_mae.cli import main
from crate_mae.evaluation.backbones import build_classifier, load_backbone
from crate_mae.evaluation.probe import linear_probe
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.encoder import Encoder
from crate_mae.models.simdino import largest_expansion, simdino_loss
from crate_mae.plan.real_step import make_step, planned_run
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource
from crate_mae.sources.splits import split_off
from crate_mae.training.config import OptimConfig, PretrainConfig, TrainerConfig
from crate_mae.training.nonfinite import NonFiniteError
from crate_mae.training.objectives import ObjectiveConfig, SimDINOConfig
from crate_mae.training.pretrain import pretrain
from crate_mae.training.self_distillation import self_distillation, view_network
from crate_mae.vitmae.encoder import ViTEncoder
from crate_mae.weights.weights_folder import load_autoencoder, load_model

SIMDINO = SimDINOConfig(
    head_hidden=24,
    head_out=12,
    teacher_momentum=0.8,
    crops=Crops(local_views=2, local_size=4, blur=0.0),
)
OPTIM = OptimConfig(epochs=2, batch_size=32, base_lr=1e-3, warmup_epochs=1)


def config_of(**changes: Any) -> PretrainConfig:
    """Two epochs of five steps on 160 digits."""
    base = small_config(
        method="simdino",
        simdino=SIMDINO,
        data=DataConfig(source="digits", limit=200, workers=0),
        optim=OPTIM,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simdino") / "whole"
    assert pretrain(config_of(), folder).finished
    return folder


def held_out(batch: int) -> Any:
    """The validation images of `config_of` as one batch of views."""
    source = open_source("digits", split="train", limit=200)
    assert isinstance(source, ImageSource)
    _, images = split_off(source, 0.1, VALIDATION_SEED, 10_000)
    assert len(images) == batch
    return [(0, index, images.read(index)) for index in range(batch)]


def test_what_is_saved_is_the_teachers_encoder(whole: Path) -> None:
    model = load_model(whole)
    assert type(model) is CrateEncoder
    state = final_state(whole)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"teacher.module.backbone.{name}"])
        assert not torch.equal(value, state[f"model.backbone.{name}"])
    with pytest.raises(ValueError, match="holds an encoder alone, which has no decoder"):
        load_autoencoder(whole)
    assert not (whole / "reconstructions").exists()


def test_its_validation_is_the_loss_of_all_held_out_images(whole: Path) -> None:
    """By the loss itself, of one batch of fixed views, by student and teacher as they were saved.

    What was logged came batch by batch.
    """
    network, taught = view_network(config_of()), view_network(config_of())
    state = final_state(whole)
    for prefix, part in (("model.", network), ("teacher.module.", taught)):
        part.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
    preprocess: Preprocess = load_model(whole).preprocess
    maker = CropMaker(crops=SIMDINO.crops, preprocess=preprocess, seed=VALIDATION_SEED)
    batch = maker(held_out(20), [])
    with torch.no_grad():
        student = network.double()(batch["global_crops"].double(), batch["local_crops"].double())
        teacher = taught.double()(batch["global_crops"].double())
    expected = simdino_loss(student, teacher, eps=SIMDINO.eps)
    last = [record for record in records(whole) if "val/loss" in record][-1]
    assert last["val/loss"] == pytest.approx(float(expected.loss), rel=1e-4)
    assert last["val/compression"] == pytest.approx(float(expected.compression), rel=1e-4)
    assert last["val/expansion"] == pytest.approx(float(expected.expansion), rel=1e-4)
    assert last["val/largest_expansion"] == pytest.approx(largest_expansion(20, 12, eps=0.05))
    assert all(name in last for name in ("val/effective_rank", "val/knn", "val/probe"))


def test_each_step_logs_its_terms_beside_the_largest(whole: Path) -> None:
    steps = [record for record in records(whole) if "train/loss" in record]
    assert len(steps) == 10
    for record in steps:
        total = record["train/compression"] + record["train/expansion"]
        assert record["train/loss"] == pytest.approx(-total, rel=1e-5)
        assert -1 <= record["train/compression"] <= 1
        assert record["train/largest_expansion"] == pytest.approx(
            largest_expansion(32, 12, eps=0.05)
        )
        assert record["train/expansion"] <= record["train/largest_expansion"]


def test_the_teacher_follows_every_step_by_the_schedule(tmp_path: Path) -> None:
    config = config_of()
    seed_everything(config.seed, verbose=False)
    teacher: dict[str, Tensor] = dict(view_network(config).named_parameters())
    for step in range(3):
        pretrain(config, tmp_path / "run", stop_after=1, resume=step > 0)
        state = final_state(tmp_path / "run")
        momentum = 1 - (1 - 0.8) * (math.cos(math.pi * step / 10) + 1) / 2
        for name, value in teacher.items():
            expected = momentum * value + (1 - momentum) * state[f"model.{name}"]
            found = state[f"teacher.module.{name}"]
            torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-5)
            teacher[name] = found


@pytest.mark.parametrize("stop", [3, 5])
def test_a_stopped_run_goes_on_bit_for_bit(whole: Path, tmp_path: Path, stop: int) -> None:
    assert not pretrain(config_of(), tmp_path / "run", stop_after=stop).finished
    assert pretrain(config_of(), tmp_path / "run", resume=True).finished
    assert_same_run(whole, tmp_path / "run")


def test_another_head_or_momentum_would_be_another_run(tmp_path: Path) -> None:
    pretrain(config_of(), tmp_path / "run", stop_after=1)
    for change in ({"head_out": 8}, {"teacher_momentum": 0.9}, {"eps": 0.1}):
        (name,) = change
        other: Any = replace(SIMDINO, **change)
        with pytest.raises(ValueError, match=f"another run: simdino.{name}"):
            pretrain(config_of(simdino=other), tmp_path / "run", resume=True)


def trained_alike(one: Path, two: Path) -> bool:
    first, second = final_state(one), final_state(two)
    return all(
        torch.allclose(second[key], value, atol=1e-4, rtol=1e-4) for key, value in first.items()
    )


def compare_logs(one: Path, two: Path) -> None:
    for name in ("train/loss", "train/compression", "train/expansion", "val/loss"):
        values = [
            torch.tensor([record[name] for record in records(run) if name in record])
            for run in (one, two)
        ]
        assert len(values[0]) == (2 if name == "val/loss" else 10)
        torch.testing.assert_close(values[0], values[1], atol=5e-4, rtol=5e-4)


def test_two_processes_train_what_one_trains(whole: Path, tmp_path: Path) -> None:
    """Accumulating as well: 2 devices x 2 batches of 8 images."""
    trainer = TrainerConfig(accelerator="cpu", devices=2, strategy="ddp", accumulate=2)
    recipe = write_recipe(config_of(trainer=trainer), tmp_path / "two.yaml")
    output = two_processes("pretrain", "--config", recipe, "--out", tmp_path / "two")
    assert "2 devices x 2 accumulated x 8" in output
    assert trained_alike(whole, tmp_path / "two")
    compare_logs(whole, tmp_path / "two")


def test_accumulation_trains_what_one_batch_trains(whole: Path, tmp_path: Path) -> None:
    trainer = TrainerConfig(accelerator="cpu", devices=1, accumulate=4)
    pretrain(config_of(trainer=trainer), tmp_path / "four")
    assert trained_alike(whole, tmp_path / "four")
    compare_logs(whole, tmp_path / "four")


def test_the_covariance_of_each_batch_is_another_objective(whole: Path, tmp_path: Path) -> None:
    """As published; and on one device without accumulation there is no difference."""
    published = replace(SIMDINO, reduce_cov=False)
    pretrain(config_of(simdino=published), tmp_path / "one")
    assert trained_alike(whole, tmp_path / "one")
    trainer = TrainerConfig(accelerator="cpu", devices=1, accumulate=4)
    pretrain(config_of(simdino=published, trainer=trainer), tmp_path / "four")
    assert not trained_alike(whole, tmp_path / "four")


def test_steps_lower_the_loss() -> None:
    """The same batch of views again and again, on CRATE and on ViT."""
    for vitmae in (None, "configuration"):
        config = config_of(vitmae=vitmae)
        torch.manual_seed(0)
        module = self_distillation(config, view_network(config))
        maker = CropMaker(
            crops=SIMDINO.crops,
            preprocess=Preprocess(size=(8, 8), channels=1, mean=(0.3,), std=(0.4,)),
            seed=0,
        )
        batch = maker(held_out(20), [])
        optimizer = torch.optim.Adam(module.model.parameters(), lr=1e-3)
        losses = []
        for _ in range(100):
            loss = module.loss(batch)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            module.move_teacher(0.9)
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] - 0.15
        assert all(p.grad is None for p in module.teacher.parameters())
        assert all(p.grad is not None for p in module.model.parameters() if p.requires_grad)


def test_a_vit_trains_and_is_measured_alike(tmp_path: Path) -> None:
    config = config_of(vitmae="configuration", optim=replace(OPTIM, epochs=1))
    pretrain(config, tmp_path / "run")
    model, _ = load_backbone(tmp_path / "run")
    assert type(model) is ViTEncoder
    state = final_state(tmp_path / "run")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"teacher.module.backbone.{name}"])
    images = torch.randn(3, 1, 8, 8)
    assert model.encode(images).shape == (3, 17, 16)
    torch.testing.assert_close(model(images), model.encode(images))
    assert model(torch.randn(3, 1, 4, 6)).shape == (3, 7, 16)
    few = ["--limit", "120", "--test-limit", "60"]
    assert main(["knn", str(tmp_path / "run"), "digits", "--pool", "cls", *few]) == 0


@pytest.mark.parametrize("vitmae", [None, "configuration"])
def test_a_classifier_starts_from_a_trained_encoder(vitmae: Any) -> None:
    encoder: Any = view_network(config_of(vitmae=vitmae)).backbone
    classifier = build_classifier(MODEL, origin=encoder, seed=1, num_classes=3)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(classifier.encode(images), encoder.encode(images))
    assert classifier(images).shape == (2, 3)


def test_verbs_take_the_encoder(
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of the report's probe, too: weak penalties take it long.
    defaults = linear_probe.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "penalties", (1.0, 0.1))
    few = ["--limit", "120", "--test-limit", "60"]
    probe = ["probe", str(whole), "digits", "--pool", "cls", "--penalties", "1,0.1"]
    assert main([*probe, *few]) == 0
    features = tmp_path / "features.safetensors"
    assert main(["extract", str(whole), "digits", "--limit", "20", "--out", str(features)]) == 0
    out = tmp_path / "analysis"
    assert main(["analyze", str(whole), "digits", "--limit", "20", "--out", str(out)]) == 0
    assert main(["info", str(whole)]) == 0
    assert "CrateEncoder" in capsys.readouterr().out
    assert main(["reconstruct", str(whole), "digits", "--out", str(tmp_path / "a.png")]) != 0
    assert "an encoder alone" in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert main(["report", str(whole), "--out", str(page), *few]) == 0
    text = page.read_text("utf-8")
    assert "SimDINO pre-training" in text
    assert "Completed images" not in text


def test_a_plan_counts_student_and_views() -> None:
    subject = planned_run(config_of())
    network = view_network(config_of())
    assert subject.parameters() == sum(p.numel() for p in network.parameters())
    assert subject.tokens == (17, None)
    assert subject.average
    fewer = planned_run(
        config_of(simdino=replace(SIMDINO, crops=replace(SIMDINO.crops, local_views=0)))
    )
    assert 0 < fewer.flops(4) < subject.flops(4)
    step = make_step(subject, 4, "cpu", "32-true")
    step()
    step()


def test_where_a_number_stops_being_finite_is_found() -> None:
    torch.manual_seed(0)
    module = self_distillation(config_of(), view_network(config_of()))
    batch: Any = {
        "global_crops": torch.randn(2, 4, 1, 8, 8),
        "local_crops": torch.randn(2, 4, 1, 4, 4),
    }
    assert module.locate_nonfinite(batch) == "loss"
    broken: Any = {**batch, "local_crops": batch["local_crops"] / 0}
    assert module.locate_nonfinite(broken) == "input images"
    last = module.model.head.mlp[-1]
    with torch.no_grad():
        last.weight[0, 0] = torch.nan  # type: ignore[operator]
    assert module.locate_nonfinite(batch) == "parameter head.mlp.4.weight"


def test_a_run_that_diverges_says_where(tmp_path: Path) -> None:
    optim = OptimConfig(epochs=3, batch_size=32, base_lr=1e38, warmup_epochs=0)
    with pytest.raises(NonFiniteError) as caught:
        pretrain(config_of(optim=optim), tmp_path / "run")
    assert caught.value.report["began_in"] != "not found"
    assert (tmp_path / "run" / "nonfinite.json").is_file()


def test_the_encoder_alone_is_the_encoder(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = CrateEncoder(MODEL)
    images = torch.randn(2, 1, 8, 8)
    steps = list(model.half_steps(images))
    torch.testing.assert_close(model.encoder.norm(steps[-1].after), model.encode(images))
    *_, (name, features) = model.tensors_to_features(images)
    assert name == "features"
    torch.testing.assert_close(features, model(images))
    torch.manual_seed(7)
    fresh = Encoder(MODEL)
    for key, value in model.untrained(7).encoder.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key])
    network = view_network(config_of())
    network(torch.randn(2, 3, 1, 8, 8), torch.randn(2, 3, 1, 4, 4))
    assert "positions recomputed" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "dino"}, "method must be one of masked, simdino, not 'dino'"),
        ({"method": "masked"}, "the section simdino has no meaning with method masked"),
        ({"masking": Masking(ratio=0.5)}, "the section masking has no meaning with method simdino"),
        ({"objective": ObjectiveConfig(gamma=0.1)}, "the section objective has no meaning"),
        ({"data": DataConfig(augment=Augment(flip=False))}, "leave data.augment out"),
        ({"data": DataConfig(on_device=True)}, "data.on_device makes one view"),
        ({"vitmae": "parameters"}, "set vitmae to configuration"),
        ({"trainer": TrainerConfig(strategy="fsdp")}, "not trainer.strategy fsdp"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.0}, "simdino.eps must be from 0.0001 to 1000, not 0.0"),
        ({"eps": float("nan")}, "simdino.eps must be from"),
        ({"expa_type": 2}, "simdino.expa_type must be 0 or 1, not 2"),
        ({"coefficient": 0.0}, "simdino.coefficient must be a finite number above 0"),
        ({"teacher_momentum": 1.5}, r"simdino.teacher_momentum must be in \[0, 1\]"),
        ({"head_layers": 0}, "simdino.head_layers must be from 1 to 8, not 0"),
        ({"head_hidden": 0}, "simdino.head_hidden must be from 1"),
        ({"head_out": 1 << 20}, "simdino.head_out must be from 1 to 65536"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimDINOConfig(**changes)


def test_crops_that_do_not_suit_the_model_stop_before_anything_is_written(tmp_path: Path) -> None:
    crops = replace(SIMDINO.crops, local_size=5)
    with pytest.raises(ValueError, match=r"crops\.local_size: image 5x5 is not a multiple"):
        pretrain(config_of(simdino=replace(SIMDINO, crops=crops)), tmp_path / "run")
    with pytest.raises(ValueError, match="method simdino starts from fresh weights"):
        pretrain(config_of(), tmp_path / "run", init_from="debug")
    assert not (tmp_path / "run").exists()


def test_a_recipe_names_the_sections_of_its_method_alone() -> None:
    assert "masking" not in config_of().to_dict()
    assert "simdino" not in small_config().to_dict()
    assert small_config().to_dict()["method"] == "masked"
    assert isinstance(config_of().model, ModelConfig)
