"""The grammar of the command line: one meaning for each option, and what wrong ones are told."""

import argparse
import json
import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser as SettingsBase
from model_cases import digits_model

from crate_mae import save_model
from crate_mae.cli import CHAPTERS, VERBS, main
from crate_mae.cli.options import Names, Numbered, PassedLayers
from crate_mae.training.config import FinetuneConfig, PretrainConfig

SETTINGS = {field.name for config in (PretrainConfig, FinetuneConfig) for field in fields(config)}


def actions() -> Iterator[tuple[str, str, argparse.Action]]:
    """(verb, option, action) of every long option of every verb."""
    for verb, (_, parser, _) in VERBS.items():
        for action in parser()._actions:
            for option in action.option_strings:
                if option.startswith("--"):
                    yield verb, option, action


OPTIONS = list(actions())


def is_setting(verb: str, option: str) -> bool:
    """Whether it is a key of a recipe, such as --data.split or --image_size."""
    return verb in ("pretrain", "finetune") and option[2:].partition(".")[0] in SETTINGS


def kind(action: argparse.Action) -> tuple[str, str, object]:
    """What an option takes: how it is read, how it is kept, how many words."""
    if action.nargs == 0:
        return "switch", "", 0
    reads = getattr(action, "_typehint", action.type) or str
    name = getattr(reads, "__name__", type(reads).__name__)
    kept = "append" if type(action).__name__ == "_AppendAction" else "store"
    return name, kept, action.nargs


def test_the_walk_sees_every_verb_and_many_options() -> None:
    assert {verb for verb, _, _ in OPTIONS} == set(VERBS)
    assert len({option for _, option, _ in OPTIONS}) > 100
    kinds = {option: kind(action) for _, option, action in OPTIONS}
    assert kinds["--no-baselines"] == ("switch", "", 0)
    assert kinds["--after"] == ("PassedLayers", "store", None)
    assert kinds["--limit"] == kinds["--stop-after"] == ("int", "store", None)
    assert kinds["--compare"][1] == "append"
    assert kinds["--mask-ratio"] == ("float", "store", "+")


def test_an_option_has_one_meaning_in_all_verbs() -> None:
    meanings: dict[str, dict[tuple[str, str, object], list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for verb, option, action in OPTIONS:
        if not is_setting(verb, option):
            meanings[option][kind(action)].append(verb)
    different = {option: dict(found) for option, found in meanings.items() if len(found) > 1}
    assert not different


def test_a_limit_is_a_count_and_json_a_file_everywhere() -> None:
    for verb, option, action in OPTIONS:
        if option in ("--limit", "--test-limit"):
            assert kind(action) == ("int", "store", None), verb
        if option == "--json":
            assert (kind(action), action.metavar) == (("str", "store", None), "FILE"), verb
        if option == "--out":
            assert action.metavar in ("FILE", "FOLDER"), verb
    assert sum(option == "--json" for _, option, _ in OPTIONS) >= 7


def test_plain_options_have_hyphens_and_settings_are_keys() -> None:
    for verb, option, _ in OPTIONS:
        if is_setting(verb, option):
            assert "-" not in option[2:], (verb, option)
        else:
            assert "_" not in option, (verb, option)
            assert "." not in option, (verb, option)


def test_every_option_that_takes_a_value_says_which() -> None:
    for verb, option, action in OPTIONS:
        if is_setting(verb, option) or action.nargs == 0 or option == "--print-config":
            continue
        assert action.help, (verb, option)
        assert action.metavar or action.choices, (verb, option)


def test_defaults_stand_in_the_help() -> None:
    for verb, option, action in OPTIONS:
        number = isinstance(action.default, int | float) and not isinstance(action.default, bool)
        if number and not is_setting(verb, option):
            shown = f"{action.default:g}"
            assert action.help is not None
            assert shown in action.help, (verb, option)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_no_verb_takes_abbreviations(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = VERBS[verb].parser()
    assert not parser.allow_abbrev
    names = [option for found, option, _ in OPTIONS if found == verb]
    short = next(name[:-2] for name in names if name[:-2] not in names)
    first = ["digits"] if verb == "plan" else []
    with pytest.raises(SystemExit) as left:
        main([verb, *first, short, "1"])
    assert left.value.code == 2
    assert short in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("data digits --data-split test", "--split"),
        ("reconstruct W digits --data-split=test --out x.png", "--split"),
        ("probe W digits --layers all", "--after"),
        ("extract W digits --layer 1 --out x.npz", "--after"),
        ("pca W digits --layer 1", "--after"),
        ("attention W digits --layer 1", "--layers"),
        ("attention W digits --size 16", "--image-size"),
        ("segment W digits --head 1", "--heads"),
        ("analyze W digits --no-compare", "--no-baselines"),
        ("knn W digits --no-baseline", "--no-baselines"),
        ("probe W digits --batch-size 8", "--sgd-batch-size"),
        ("push W --to-folder mine", "--out"),
        ("info W --jsn -", "--json"),
        ("plan digits --no-mesure", "--no-measure"),
        ("plan digits --data-split train", "--data.split"),
        ("plan digits --optim.epoch 4", "--optim.epochs"),
        ("pretrain --config digits --data-split train", "--data.split"),
        ("pretrain --config digits --epochs 4", "--optim.epochs"),
        ("finetune cifar10-small --image-size 16", "--image_size"),
        ("finetune cifar10-small --from-scrtch tiny", "--from-scratch"),
    ],
)
def test_a_wrong_option_names_the_right_one(
    line: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(shlex.split(line))
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert f"(did you mean '{meant}'?)" in printed.err
    assert len(printed.err.splitlines()) <= 2
    assert not printed.out


def test_an_option_far_from_all_others_gets_no_guess(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "digits", "--xyzzy"])
    assert capsys.readouterr().err.splitlines() == [
        "error: there is no option --xyzzy",
        "       crate-mae data --help lists every option",
    ]


def test_a_known_option_in_a_message_is_not_corrected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "--config", "digits", "--resume", "nowhere", "--out", "elsewhere"])
    err = capsys.readouterr().err
    assert "leave --out out" in err
    assert "did you mean" not in err


