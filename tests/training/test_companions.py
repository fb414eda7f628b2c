"""Processes of one run meet, hear of each other's end, and never wait for ever."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pages import ROOT
from processes import PATIENCE, CommandLine
from training_runs import command_line, lose_sooner, small_config, wait_for_lines, write_recipe

from crate_mae.batches.broken import TooManyBrokenImagesError
from crate_mae.training.callbacks import StopSignals
from crate_mae.training.companions import (
    BEAT,
    DEAF,
    GLANCE,
    GRACE,
    LAST_WORDS,
    LOST,
    PATIENCE_VARIABLE,
    CompanionLostError,
    Companions,
)
from crate_mae.training.companions import PATIENCE as PATIENCE_OF_ONE
from crate_mae.training.config import OptimConfig, TrainerConfig

HOST = socket.gethostname()
SOON = 60.0
"""Seconds within which everybody ends, as docs/reliability.md promises."""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def port() -> str:
    return free_port()


def node(
    rank: int, port: str, folder: Path, recipe: Path,
    first: Callable[[], object] | None = None, /, **more: str,
) -> CommandLine:  # fmt: skip
    """One of two nodes, on this host."""
    return command_line(
        "pretrain", "--config", recipe, "--out", folder, first=first,
        NODE_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **more,
    )  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    config = small_config(
        optim=OptimConfig(epochs=5000, batch_size=32, base_lr=1e-2, warmup_epochs=1),
        trainer=TrainerConfig(accelerator="cpu", devices=1, num_nodes=2, strategy="ddp"),
    )
    return write_recipe(config, tmp_path / "recipe.yaml")


def test_a_node_whose_rank_0_is_killed_ends_and_says_who_it_is(
    tmp_path: Path, recipe: Path, port: str
) -> None:
    more = {PATIENCE_VARIABLE: "600"}  # a busy machine may start one of them late
    first, second = (node(rank, port, tmp_path / "run", recipe, **more) for rank in (0, 1))
    try:
        wait_for_lines(first, tmp_path / "run", 6)
        first.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        output, _ = second.communicate(timeout=PATIENCE)
        assert time.monotonic() - killed < SOON
        assert second.returncode == 1, output
        assert f"error: rank 1 on {HOST} " in output
        assert f"--resume {tmp_path / 'run'}" in output
        assert "Traceback" not in output
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_a_node_that_waits_alone_ends_and_says_for_whom_it_waited(
    tmp_path: Path, recipe: Path, port: str
) -> None:
    lone = node(1, port, tmp_path / "run", recipe, **{PATIENCE_VARIABLE: "2"})
    output, _ = lone.communicate(timeout=PATIENCE)
    assert lone.returncode == 1
    assert f"rank 1 on {HOST} waited 2s for rank 0 at 127.0.0.1:{port}" in output
    assert PATIENCE_VARIABLE in output
    assert "Traceback" not in output


def fake_strategy(rank: int, port: str) -> Any:
    """What is asked of a strategy whose processes were started from outside."""
    environment = SimpleNamespace(
        main_address="127.0.0.1", main_port=int(port), creates_processes_externally=True
    )
    companions = Companions(object(), StopSignals(), Path("run"))
    companions.rank, companions.world_size = rank, 2
    companions._strategy = SimpleNamespace(
        cluster_environment=environment, root_device=torch.device("cpu"), num_nodes=2
    )
    return companions


def test_a_single_process_waits_for_nobody() -> None:
    with Companions(object(), StopSignals(), Path("run")) as alone:
        assert alone.world_size == 1
        error = RuntimeError("Connection closed by peer")
        assert alone.explained(error) is error


def test_the_roll_call_names_who_did_not_come(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    with pytest.raises(CompanionLostError, match=rf"rank 0 on {HOST} waited .* for rank 1 of 2"):
        fake_strategy(0, port).__enter__()


def test_a_wait_is_ended_by_a_signal(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "600")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            fake_strategy(1, port).__enter__()
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("text", ["x", "-1", "0", "nan", "inf"])
def test_patience_is_a_number(monkeypatch: pytest.MonkeyPatch, port: str, text: str) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, text)
    with pytest.raises(ValueError, match=PATIENCE_VARIABLE):
        fake_strategy(1, port).__enter__()


def test_errors_of_lost_connections_name_the_process(port: str) -> None:
    companions = fake_strategy(1, port)
    told = companions.explained(RuntimeError("[gloo/pair.cc:534] Connection closed by peer"))
    assert f"rank 1 on {HOST} lost the connection" in str(told)
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert companions.explained(other) is other


def test_everybody_ends_within_a_minute_by_the_constants() -> None:
    seen = BEAT  # the last sign of life is noticed at the next look
    told = LOST + BEAT  # at the first look after so long without another
    heard = BEAT  # by those who ask rank 0 alone
    ends = GLANCE + GRACE + LAST_WORDS
    assert seen + told + heard + ends <= SOON
    assert LOST + GLANCE + GRACE + LAST_WORDS <= SOON, "where rank 0 itself is silent"
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    for promised in (
        f"all end within {SOON:.0f} seconds", f"shows every {BEAT:.0f} seconds",
        f"has not for {LOST:.0f} seconds", f"ends after {DEAF:.0f} seconds",
        f"waits {PATIENCE_OF_ONE:.0f} seconds for the next one",
    ):  # fmt: skip
        assert promised in " ".join(page.split()), promised
    assert os.environ.get(PATIENCE_VARIABLE) is None


def test_processes_end_within_a_minute_when_another_is_stopped(
    tmp_path: Path, recipe: Path
) -> None:
    """SIGSTOP: it is there, its connections are open, and it says nothing. Two runs at once."""
    more = {PATIENCE_VARIABLE: "600"}
    runs = {
        stopped: [
            node(rank, port, tmp_path / f"run-{stopped}", recipe, lose_sooner, **more)
            for rank in (0, 1)
        ]
        for stopped, port in enumerate((free_port(), free_port()))
    }
    try:
        for stopped, nodes in runs.items():
            wait_for_lines(nodes[0], tmp_path / f"run-{stopped}", 6)
        since = time.monotonic()
        for stopped, nodes in runs.items():
            nodes[stopped].send_signal(signal.SIGSTOP)
        for stopped, nodes in runs.items():
            other = 1 - stopped
            output, _ = nodes[other].communicate(timeout=PATIENCE)
            assert time.monotonic() - since < SOON, output
            assert nodes[other].returncode == 1, output
            assert f"error: rank {other} on {HOST} ends: rank {stopped} " in output
            assert f"--resume {tmp_path / f'run-{stopped}'}" in output
            assert nodes[stopped].poll() is None, "it was stopped, not ended"
    finally:
        for process in (process for nodes in runs.values() for process in nodes):
            process.kill()
            process.communicate()


def test_errors_of_the_run_itself_are_not_taken_for_lost_companions(tmp_path: Path) -> None:
    """Words of a path or of another library's error say nothing about the other processes."""

    companions = Companions.__new__(Companions)
    companions.rank, companions.world_size = 0, 2
    companions._host, companions._folder = "here", tmp_path
    own: list[RuntimeError] = [
        TooManyBrokenImagesError("3 of 9: /mnt/datastore/socket/a.jpg (timed out)"),
        torch.OutOfMemoryError("NCCL buffers"),
        RuntimeError("the weights were restored by a peer"),
    ]
    for error in own:
        assert companions.explained(error) is error
    lost = companions.explained(RuntimeError("[gloo] Connection closed by peer [10.0.0.1]"))
    assert isinstance(lost, CompanionLostError)
    assert "rank 0 on here lost the connection" in str(lost)
