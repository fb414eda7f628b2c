"""What a resumed run needs is checked part by part, by name, before anything starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import assert_same_run, small_config, small_finetune

from crate_mae import load_model
from crate_mae.training.finetune import finetune
from crate_mae.training.pretrain import pretrain
from crate_mae.training.resuming import check_checkpoint, check_resumable


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after seven of fifteen steps; tests copy it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    pretrain(small_config(), folder, stop_after=7)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(small_config(), folder).finished
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def resumed(run: Path) -> str:
    """Why a run cannot be resumed; nothing in its folder has changed then."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        pretrain(small_config(), run, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    return str(caught.value)


def changed(run: Path, change: Any) -> None:
    """Change the content of the last checkpoint; its checksums are those of the new one."""
    path = run / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


PARTS = ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "loops",
         "callbacks", "ImageDataModule", "random")  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["missing", "empty", "of another kind"])
def test_every_part_of_the_checkpoint_is_missed_by_name(run: Path, part: str, how: str) -> None:
    def change(state: dict[str, Any]) -> None:
        if how == "missing":
            del state[part]
        elif how == "empty":
            state[part] = type(state[part])()
        else:
            state[part] = "text"

    changed(run, change)
    if part == "epoch" and how == "empty":  # zero is an epoch
        return
    path = run / "checkpoints" / "last.ckpt"
    if part == "state_dict" and how == "empty":
        assert check_checkpoint(path) == 7, "which tensors there must be, only the model tells"
        with pytest.raises(ValueError, match="missing"):
            pretrain(small_config(), run, resume=True)
        return
    with pytest.raises(ValueError, match=part) as caught:
        check_checkpoint(path)
    assert "best.ckpt" in str(caught.value), "what to do instead is said"


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("loops", "fit_loop"), {}),
        (("loops", "fit_loop", "epoch_progress"), {}),
        (("loops", "fit_loop", "epoch_loop.batch_progress"), None),
        (("lr_schedulers",), [{}]),
        (("optimizer_states",), [{"state": {}, "param_groups": []}]),
        (("optimizer_states", 0, "state", 3), {"step": torch.tensor(7.0)}),
        (("ImageDataModule", "batches_seen"), 2),
        (("callbacks", "Checkpoints"), {}),
        (("random", "torch"), None),
        (("global_step",), 9),
    ],
)
def test_parts_that_do_not_agree_are_told(run: Path, keys: tuple[Any, ...], value: Any) -> None:
    def change(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        if keys == ("random", "torch"):
            del state["torch"]
        else:
            state[keys[-1]] = value

    changed(run, change)
    named = str(keys[0]).replace("global_step", "loops")
    with pytest.raises(ValueError, match=named):
        check_checkpoint(run / "checkpoints" / "last.ckpt")


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index is of the old file, its tensors are of the new one, as torch opens it twice."""
    path, newer = run / "checkpoints" / "last.ckpt", tmp_path / "newer.ckpt"
    shutil.copy(path, newer)
    step = check_checkpoint(path)
    load, calls = torch.load, []

    def replaced(place: Path, **options: Any) -> Any:
        state = load(place, **options)
        calls.append(place)
        if len(calls) == 1:
            newer.replace(path)
            for entry in state["optimizer_states"][0]["state"].values():
                entry["step"] = entry["step"] + 1
        return state

    monkeypatch.setattr(torch, "load", replaced)
    assert check_checkpoint(path) == step
    assert len(calls) == 2


def test_one_flipped_bit_of_the_checkpoint_is_told(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))
    assert "checksum" in resumed(run)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("checkpoints/last.ckpt", "last.ckpt is missing, though the run has saved before"),
        ("checkpoints", "last.ckpt is missing, though the run has saved before"),
        ("data.json", "data.json is missing"),
        ("config.yaml", "config.yaml"),
    ],
)
def test_what_is_gone_is_named_and_no_run_begins_anew(run: Path, gone: str, told: str) -> None:
    if (run / gone).is_dir():
        shutil.rmtree(run / gone)
    else:
        (run / gone).unlink()
    assert told in resumed(run)


@pytest.mark.parametrize("name", ["data.json", "config.yaml", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"[" * 5000, b"{}", b"a: &a [*a]"])
def test_what_is_damaged_is_named(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    assert Path(name).name in resumed(run)


def test_tensors_of_another_model_are_named(run: Path) -> None:
    changed(run, lambda state: state["state_dict"].pop("model.mask_token"))
    with pytest.raises(ValueError, match=r"missing: model\.mask_token"):
        pretrain(small_config(), run, resume=True)


def test_values_that_are_not_finite_are_named(run: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        state["state_dict"]["model.mask_token"][:] = float("nan")

    changed(run, change)
    with pytest.raises(ValueError, match=r"not finite, in model\.mask_token"):
        pretrain(small_config(), run, resume=True)


def test_damaged_lines_of_the_metrics_are_left_out(run: Path, whole: Path) -> None:
    log = run / "metrics.jsonl"
    damaged = ["5", "null", "[" * 5000, '{"loss": 1}', '{"step": "x"}', '{"step": 3, "a', "\x00"]
    log.write_text(log.read_text("utf-8") + "\n".join(damaged), "utf-8")
    assert pretrain(small_config(), run, resume=True).finished
    assert_same_run(whole, run)


@pytest.mark.parametrize("damage", ["gone", "emptied", "cut"])
def test_weights_of_a_finished_run_are_written_again(
    whole: Path, tmp_path: Path, damage: str
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in ("weights", "weights-best"):
        tensors = run / name / "model.safetensors"
        if damage == "gone":
            shutil.rmtree(run / name)
        else:
            tensors.write_bytes(b"" if damage == "emptied" else tensors.read_bytes()[:-7])
    assert pretrain(small_config(), run, resume=True).finished
    for name in ("weights", "weights-best"):
        first, second = load_model(whole / name), load_model(run / name)
        for key, value in first.state_dict().items():
            assert torch.equal(second.state_dict()[key], value)


def test_weights_of_a_finished_classifier_are_written_again(tmp_path: Path) -> None:
    assert finetune(small_finetune(), tmp_path / "run").finished
    before = load_model(tmp_path / "run" / "weights").state_dict()
    shutil.rmtree(tmp_path / "run" / "weights")
    assert finetune(small_finetune(), tmp_path / "run", resume=True).finished
    after = load_model(tmp_path / "run" / "weights").state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_run_that_never_saved_starts_at_the_beginning(run: Path) -> None:
    for name in ("checkpoints", "weights", "weights-best"):
        shutil.rmtree(run / name, ignore_errors=True)
    assert check_resumable(run) is None


def test_data_that_lie_elsewhere_now_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    config = (run / "config.yaml").read_text().replace("source: digits", "source: npy:small/x.npy")
    (run / "config.yaml").write_text(config)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = small_config()
    moved = type(settings.data)(**{**settings.data.__dict__, "source": "npy:small/x.npy"})
    with pytest.raises(FileNotFoundError) as caught:
        pretrain(small_config(data=moved), run, resume=True)
    told = str(caught.value)
    assert f"in the working directory {tmp_path / 'elsewhere'}" in told
    assert "--data.source npy:/WHOLE/PATH" in told
    assert json.loads((run / "data.json").read_text())["source"] == "digits"