def test_the_overview_lists_verbs_by_chapter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for chapter, verbs in CHAPTERS.items():
        start = lines.index(chapter)
        block = lines[start + 1 : start + 1 + len(verbs)]
        assert [line.split()[0] for line in block] == list(verbs)
        module = f"crate_mae.cli.{chapter}"
        assert {verb.run.__module__ for verb in verbs.values()} == {module}


def test_parsers_of_training_are_of_the_library_for_settings() -> None:
    assert isinstance(VERBS["pretrain"].parser(), SettingsBase)
    assert isinstance(VERBS["finetune"].parser(), SettingsBase)


@pytest.mark.parametrize(
    ("text", "several", "found"),
    [
        ("0", False, (0,)),
        ("final", False, (None,)),
        ("0,2,final", True, (0, 2, None)),
        ("all", True, "all"),
    ],
)
def test_layers_passed(text: str, several: bool, found: object) -> None:
    assert PassedLayers(several=several)(text) == found


@pytest.mark.parametrize(
    ("text", "several"),
    [("-1", True), ("last", True), ("1,", True), ("all", False), ("0,1", False)],
)
def test_what_is_no_number_of_layers_passed(text: str, several: bool) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        PassedLayers(several=several)(text)


def test_layers_themselves_and_words() -> None:
    assert Numbered(several=True)("0,-1") == (0, -1)
    assert Numbered(several=True)("all") is None
    assert Numbered(several=False)("-2") == (-2,)
    for text, several in (("all", False), ("1,2", False), ("--1", True), ("", True)):
        with pytest.raises(argparse.ArgumentTypeError):
            Numbered(several=several)(text)
    assert Names(("cls", "mean"), several=True)("mean,cls,mean") == ("mean", "cls")
    for text in ("mean,cls", "max", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            Names(("cls", "mean"), several=False)(text)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(digits_model(), tmp_path_factory.mktemp("options") / "weights")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("info W", "sha256"),
        ("doctor", "packages"),
        ("data digits --limit 20", "count"),
        ("knn W digits --limit 60 --test-limit 20 --no-baselines", "rows"),
        ("segment W digits --limit 2 --out OUT", "weights_sha256"),
        ("plan digits --no-measure", "tokens"),
    ],
)
def test_json_goes_into_a_new_file_or_alone_to_standard_output(
    line: str, key: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = shlex.split(line.replace("W", str(weights)).replace("OUT", str(tmp_path / "a.png")))
    again = ["--overwrite"] if "segment" in line else []
    target = tmp_path / "facts.json"
    assert main([*argv, "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {target}" in printed
    facts = json.loads(target.read_text("utf-8"))
    assert key in facts
    assert main([*argv, *again, "--json", "-"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone.keys() == facts.keys()
    before = target.read_bytes()
    assert main([*argv, *again, "--json", str(target)]) == 1
    assert "not overwritten" in capsys.readouterr().err
    assert target.read_bytes() == before


def test_one_place_in_all_verbs(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.png"
    line = f"map {weights} digits --limit 20 --method pca --after 1 --out {out}"
    assert main(shlex.split(line)) == 0
    few = f"{weights} digits --limit 60 --test-limit 20 --no-baselines --json -"
    capsys.readouterr()
    assert main(shlex.split(f"knn {few} --after 1,final")) == 0
    assert [row["layer"] for row in json.loads(capsys.readouterr().out)["rows"]] == [1, None]
    first = tmp_path / "first.npz"
    last = tmp_path / "last.npz"
    for target, place in ((first, "0"), (last, "final")):
        line = f"extract {weights} digits --limit 5 --after {place} --out {target}"
        assert main(shlex.split(line)) == 0
    assert first.read_bytes() != last.read_bytes()
