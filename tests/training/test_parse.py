"""Words of a command line that are no YAML: text where text is wanted, else an error."""

from pathlib import Path

import pytest
from data_cases import MODEL

from crate_mae.models.autoencoder import CrateMAE
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
