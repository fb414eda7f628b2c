"""Two hosts train together: two network namespaces with names of their own, joined by a cable."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from processes import PATIENCE, CommandLine, enter_host
from training_runs import assert_same_run, command_line, small_config, wait_for_lines, write_recipe

from crate_mae.training.companions import PATIENCE_VARIABLE
from crate_mae.training.config import OptimConfig, TrainerConfig

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29511"
"""Of a namespace of its own, where nobody else listens."""


class Hosts:
    """Two hosts that see the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"crate-mae-{os.getpid()}-{number}" for number in (0, 1)]

    def by_torchrun(self, host: int, *words: str | Path) -> CommandLine:
        """The command line on a host as `torchrun` starts it, which both hosts call."""
        options = [
            *("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(host)),
            *("--master-addr", ADDRESSES[0], "--master-port", PORT, "-m", "crate_mae"),
        ]
        return command_line(
            *words, first=partial(enter_host, self.names[host], f"host{host}"), torchrun=options,
            **{PATIENCE_VARIABLE: "300"},
        )  # fmt: skip

    def by_variables(self, host: int, *words: str | Path) -> CommandLine:
        """The command line on a host that knows by variables which of two it is."""
        return command_line(
            *words, first=partial(enter_host, self.names[host], f"host{host}"),
            NODE_RANK=str(host), MASTER_ADDR=ADDRESSES[0], MASTER_PORT=PORT,
            **{PATIENCE_VARIABLE: "300"},
        )  # fmt: skip


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    for variable in ("GLOO_SOCKET_IFNAME", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("two hosts are not tried: network namespaces need root and ip")
    made = Hosts(tmp_path)
    first, second = made.names

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        try:
            for name in made.names:
                ip("netns", "add", name)
            ip("link", "add", "cable", "netns", first, "type", "veth",
               "peer", "name", "cable", "netns", second)  # fmt: skip
            for name, address in zip(made.names, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
                ip("-n", name, "link", "set", "cable", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"two hosts are not tried: no network namespaces here ({error.stderr})")
        yield made
    finally:
        for name in made.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ended(*processes: CommandLine) -> tuple[list[int | None], str]:
    """Exit statuses and all that was said; nobody is left running."""
    try:
        said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [process.returncode for process in processes], "\n".join(said)


def test_a_run_of_two_hosts_is_stopped_on_one_and_resumed_on_both(hosts: Hosts) -> None:
    """As docs/cluster.md tells: by torchrun, and by plain variables."""
    config = small_config(
        optim=OptimConfig(epochs=8, batch_size=32, base_lr=1e-2, warmup_epochs=1),
        trainer=TrainerConfig(accelerator="cpu", devices=1, num_nodes=2, strategy="ddp"),
    )
    config = replace(config, record=replace(config.record, measure_epochs=0))
    recipe = write_recipe(config, hosts.folder / "recipe.yaml")
    whole, parts = hosts.folder / "whole", hosts.folder / "parts"
    words = ("pretrain", "--config", recipe, "--out")
    statuses, said = ended(*(hosts.by_torchrun(host, *words, whole) for host in (0, 1)))
    assert statuses == [0, 0], said
    assert said.count("finished:") == 1

    processes = [hosts.by_variables(host, *words, parts) for host in (0, 1)]
    try:
        wait_for_lines(processes[0], parts, 6)
        processes[1].send_signal(signal.SIGTERM)
    finally:
        statuses, said = ended(*processes)
    assert statuses == [143, 0], said
    assert "signal 15: saving after this batch" in said
    resumed = (hosts.by_variables(host, "pretrain", "--resume", parts) for host in (0, 1))
    statuses, said = ended(*resumed)
    assert statuses == [0, 0], said
    assert_same_run(whole, parts)
