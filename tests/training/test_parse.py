"""Words and recipes as settings: none is lost, and what is no YAML is text or an error."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from data_cases import MODEL

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.training.config import FinetuneConfig, PretrainConfig
from crate_mae.training.parse import parse_finetune, parse_pretrain
from crate_mae.weights.shipped import SHIPPED
from crate_mae.weights.weights_folder import load_model, save_model


@pytest.mark.parametrize("text", ["[abc", "a: b: c", "@image", "{x", "*star"])
def test_text_that_is_no_yaml_stays_text(text: str) -> None:
    config, options = parse_pretrain(["--data.source", f"imagefolder:/d/{text}", "--out", text])
    assert config.data.source == f"imagefolder:/d/{text}"
    assert options["out"] == text
    config, _ = parse_pretrain(["--data.image_key", text])
    assert config.data.image_key == text


@pytest.mark.parametrize("words", [["--model.image_size", "[32,"], ["--optim.betas", "[0.9,"]])
def test_lists_that_are_cut_are_refused_by_name(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parse_pretrain(words)
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f'error: Parser key "{words[0][2:]}"')
    assert "pretrain --help" in told.splitlines()[-1]


def test_from_scratch_takes_the_architecture_of_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(CrateMAE(MODEL), tmp_path / "weights")
    config, _ = parse_finetune(["--from-scratch", str(tmp_path / "weights")])
    assert (config.model, config.weights) == (MODEL, None)
    for name in SHIPPED:
        config, _ = parse_finetune(["--from-scratch", name, "--model.sparsity", "0.1"])
        assert config.model is not None
        shipped = load_model(name).config.to_dict()
        assert config.model.to_dict() == {**shipped, "sparsity": 0.1}
    (tmp_path / "weights" / "config.json").write_text('{"model": "CrateMAE"}')
    with pytest.raises(SystemExit):
        parse_finetune(["--from-scratch", str(tmp_path / "weights")])
    assert "says no architecture of ours: name a run, or a preset" in capsys.readouterr().err


FINETUNE = {
    "name": "other", "seed": 3, "task": "segment", "weights": "mine", "vitmae": "configuration",
    "image_size": 16, "pool": "cls", "new_head": True, "head_start": "probe", "evaluate": "best",
}  # fmt: skip
PRETRAIN = {"name": "other", "seed": 3, "vitmae": "parameters", "method": "simdino"}
OTHERS = {"task": ["--segment.masks", "masks"], "evaluate": ["--data.val_share", "0.2"]}
"""What a value needs beside it."""


@pytest.mark.parametrize(("name", "value"), FINETUNE.items())
def test_settings_of_fine_tuning_survive_words_and_recipes(
    name: str, value: object, tmp_path: Path
) -> None:
    words = [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    start = [] if name == "weights" else ["--from-scratch", "debug"]
    found, _ = parse_finetune([*start, *words, *OTHERS.get(name, [])])
    assert getattr(found, name) == value != getattr(FinetuneConfig(), name)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(found.to_dict()))
    again, _ = parse_finetune(["--config", str(tmp_path / "recipe.yaml")])
    assert again == found


@pytest.mark.parametrize(("name", "value"), PRETRAIN.items())
def test_settings_of_pre_training_survive_words_and_recipes(
    name: str, value: object, tmp_path: Path
) -> None:
    found, _ = parse_pretrain([f"--{name}", str(value)])
    assert getattr(found, name) == value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(found.to_dict()))
    again, _ = parse_pretrain(["--config", str(tmp_path / "recipe.yaml")])
    assert again == found


@pytest.mark.parametrize(
    ("kind", "tested"), [(FinetuneConfig, FINETUNE), (PretrainConfig, PRETRAIN)]
)
def test_no_setting_outside_the_sections_is_left_out(kind: type, tested: dict[str, object]) -> None:
    sections = {
        "model",
        "data",
        "masking",
        "objective",
        "simdino",
        "segment",
        "optim",
        "trainer",
        "record",
    }
    assert {field.name for field in fields(kind)} - sections == set(tested)


def test_what_a_recipe_says_is_taken() -> None:
    config, _ = parse_finetune(["photos64", "--config", "finetune-few-labels"])
    assert (config.pool, config.optim.batch_size, config.data.augment.min_scale) == (
        "layers",
        8,
        0.5,
    )
