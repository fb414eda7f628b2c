"""A run that was interrupted ends exactly like one that was not."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PATIENCE
from training_runs import (
    assert_same_run,
    command_line,
    final_state,
    killed_at_random,
    records,
    small_config,
    small_finetune,
    wait_for_lines,
    write_recipe,
)

from crate_mae.batches.config import Augment, DataConfig
from crate_mae.cli import main
from crate_mae.training.config import OptimConfig, PretrainConfig, RecordConfig, TrainerConfig
from crate_mae.training.pretrain import pretrain


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(small_config(), folder).finished
    return folder


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 7, 10, 14])
def test_stopping_and_resuming_changes_nothing(whole: Path, tmp_path: Path, steps: int) -> None:
    folder = tmp_path / "run"
    summary = pretrain(small_config(), folder, stop_after=steps)
    assert not summary.finished
    assert summary.step == steps
    sessions = 1
    while not pretrain(small_config(), folder, resume=True, stop_after=steps).finished:
        sessions += 1
        assert sessions < 20
    assert_same_run(whole, folder)


def test_resume_with_accumulation_and_workers(tmp_path: Path) -> None:
    config = small_config(
        optim=OptimConfig(epochs=2, batch_size=32, base_lr=1e-2, warmup_epochs=1),
        trainer=TrainerConfig(accelerator="cpu", devices=1, accumulate=2),
        data=DataConfig(source="digits", limit=200, augment=Augment(padding=1), workers=2),
    )
    assert pretrain(config, tmp_path / "whole").finished
    assert not pretrain(config, tmp_path / "parts", stop_after=7).finished
    assert pretrain(config, tmp_path / "parts", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_accumulation_and_workers_do_not_change_the_samples(whole: Path, tmp_path: Path) -> None:
    config = small_config()
    config = replace(
        config,
        trainer=TrainerConfig(accelerator="cpu", devices=1, accumulate=2),
        data=replace(config.data, workers=2),
    )
    pretrain(config, tmp_path / "run")
    for key, value in final_state(whole).items():
        torch.testing.assert_close(final_state(tmp_path / "run")[key], value, atol=2e-3, rtol=2e-3)


def endless_run() -> PretrainConfig:
    config = small_config()
    return replace(
        config,
        optim=OptimConfig(epochs=5000, batch_size=32, base_lr=1e-2, warmup_epochs=1),
        record=RecordConfig(log_every=1, checkpoint_steps=3, reconstruct_epochs=0),
    )


def test_resume_after_kill_9_at_a_random_step(tmp_path: Path) -> None:
    recipe = write_recipe(endless_run(), tmp_path / "recipe.yaml")
    run = command_line("pretrain", "--config", recipe, "--out", tmp_path / "killed")
    reached = killed_at_random(run, tmp_path / "killed")
    assert reached > 0
    pretrain(endless_run(), tmp_path / "killed", resume=True, stop_after=10)
    pretrain(endless_run(), tmp_path / "whole", stop_after=reached + 10)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_sigterm_saves_first_and_says_how_to_go_on(tmp_path: Path) -> None:
    recipe = write_recipe(endless_run(), tmp_path / "recipe.yaml")
    run = command_line("pretrain", "--config", recipe, "--out", tmp_path / "run")
    wait_for_lines(run, tmp_path / "run", 10)
    run.terminate()
    output, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 143, output
    assert f"--resume {tmp_path / 'run'}" in output
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] >= 10
    steps = [record["step"] for record in records(tmp_path / "run")]
    assert max(steps) == saved["global_step"] - 1
    assert main(["pretrain", "--resume", str(tmp_path / "run"), "--stop-after", "1"]) == 143
    assert max(r["step"] for r in records(tmp_path / "run")) == saved["global_step"]


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        pretrain(small_config(), tmp_path, resume=True)


def test_a_run_that_died_before_it_saved_starts_again(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pretrain(small_config(), folder, stop_after=1)
    for saved in ("checkpoints", "weights", "weights-best"):  # what saving leaves behind
        shutil.rmtree(folder / saved, ignore_errors=True)
    assert pretrain(small_config(), folder, resume=True).finished
    assert_same_run(whole, folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optim": OptimConfig(epochs=3, batch_size=32, base_lr=1.0, warmup_epochs=1)}, "base_lr"),
        ({"trainer": TrainerConfig(accelerator="cpu", devices=1, accumulate=2)}, "accumulate"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"model": replace(small_config().model, dim=32)}, "model.dim: 16 -> 32"),
    ],
)
def test_another_run_cannot_be_resumed_and_nothing_is_touched(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    folder = tmp_path / "run"
    pretrain(small_config(), folder, stop_after=1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"another run: .*{named}"):
        pretrain(small_config(**change), folder, resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_records_and_hardware_may_change_on_resume(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pretrain(small_config(), folder, stop_after=7)
    config = small_config()
    changed = replace(
        config,
        data=replace(config.data, workers=1),
        record=RecordConfig(log_every=1, checkpoint_steps=3, reconstruct_epochs=0),
    )
    assert pretrain(changed, folder, resume=True).finished
    assert_same_run(whole, folder)
    assert "changed since this run began: data.workers: 0 -> 1" in (folder / "log.txt").read_text()


def test_a_data_set_that_lost_images_cannot_be_continued(tmp_path: Path) -> None:
    images = [torch.full((1, 8, 8), index / 50) for index in range(50)]
    small = OptimConfig(epochs=3, batch_size=8, warmup_epochs=1)
    pretrain(small_config(optim=small), tmp_path / "run", dataset=images, stop_after=1)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"given in Python \(dataset:list\), which no setting opens"
    ):
        pretrain(small_config(optim=small), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="45 training images, now there are 44"):
        pretrain(small_config(optim=small), tmp_path / "run", dataset=images[:49], resume=True)  # type: ignore[arg-type]


def test_final_weights_that_cannot_be_written_end_the_run_until_they_are(
    whole: Path, tmp_path: Path
) -> None:
    """A foreign file in the folder: nothing is lost, no older weights pass for the last ones."""
    folder = tmp_path / "run"
    assert not pretrain(small_config(), folder, stop_after=5).finished
    foreign = folder / "weights" / "notes.txt"
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    with pytest.raises(OSError, match=r"final weights could not be written .*notes\.txt"):
        pretrain(small_config(), folder, resume=True)
    assert foreign.read_text() == "mine"
    foreign.unlink()
    assert pretrain(small_config(), folder, resume=True).finished
    assert_same_run(folder, whole)


@pytest.mark.parametrize("content", [b"garbage", b"", None])
def test_a_damaged_checkpoint_is_named(whole: Path, tmp_path: Path, content: bytes | None) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged or no checkpoint of a run"):
        pretrain(small_config(), folder, resume=True)


@pytest.mark.parametrize(("content", "message"), [("", "is no JSON"), ("{}", "it lacks images")])
def test_a_damaged_record_of_the_data_is_named(
    whole: Path, tmp_path: Path, content: str, message: str
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "data.json").write_text(content)
    with pytest.raises(ValueError, match=rf"data\.json .*{message}"):
        pretrain(small_config(), folder, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../elsewhere"}, "cannot be one"),
        ({"name": "/elsewhere"}, "cannot be one"),
        ({"name": ""}, "cannot be one"),
        ({"name": ".."}, "cannot be one"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"seed": 1 << 31}, "seed must be from 0 to"),
    ],
)
def test_names_that_leave_the_folder_of_runs_and_seeds_out_of_range_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**changes)
    with pytest.raises(ValueError, match=message):
        small_finetune(**changes)


@pytest.mark.parametrize("name", ["accumulate", "num_nodes"])
@pytest.mark.parametrize("count", [0, -1])
def test_counts_of_hardware_below_one_are_refused(name: str, count: int) -> None:
    given: dict[str, Any] = {name: count}
    with pytest.raises(ValueError, match=rf"trainer\.{name} must be at least 1, not {count}"):
        TrainerConfig(**given)


def test_a_checkpoint_holds_no_pickled_objects(whole: Path) -> None:
    for checkpoint in (whole / "checkpoints").iterdir():
        torch.load(checkpoint, weights_only=True)
