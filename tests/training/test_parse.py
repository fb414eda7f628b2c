"""Words of a command line that are no YAML: text where text is wanted, else an error."""

import pytest

from crate_mae.training.parse import parse_pretrain


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
