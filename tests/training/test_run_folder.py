"""A run folder has one writer, is swept, and can be started again before it was a run."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE
from training_runs import command_line, small_config, wait_for_lines, write_recipe

from crate_mae.cli import main
from crate_mae.common.folder_lock import LOCK, FolderInUseError, is_unborn
from crate_mae.common.litter import beside
from crate_mae.training.config import OptimConfig
from crate_mae.training.pretrain import pretrain

ENDLESS = small_config(optim=OptimConfig(epochs=5000, batch_size=32, base_lr=1e-2, warmup_epochs=1))


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait(PATIENCE)
    return done.pid


def test_a_living_run_is_told_of_and_refused_to_others_until_it_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    recipe = write_recipe(ENDLESS, tmp_path / "recipe.yaml")
    run = command_line("pretrain", "--config", recipe, "--out", folder)
    try:
        wait_for_lines(run, folder, 6)
        with pytest.raises(FolderInUseError, match=f"being written by process {run.pid} on "):
            pretrain(ENDLESS, folder, resume=True, stop_after=1)
        main(["info", str(folder)])
        assert f"being written by process {run.pid} on " in capsys.readouterr().out
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    main(["info", str(folder)])
    assert f"left behind by process {run.pid}" in capsys.readouterr().out
    litter = folder / beside(folder / "x").name.replace(f".{os.getpid()}.", f".{run.pid}.")
    litter.write_text("half")
    assert not pretrain(ENDLESS, folder, resume=True, stop_after=1).finished
    assert not litter.exists()
    assert not (folder / LOCK).exists()
    steps = [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    trained = [step for step in steps if steps.count(step) > 2]
    assert trained == [], "no step stands there more often than its records"


def test_a_folder_killed_before_its_settings_starts_again_with_the_same_words(
    tmp_path: Path,
) -> None:
    """Everything that is written before config.yaml, as kill -9 may leave it."""
    folder = tmp_path / "run"
    folder.mkdir()
    about = {"host": socket.gethostname(), "pid": dead_process(), "since": "x"}
    (folder / LOCK).write_text(json.dumps(about))
    (folder / "log.txt").write_text("begun\n")
    (folder / "command.txt").write_text("crate-mae pretrain\n")
    assert is_unborn(folder)
    with pytest.raises(FileNotFoundError, match=r"is no run folder.*start it again with the words"):
        pretrain(small_config(), folder, resume=True)
    assert pretrain(small_config(), folder, stop_after=1).step == 1
    assert (folder / "log.txt").read_text().startswith("begun\n")


@pytest.mark.parametrize("name", ["notes.txt", "log.txt", "command.txt", "config.yaml"])
def test_a_folder_with_files_of_somebody_is_never_taken(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(FileExistsError, match="never overwritten"):
        pretrain(small_config(), folder)
    assert [path.name for path in folder.iterdir()] == [name]


def test_home_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = write_recipe(small_config(), tmp_path / "recipe.yaml")
    words = ["pretrain", "--config", str(recipe), "--out=~/runs/x", "--stop-after", "1"]
    assert main(words) == 143
    assert (tmp_path / "runs" / "x" / "config.yaml").is_file()


def test_a_stop_on_purpose_is_no_failure_to_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    recipe = write_recipe(small_config(), tmp_path / "recipe.yaml")
    words = ["pretrain", "--config", str(recipe), "--out", str(tmp_path / "run")]
    assert main([*words, "--stop-after", "1"]) == 0


def test_yaml_that_explodes_is_refused_by_every_door(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    bomb = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *lines, "name: x\n"])
    recipe = tmp_path / "bomb.yaml"
    recipe.write_text(bomb)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(bomb)
    for words in (
        ["pretrain", "--config", str(recipe)],
        ["pretrain", f"--config={recipe}"],
        ["finetune", "--config", str(recipe)],
        ["pretrain", "--model", str(recipe)],
        ["pretrain", "--resume", str(tmp_path / "run")],
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert "aliases" in capsys.readouterr().err, words
    for words in (["plan", str(recipe)], ["report", str(tmp_path / "run")]):
        assert main(words) == 1
        assert "aliases" in capsys.readouterr().err, words
