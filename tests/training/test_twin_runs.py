"""Runs that train a ViT-MAE twin: the same data, masks, schedule, records and resume."""

from dataclasses import replace
from pathlib import Path

import pytest
from runs import MODEL, assert_same_run, records, small_config

from crate_mae.cli import main
from crate_mae.data.batches import Masking
from crate_mae.evaluation.backbones import load_backbone, load_completer
from crate_mae.evaluation.vitmae import Match, ViTMAE
from crate_mae.models.cost import model_cost, parameter_count
from crate_mae.training.optim import decayed_names
from crate_mae.training.parse import parse_pretrain
from crate_mae.training.run import pretrain


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
    assert isinstance(load_completer(tmp_path / "twin"), ViTMAE)


def test_a_twin_sees_the_masks_and_images_of_the_model_it_is_compared_with(tmp_path: Path) -> None:
    pretrain(small_config(), tmp_path / "crate")
    pretrain(small_config(vitmae="configuration"), tmp_path / "twin")
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


def test_fixed_positions_and_tokens_are_not_decayed(tmp_path: Path) -> None:
    pretrain(small_config(vitmae="configuration"), tmp_path / "twin", stop_after=1)
    model, _ = load_backbone(tmp_path / "twin")
    names = decayed_names(model)
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
    assert "a vit_mae of transformers" in capsys.readouterr().err
    assert main(["reconstruct", twin, "digits", "--limit", "2", "--out", out]) == 0
    assert Path(out).exists()


def test_recomputed_layers_train_the_same_weights(tmp_path: Path) -> None:

    plain = small_config()
    again = replace(plain, trainer=replace(plain.trainer, recompute=True))
    pretrain(plain, tmp_path / "plain")
    pretrain(again, tmp_path / "again")
    assert_same_run(tmp_path / "plain", tmp_path / "again")
