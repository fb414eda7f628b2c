"""Two hosts train together: two network namespaces with names of their own, joined by a cable."""

import os
import shutil
import signal
import subprocess
import sys
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

    def start(self, host: int, *words: str | Path) -> subprocess.Popen[str]:
        """A Python process on a host."""
        named = 'hostname "$0" && exec "$@"'
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], "unshare", "--uts", "sh", "-c", named,
             f"host{host}", sys.executable, *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", PATIENCE_VARIABLE: "300"},
        )  # fmt: skip

    def crate_mae(self, host: int, *words: str | Path) -> CommandLine:
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
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("two hosts are not tried: network namespaces need root, ip and unshare")
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


def ended(*processes: subprocess.Popen[str] | CommandLine) -> tuple[list[int | None], str]:
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
        optim=OptimConfig(epochs=20, batch_size=32, base_lr=1e-2, warmup_epochs=1),
        trainer=TrainerConfig(accelerator="cpu", devices=1, num_nodes=2, strategy="ddp"),
    )
    config = replace(config, record=replace(config.record, measure_epochs=0))
    recipe = write_recipe(config, hosts.folder / "recipe.yaml")
    whole, parts = hosts.folder / "whole", hosts.folder / "parts"
    statuses, said = ended(
        *(
            hosts.start(
                host, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                "--node-rank", str(host), "--master-addr", ADDRESSES[0], "--master-port", PORT,
                "-m", "crate_mae", "pretrain", "--config", recipe, "--out", whole,
            )
            for host in (0, 1)
        )
    )  # fmt: skip
    assert statuses == [0, 0], said
    assert said.count("finished:") == 1

    def by_variables(*words: str | Path) -> list[CommandLine]:
        return [hosts.crate_mae(host, "pretrain", *words) for host in (0, 1)]

    processes = by_variables("--config", recipe, "--out", parts)
    try:
        wait_for_lines(processes[0], parts, 6)
        processes[1].send_signal(signal.SIGTERM)
    finally:
        statuses, said = ended(*processes)
    assert statuses == [143, 0], said
    assert "signal 15: saving after this batch" in said
    statuses, said = ended(*by_variables("--resume", parts))
    assert statuses == [0, 0], said
    assert_same_run(whole, parts)
