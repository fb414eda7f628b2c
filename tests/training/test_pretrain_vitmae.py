"""Runs that train a ViT-MAE twin: the same data, masks, schedule, records and resume."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from data_cases import MODEL
from torch import nn
from training_runs import assert_same_run, final_state, records, small_config, small_finetune

from crate_mae.batches.config import Masking
from crate_mae.cli import main
from crate_mae.evaluation.backbones import load_backbone, load_masked_autoencoder
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import Preprocess
from crate_mae.models.cost import model_cost, parameter_count
from crate_mae.models.pools import Pool
from crate_mae.training.finetune import finetune
from crate_mae.training.masked_completion import MaskedCompletion
from crate_mae.training.objectives import ObjectiveConfig
from crate_mae.training.optim import decayed_names, layer_decay_share
from crate_mae.training.parse import parse_finetune, parse_pretrain
from crate_mae.training.pretrain import pretrain
from crate_mae.vitmae.classifier import ViTClassifier, save_vit_classifier
from crate_mae.vitmae.model import Match, ViTMAE, build_vitmae, vitmae_config

WITHOUT_DROP_PATH = replace(small_finetune().optim, drop_path=0.0)


@pytest.mark.parametrize("match", ["configuration", "parameters"])
def test_a_twin_trains_and_loads(match: Match, tmp_path: Path) -> None:
    summary = pretrain(small_config(vitmae=match), tmp_path / "twin")
    assert summary.finished
    losses = [row["train/loss"] for row in records(tmp_path / "twin") if "train/loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    model, _ = load_backbone(tmp_path / "twin")
    assert isinstance(model, ViTMAE)
    ours = model_cost(MODEL, batch=1).parameters
    ratio = parameter_count(model) / ours
    assert 2 < ratio < 5 if match == "configuration" else 0.5 < ratio < 2
    assert isinstance(load_masked_autoencoder(tmp_path / "twin"), ViTMAE)
    # The same network from scratch is a ViT-MAE's, too, and as large.
    words = ["--from-scratch", str(tmp_path / "twin"), "--data.source", "digits"]
    config, _ = parse_finetune(words)
    assert config.vitmae == match
    assert config.model is not None
    network, wanted = (vitmae_config(sizes, match) for sizes in (config.model, MODEL))
    assert network.to_dict() == wanted.to_dict()
    done = finetune(small_finetune(model=config.model, vitmae=match, optim=WITHOUT_DROP_PATH),
                    tmp_path / "scratch")  # fmt: skip
    assert done.finished
    again, _ = parse_finetune(["--from-scratch", str(tmp_path / "scratch" / "weights"), *words[2:]])
    assert again.vitmae == match
    assert again.model is not None
    network = vitmae_config(again.model, match)
    assert network.to_dict() == wanted.to_dict()


def loaded_classifier(name: Path) -> ViTClassifier:
    """The classifier on a ViT-MAE of a weights or run folder."""
    model, _ = load_backbone(name)
    assert isinstance(model, ViTClassifier)
    return model


def test_a_twin_sees_the_masks_and_images_of_the_model_it_is_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    plain = MaskedCompletion.loss

    def loss(self: MaskedCompletion, batch: Any) -> torch.Tensor:
        seen.append(batch)
        return plain(self, batch)

    monkeypatch.setattr(MaskedCompletion, "loss", loss)
    pretrain(small_config(), tmp_path / "crate")
    steps = len(seen)
    pretrain(small_config(vitmae="configuration"), tmp_path / "twin")
    assert len(seen) == 2 * steps == 30
    for one, other in zip(seen[:steps], seen[steps:], strict=True):
        assert torch.equal(one["images"], other["images"])
        assert torch.equal(one["mask"], other["mask"])
    # The loss of one colour counts every removed pixel of every validation image.
    first, second = records(tmp_path / "crate"), records(tmp_path / "twin")
    for key in ("val/mean_colour", "val/patch_mean", "train/lr"):
        assert [row[key] for row in first if key in row] == [
            row[key] for row in second if key in row
        ]


def test_a_stopped_twin_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = small_config(vitmae="configuration")
    pretrain(config, tmp_path / "whole")
    assert not pretrain(config, tmp_path / "parts", stop_after=4).finished
    assert pretrain(config, tmp_path / "parts", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_twin_trains_on_the_coding_rate_as_well(tmp_path: Path) -> None:
    """The rate of what it learned is higher than without, on the same masks and images."""
    config = small_config(vitmae="configuration", objective=ObjectiveConfig(gamma=1.0))
    pretrain(config, tmp_path / "rate")
    pretrain(small_config(vitmae="configuration"), tmp_path / "plain")
    step = [row for row in records(tmp_path / "rate") if "train/coding_rate" in row][-1]
    share = step["train/coding_rate"] / step["train/largest_rate"]
    assert step["train/loss"] == pytest.approx(step["train/masked_loss"] + 1 - share, rel=1e-5)
    shares = [
        [row["val/coding_rate_share"] for row in records(tmp_path / name)
         if "val/coding_rate_share" in row][-1]
        for name in ("rate", "plain")
    ]  # fmt: skip
    assert shares[0] > 1.2 * shares[1]


def test_fixed_positions_and_tokens_are_not_decayed(tmp_path: Path) -> None:
    pretrain(small_config(vitmae="configuration"), tmp_path / "twin", stop_after=1)
    model, _ = load_backbone(tmp_path / "twin")
    names = decayed_names(cast("nn.Module", model))
    assert not any("token" in name or "bias" in name or "layernorm" in name for name in names)
    assert any("fc1.weight" in name for name in names)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("pos" in name for name in trained)


def test_the_command_line_passes_the_setting_on() -> None:
    config, _ = parse_pretrain(["--config", "digits", "--vitmae", "parameters"])
    assert config.vitmae == "parameters"
    config, _ = parse_pretrain(["--config", "digits"])
    assert config.vitmae is None


def test_what_a_twin_cannot_do_is_refused_before_work(tmp_path: Path) -> None:
    config = small_config(vitmae="configuration")
    pretrain(small_config(), tmp_path / "crate", stop_after=1)
    with pytest.raises(ValueError, match="leave --init-from out"):
        pretrain(config, tmp_path / "a", init_from=tmp_path / "crate")
    with pytest.raises(ValueError, match=r"visible-only encoding \(vitmae\)"):
        small_config(vitmae="configuration", masking=Masking(ratio=0.5, ratio_max=0.8))
    assert not (tmp_path / "a").exists()


def test_verbs_for_our_own_layers_say_what_the_weights_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(small_config(vitmae="configuration"), tmp_path / "twin", stop_after=1)
    out = str(tmp_path / "picture.png")
    twin = str(tmp_path / "twin")
    assert main(["analyze", twin, "digits", "--out", str(tmp_path / "analysis")]) == 1
    assert "a model of type 'vit_mae'" in capsys.readouterr().err
    assert main(["reconstruct", twin, "digits", "--limit", "2", "--out", out]) == 0
    assert Path(out).exists()


def test_recomputed_layers_train_the_same_weights(tmp_path: Path) -> None:

    plain = small_config()
    again = replace(plain, trainer=replace(plain.trainer, recompute=True))
    pretrain(plain, tmp_path / "plain")
    pretrain(again, tmp_path / "again")
    assert_same_run(tmp_path / "plain", tmp_path / "again")


def test_layers_are_recomputed_when_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def noted(plain: Callable[[Any], None]) -> Callable[[Any], None]:
        def recompute_layers(self: Any) -> None:
            asked.append(self)
            plain(self)

        return recompute_layers

    for kind in (CrateMAE, CrateClassifier, ViTMAE):
        monkeypatch.setattr(kind, "recompute_layers", noted(kind.recompute_layers))
    hardware = replace(small_config().trainer, recompute=True)
    pretrain(small_config(trainer=hardware), tmp_path / "a", stop_after=1)
    pretrain(small_config(trainer=hardware, vitmae="parameters"), tmp_path / "b", stop_after=1)
    finetune(small_finetune(trainer=hardware), tmp_path / "c", stop_after=1)
    assert [type(model) for model in asked] == [CrateMAE, ViTMAE, CrateClassifier]
    assert asked[0].encoder.layers.recompute
    assert asked[0].decoder.recompute
    layers = asked[1].model.vit.layers
    assert all(layer.gradient_checkpointing for layer in layers)


# -- supervised -------------------------------------------------------------------------------


def test_fine_tuning_takes_a_twins_weights(tmp_path: Path) -> None:
    pretrain(small_config(vitmae="configuration"), tmp_path / "twin")
    config = replace(
        small_finetune(model=None), weights=str(tmp_path / "twin"), optim=WITHOUT_DROP_PATH
    )
    summary = finetune(config, tmp_path / "tuned")
    assert summary.finished
    assert 0 <= summary.metrics["test/accuracy"] <= 1
    classifier = loaded_classifier(tmp_path / "tuned" / "weights")
    average = final_state(tmp_path / "tuned")
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, average[f"average.module.{key}"])
    assert not any(key.startswith("vitmae.model.decoder") for key in classifier.state_dict())
    # What came out is measured, and goes on being trained, like any other classifier.
    loaded, _ = load_backbone(tmp_path / "tuned")
    assert isinstance(loaded, ViTClassifier)
    again = replace(config, weights=str(tmp_path / "tuned"))
    finetune(again, tmp_path / "again", stop_after=1)


def test_a_stopped_supervised_twin_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = small_finetune(vitmae="parameters", optim=WITHOUT_DROP_PATH)
    finetune(config, tmp_path / "whole")
    assert not finetune(config, tmp_path / "parts", stop_after=4).finished
    assert finetune(config, tmp_path / "parts", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@torch.no_grad()
def test_scores_are_the_head_on_pooled_tokens(tmp_path: Path) -> None:
    for pool in get_args(Pool):
        made = ViTClassifier(MODEL, num_classes=3, pool=pool, class_names=("a", "b", "c")).eval()
        images = torch.rand(2, 1, 8, 8)
        tokens = made.vitmae.encode(images)
        spread = [
            torch.cat([each[:, 1:].mean(dim=1), each[:, 1:].std(dim=1, correction=0)], dim=1)
            for each in made.layer_tokens(images, [1, None]).values()
        ]
        row = {
            "cls": tokens[:, 0], "mean": tokens[:, 1:].mean(dim=1), "mean-all": tokens.mean(dim=1),
            "mean-std": spread[-1], "layers": torch.cat(spread, dim=1),
        }[pool]  # fmt: skip
        expected = row @ made.head.weight.T + made.head.bias
        torch.testing.assert_close(made(images), expected)
        save_vit_classifier(made, tmp_path / pool)
        loaded = loaded_classifier(tmp_path / pool)
        assert torch.equal(loaded(images), made(images))
        assert (loaded.pool, loaded.class_names) == (pool, ("a", "b", "c"))


def test_learning_rates_of_a_twin_fall_layer_by_layer() -> None:
    made = ViTClassifier(replace(MODEL, depth=2), num_classes=2)
    shares = {
        name: layer_decay_share(name, decay=0.5, depth=2)
        for name, parameter in made.named_parameters()
        if parameter.requires_grad
    }
    assert {v for k, v in shares.items() if ".embeddings." in k} == {0.5**3}
    assert {v for k, v in shares.items() if ".layers.0." in k} == {0.5**2}
    assert {v for k, v in shares.items() if ".layers.1." in k} == {0.5}
    assert {v for k, v in shares.items() if "vit.layernorm" in k or "head" in k} == {1.0}


def test_what_a_supervised_twin_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stochastic depth"):
        small_finetune(vitmae="configuration")
    pretrain(small_config(), tmp_path / "crate", stop_after=1)
    config = replace(
        small_finetune(model=None, optim=WITHOUT_DROP_PATH),
        weights=str(tmp_path / "crate"),
        vitmae="configuration",
    )
    with pytest.raises(ValueError, match="holds no ViT-MAE"):
        finetune(config, tmp_path / "a")
    pretrain(small_config(vitmae="configuration"), tmp_path / "twin", stop_after=1)
    other_size = replace(config, weights=str(tmp_path / "twin"), image_size=16)
    with pytest.raises(ValueError, match="--image_size null"):
        finetune(other_size, tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        {"intermediate_size": 24},
        {"layer_norm_eps": 1e-12},
        {"hidden_act": "relu"},
        {"qkv_bias": False},
    ],
)
def test_a_vit_mae_that_computes_otherwise_is_not_fine_tuned(change: dict[str, Any]) -> None:
    settings = vitmae_config(MODEL)
    other = settings.__class__(**{**settings.to_dict(), **change})
    model = build_vitmae(other, preprocess=Preprocess.identity(MODEL), seed=0)
    with pytest.raises(ValueError, match=next(iter(change))):
        ViTClassifier.from_pretrained(model, num_classes=2)


@torch.no_grad()
def test_a_classifier_begins_with_the_encoder_it_comes_from() -> None:
    twin = build_vitmae(vitmae_config(MODEL), preprocess=Preprocess.identity(MODEL), seed=3)
    images = torch.rand(2, 1, 8, 8)
    made = ViTClassifier.from_pretrained(twin, num_classes=2).eval()
    assert torch.equal(made.encode(images), twin.encode(images))
    assert torch.equal(
        ViTClassifier.from_pretrained(made, num_classes=3).eval().encode(images),
        twin.encode(images),
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda values: values.pop("classifier"), "damaged"),
        (lambda values: values.update(match="nothing"), "match must be one of"),
        (lambda values: values["config"].update(depth=7), "cannot fill 7 layers of width 16"),
        (lambda values: values["config"].update(dim=8192), "cannot fill 1 layers of width 8192"),
        (lambda values: values["config"].update(channels=2), "re-shaped|fit"),
        (lambda values: values.update(model_type="other"), "model of kind 'other'"),
    ],
)
def test_damaged_folders_of_a_supervised_twin_are_refused(
    damage: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    save_vit_classifier(ViTClassifier(MODEL, num_classes=2), tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError), match=message):
        loaded_classifier(tmp_path / "a")
