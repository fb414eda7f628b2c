"""Cheap errors come before heavy imports: what is told, and that nothing was loaded for it."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import small_config, write_recipe

from crate_mae.cli import main
from crate_mae.cli.early import check_run_folder, check_run_words, check_words

HEAVY = ("torch", "lightning", "matplotlib", "numpy", "jsonargparse")
CODE = f"""
import sys
from crate_mae.cli import main
statuses = []
for words in {{calls!r}}:
    try:
        statuses.append(main(words))
    except SystemExit as left:
        statuses.append(left.code)
print(statuses, [name for name in {HEAVY!r} if name in sys.modules])
"""


def test_nothing_heavy_is_imported_to_say_that_something_exists_or_does_not(
    tmp_path: Path,
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    (tmp_path / "there.png").touch()
    there, missing = str(tmp_path / "there.png"), f"imagefolder:{tmp_path / 'missing'}"
    calls = [
        ["pretrain", "--config", "digits", "--out", str(full)],
        ["pretrain", "--data.source", missing],
        ["pretrain", "--resume", str(full)],
        ["pretrain", "--init-from", "nowhere"],
        ["finetune", "nowhere", "--config", "finetune-mae"],
        ["finetune", "--from-scratch", "tiny", f"--out={full}"],
        ["probe", "nowhere", "digits"],
        ["knn", "cifar10-small", missing],
        ["probe", "cifar10-small", "digits", "--json", there],
        ["extract", "nowhere", "digits", "--out", "a.npz"],
        ["extract", "cifar10-small", "digits", "--shard", "0/2", "--out", "a.npz"],
        ["extract", "cifar10-small", "digits", "--out", "a.gif"],
        ["merge", str(full), "--out", "a.npz"],
        ["map", "cifar10-small", "digits", "--out", there],
        ["neighbours", "cifar10-small", missing, "--out", "new.png"],
        ["reconstruct", "cifar10-small", "digits", "--out", there],
        ["attention", "nowhere", "digits", "--out", "new.png"],
        ["pca", "cifar10-small", missing, "--out", "new.png"],
        ["segment", "cifar10-small", "digits", "--out", "new.gif"],
        ["data", missing],
        ["analyze", "cifar10-small", "digits", "--out", str(full)],
        ["theory", "--out", str(full)],
        ["compare", str(full), str(full)],
    ]
    code = CODE.format(calls=calls)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    expected = [1] * len(calls)
    expected[2] = 2
    assert done.stdout.strip() == f"{expected} []"
    told = done.stderr.splitlines()
    assert len([line for line in told if line.startswith("error: ")]) == len(calls)
    for text in (
        "never overwritten",
        "no file or folder",
        "no run folder",
        "no weights at nowhere",
    ):
        assert text in done.stderr
    assert [item.name for item in full.iterdir()] == ["notes.txt"]


def test_other_processes_of_a_run_find_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(FileExistsError, match="--resume"):
        check_run_folder(str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_run_folder(str(tmp_path))


def test_a_run_killed_before_its_settings_starts_again_with_the_same_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = write_recipe(small_config(), tmp_path / "recipe.yaml")
    words = ["pretrain", "--config", str(recipe), f"--out={folder}", "--stop-after", "1"]
    (folder / "log.txt").write_text("begun\n")
    assert main(words) == 1, "a log alone may be anybody's"
    (folder / "run.lock").write_text("")
    (folder / "command.txt").write_text("crate-mae pretrain\n")
    (folder / ".config.yaml.01234567.1.partial").write_text("half")
    with pytest.raises(SystemExit):
        main(["pretrain", f"--resume={folder}"])
    assert "start it again with the words" in capsys.readouterr().err
    assert main(words) == 143
    assert (folder / "log.txt").read_text().startswith("begun\n")
    assert main(words) == 1, "now it is a run"


def test_a_tilde_is_the_home_folder_wherever_a_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    write_recipe(small_config(), home / "recipe.yaml")
    assert main(["pretrain", "--config=~/recipe.yaml", "--out=~/run", "--stop-after=1"]) == 143
    assert main(["pretrain", "--config=~/recipe.yaml", "--out=~/run"]) == 1
    assert f"{home / 'run'} exists and is never overwritten" in capsys.readouterr().err
    assert main(["plan", "~/recipe.yaml", "--out=~/run", "--no-measure"]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["plan", "~/run", "--no-measure"]) == 0
    assert main(["pretrain", "--resume=~/run"]) == 0
    assert main(["info", "~/run"]) == 0
    assert main(["compare", "~/run", "~/run", "--out=~/both.svg"]) == 0
    assert main(["analyze", "~/run", "digits", "--limit=8", "--out=~/analysis"]) == 0
    assert main(["convert", "~/run", "--to-reference=~/published.pth"]) == 0
    facts = ["--num-heads=2", "--sparsity=0.5", "--no-norm-pix-loss"]
    assert main(["convert", "~/published.pth", "--out=~/converted", *facts]) == 0
    assert main(["push", "~/converted", "--out=~/card"]) == 0
    assert {"both.svg", "analysis", "converted", "card"} <= {path.name for path in home.iterdir()}
    assert not list(elsewhere.iterdir())


def test_what_is_there_is_let_through(tmp_path: Path) -> None:
    check_run_words("finetune", ["cifar10-small", "--out", str(tmp_path / "new")])
    check_run_words("pretrain", ["--init-from", "owner/name", "--data.source", "digits"])
    check_run_words("pretrain", ["--data.source", "hf:owner/name"])
    given = argparse.Namespace(weights=str(tmp_path), images=["a.png"], out=str(tmp_path / "a.svg"))
    check_words(given, picture=True)
