"""Signals: honoured within a batch, also of validation, and nothing is lost by it."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PATIENCE
from training_runs import (
    assert_same_run,
    command_line,
    small_config,
    small_finetune,
    write_recipe,
)

from crate_mae.batches.data_module import ImageDataModule
from crate_mae.training.callbacks import Checkpoints, InterruptedAtOnceError, StopSignals
from crate_mae.training.config import OptimConfig
from crate_mae.training.finetune import finetune
from crate_mae.training.masked_completion import MaskedCompletion
from crate_mae.training.pretrain import pretrain


def long_validation(config: Any) -> Any:
    """The configuration with many small validation batches."""
    optim = replace(config.optim, batch_size=8)
    return replace(config, optim=optim, record=replace(config.record, checkpoint_steps=4))


TRAIN: dict[str, tuple[Any, Any]] = {
    "mae": (pretrain, small_config),
    "head": (finetune, small_finetune),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of a kind that nothing happened to, trained once."""
    folder = tmp_path_factory.mktemp("whole")

    def trained(kind: str) -> Path:
        train, config = TRAIN[kind]
        if not (folder / kind).exists():
            assert train(long_validation(config()), folder / kind).finished
        return folder / kind

    return trained


@pytest.mark.parametrize(
    ("kind", "at"), [("mae", (0, 0)), ("mae", (1, 2)), ("head", (2, 1))], ids=str
)
def test_a_signal_during_validation_is_honoured_within_a_batch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[str], Path],
    kind: str,
    at: tuple[int, int],
) -> None:
    """The signal comes in a validation batch of an epoch; resumed, the run ends as a whole one."""
    train, config = TRAIN[kind]
    settings = long_validation(config())
    seen: list[tuple[int, int]] = []
    end = Checkpoints.on_validation_batch_end

    def signalled(self: Checkpoints, trainer: Any, module: Any, *rest: Any) -> None:
        batch = rest[2]
        seen.append((trainer.current_epoch, batch))
        if seen[-1] == at:
            os.kill(os.getpid(), signal.SIGTERM)
        end(self, trainer, module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_validation_batch_end", signalled)
        summary = train(settings, tmp_path / "run")
    assert not summary.finished
    assert seen[-1] == at
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert step == summary.step, "no step is lost"
    assert train(settings, tmp_path / "run", resume=True).finished
    assert_same_run(whole(kind), tmp_path / "run")


def test_batches_that_every_device_has() -> None:
    """Counted by dealing the images out one by one."""
    for images in range(40):
        for world in (1, 2, 3):
            for batch in (1, 4, 7):
                dealt = [len(range(rank, images, world)) for rank in range(world)]
                wanted = min(-(-count // batch) for count in dealt)
                assert _common(images, world, batch) == wanted


def _common(images: int, world: int, batch: int) -> int:
    class Counted:
        val_source = range(images)
        batch_size = batch

        def _share(self) -> Any:
            return type("Share", (), {"world_size": world})

    common: Any = ImageDataModule.common_validation_batches
    return int(common.fget(Counted()))


def slow_seventh_step(begun: Path) -> None:
    """The seventh step takes for ever, so that no wish can be granted before the next one comes."""
    step = MaskedCompletion.training_step

    def slow(self: MaskedCompletion, *rest: Any) -> Any:
        if self.global_step == 6:
            begun.touch()
            time.sleep(2 * PATIENCE)
        return step(self, *rest)

    module: Any = MaskedCompletion
    module.training_step = slow


def test_the_second_interrupt_ends_at_once_with_130(tmp_path: Path) -> None:
    config = small_config(
        optim=OptimConfig(epochs=5000, batch_size=32, base_lr=1e-2, warmup_epochs=1)
    )
    recipe, folder = write_recipe(config, tmp_path / "recipe.yaml"), tmp_path / "run"
    # Every second step is saved before the next begins: the last checkpoint is that of the sixth.
    begun = tmp_path / "begun"
    run = command_line(
        "pretrain", "--config", recipe, "--out", folder, first=partial(slow_seventh_step, begun)
    )
    try:
        until = time.monotonic() + PATIENCE
        while not begun.exists():
            assert run.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        while "saving after this batch" not in (folder / "log.txt").read_text("utf-8"):
            assert run.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        output, _ = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert run.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6, "the last checkpoint is whole, and none is lost"


def test_the_first_signal_is_a_wish_and_the_second_interrupt_an_end() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wanted
        assert stop.unanswered() is None, "it was heard"
        with pytest.raises(InterruptedAtOnceError):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), StopSignals():
        raise InterruptedAtOnceError


def test_a_signal_that_a_busy_library_keeps_from_being_heard_is_known() -> None:
    """Another thread learns of it while the main thread runs no Python."""
    found: list[Any] = []
    with StopSignals() as stop:

        def look() -> None:
            until = time.monotonic() + PATIENCE
            while not found and time.monotonic() < until:
                if (asked := stop.unanswered()) is not None:
                    found.append(asked)

        looking = threading.Thread(target=look)
        looking.start()
        # The handler runs only between instructions of Python: writing to the pipe stands for a
        # main thread that is inside a library.
        assert stop._pipe is not None
        os.write(stop._pipe[1], bytes([signal.SIGTERM]))
        looking.join(PATIENCE)
        assert not stop.wanted
    assert found[0].number == signal.SIGTERM
    assert found[0].interrupts == 0


def test_a_signal_that_was_heard_is_answered_however_often_it_came() -> None:
    with StopSignals() as stop:
        assert stop._pipe is not None
        os.write(stop._pipe[1], bytes([signal.SIGTERM, signal.SIGTERM]))
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted
        assert stop.unanswered() is None
        time.sleep(0.01)
        assert stop.unanswered() is None
        os.write(stop._pipe[1], bytes([signal.SIGINT]))
        asked = stop.unanswered()
        assert asked is not None
        assert asked.interrupts == 2, "the second time that it is told to end"
