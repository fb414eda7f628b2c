"""Processes that tests start."""

import ctypes
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATIENCE = 600.0
"""Seconds that a process may take before a test gives it up: far more than on any machine."""

_NEW_NETWORK, _NEW_NAMES = 0x40000000, 0x04000000
"""Linux's CLONE_NEWNET and CLONE_NEWUTS."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["crate_mae.cli", "crate_mae.training.pretrain", "crate_mae.training.finetune"]
)


def python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter made of some code."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=PATIENCE
    )


class CommandLine:
    """`crate-mae` in a process of its own; what it prints is kept for the end.

    The process is forked from a server that has imported the libraries, which takes most of the
    time of a short run. From there on it is a process like any other: its own number, signals,
    exit status, environment and children. `first` is called in it before anything else.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        first: Callable[[], object] | None = None,
    ) -> None:
        descriptor, name = tempfile.mkstemp(prefix="command-line-", suffix=".txt")
        os.close(descriptor)
        self._output = Path(name)
        self._process = _FORKS.Process(
            target=_command, args=(list(words), dict(environment), str(Path.cwd()), name, first)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, -N after signal N; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """`returncode`."""
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, None]:
        """All that was printed, once the process has ended; raises TimeoutError before."""
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout:g} s")
        if self._output.exists():
            self._printed = self._output.read_text("utf-8", "replace")
            self._output.unlink()
        return self._printed, None


def enter_host(namespace: str, name: str) -> None:
    """Make this process one of a host: in a network namespace, with a host name of its own."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path("/var/run/netns", namespace).open() as place:
        if library.setns(place.fileno(), _NEW_NETWORK) or library.unshare(_NEW_NAMES):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    socket.sethostname(name)


def _command(
    words: list[str],
    environment: dict[str, str],
    folder: str,
    output: str,
    first: Callable[[], object] | None,
) -> None:
    """What the forked process does: what `python -m crate_mae` would."""
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if first is not None:
        first()
    sys.argv = ["crate-mae", *words]
    runpy.run_module("crate_mae", run_name="__main__", alter_sys=True)
