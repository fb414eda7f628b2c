"""Words and recipes as settings: none is lost, and what is no YAML is text or an error."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from data_cases import MODEL
from training_runs import small_finetune

from crate_mae.evaluation.backbones import load_backbone
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import Preprocess
from crate_mae.training.config import FinetuneConfig, PretrainConfig
from crate_mae.training.finetune import finetune
from crate_mae.training.parse import parse_finetune, parse_pretrain
from crate_mae.vitmae.model import build_vitmae, vitmae_config
from crate_mae.vitmae.vitmae_folder import save_vitmae
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


def vitmae_folder(folder: Path) -> tuple[Path, dict[str, tuple[int, ...]]]:
    """A ViT-MAE in transformers' format, and the shapes of its encoder as transformers names it."""
    sizes = vitmae_config(replace(MODEL, dim=24, depth=3, num_heads=3, decoder_num_heads=2))
    narrow = {"decoder_hidden_size": 8, "decoder_intermediate_size": 20}
    made = build_vitmae(
        type(sizes)(**{**sizes.to_dict(), **narrow}), preprocess=Preprocess.identity(MODEL), seed=0
    )
    shapes = {key: tuple(value.shape) for key, value in made.model.vit.state_dict().items()}
    return save_vitmae(made, folder), shapes


def test_from_scratch_trains_the_vit_of_a_transformers_folder(tmp_path: Path) -> None:
    """Of its own encoder's names and shapes, with weights of its own; its decoder has no part."""
    folder, shapes = vitmae_folder(tmp_path / "vit")
    config, _ = parse_finetune(["--from-scratch", str(folder)])
    assert config.model is not None
    assert (config.weights, config.vitmae, config.model.dim) == (None, "configuration", 24)
    optim = replace(small_finetune().optim, drop_path=0.0)
    run = small_finetune(model=config.model, vitmae=config.vitmae, optim=optim)
    finetune(run, tmp_path / "run", stop_after=1)
    trained, _ = load_backbone(tmp_path / "run")
    found = {key: tuple(value.shape) for key, value in trained.named_parameters()}
    head = {"head.weight": (10, 24), "head.bias": (10,)}
    assert found == {**{f"vitmae.model.vit.{key}": shape for key, shape in shapes.items()}, **head}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_norm_eps": 1e-12}, "differs in layer_norm_eps 1e-12 (not 1e-06)"),
        ({"hidden_act": "relu"}, "differs in hidden_act 'relu' (not 'gelu')"),
        ({"hidden_size": 23}, "config.json: invalid model configuration: dim 23"),
        ({"image_size": [8, 16]}, "config.json: transformers' ViT-MAE needs square images"),
        ({"model_type": "vit"}, "says no architecture of ours: name a run, or a preset"),
    ],
)
def test_from_scratch_refuses_a_transformers_folder_that_it_cannot_train(
    change: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = vitmae_folder(tmp_path / "vit")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **change}))
    assert said in refused("finetune", ["--from-scratch", str(folder)], capsys)


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


def refused(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a command line that is refused with status 2."""
    with pytest.raises(SystemExit) as left:
        (parse_pretrain if verb == "pretrain" else parse_finetune)(words)
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("joined", [False, True])
def test_what_is_typed_wins_wherever_the_recipe_stands(joined: bool) -> None:
    recipe = ["--config=digits"] if joined else ["--config", "digits"]
    typed = ["--optim.epochs", "3", "--seed", "5"]
    first, _ = parse_pretrain([*typed, *recipe])
    assert (first.optim.epochs, first.seed) == (3, 5)
    assert first == parse_pretrain([*recipe, *typed])[0]
    second, _ = parse_finetune(["mine", "--optim.epochs", "7", "--config", "finetune-few-labels"])
    assert (second.optim.epochs, second.weights, second.pool) == (7, "mine", "layers")


def test_a_later_recipe_wins_over_an_earlier_one(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"seed: {seed}\n")
    both = ["--config", str(tmp_path / "a.yaml"), f"--config={tmp_path / 'b.yaml'}"]
    assert parse_pretrain(both)[0].seed == 2


@pytest.mark.parametrize("behind", [False, True])
def test_from_scratch_wins_over_the_weights_and_the_model_of_a_recipe(
    behind: bool, tmp_path: Path
) -> None:
    """The control of a fine-tuning run is made with the very settings of that run."""
    save_model(CrateMAE(MODEL), tmp_path / "weights")
    other = {**MODEL.to_dict(), "dim": 2 * MODEL.dim}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"weights": str(tmp_path / "weights"), "model": other}))
    scratch, recipe = ["--from-scratch", str(tmp_path / "weights")], ["--config", str(file)]
    config, _ = parse_finetune([*recipe, *scratch] if behind else [*scratch, *recipe])
    assert config.weights is None
    assert config.model == MODEL


def test_words_that_would_be_ignored_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(CrateMAE(MODEL), tmp_path / "weights")
    file = tmp_path / "r.yaml"
    file.write_text("from_scratch: tiny\n")
    for verb, words, said in (
        ("finetune", ["a", "--weights", "b"], "weights are named twice, a and by --weights"),
        ("finetune", ["a", "--config", str(file)], "a recipe cannot hold from_scratch"),
        (
            "pretrain",
            ["--init-from", str(tmp_path / "weights"), "--model", '{"image_size": 16}'],
            "leave --model out, and type single settings, such as --model.image_size",
        ),
    ):
        assert said in refused(verb, words, capsys)
