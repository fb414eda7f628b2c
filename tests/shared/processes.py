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
from functools import partial
from pathlib import Path
from typing import IO

PATIENCE = 600.0
"""Seconds that a process may take before a test gives it up: far more than on any machine."""

_NEW_NETWORK, _NEW_NAMES = 0x40000000, 0x04000000
"""Linux's CLONE_NEWNET and CLONE_NEWUTS."""

FORKS = multiprocessing.get_context("forkserver")
"""Processes forked from a server that has imported the libraries."""
FORKS.set_forkserver_preload(
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
    exit status, environment and children. `first` is called in it before anything else. With the
    options of `torchrun` it is torchrun's process, and the command line runs in those it starts.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        first: Callable[[], object] | None = None,
        torchrun: Sequence[str] | None = None,
    ) -> None:
        descriptor, name = tempfile.mkstemp(prefix="command-line-", suffix=".txt")
        os.close(descriptor)
        self._output = Path(name)
        place = (dict(environment), str(Path.cwd()), name, first)
        self._process = FORKS.Process(target=_command, args=(list(words), torchrun, *place))
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


class ForkedPopen(CommandLine):
    """What `subprocess.Popen` is for a Python program, forked as `CommandLine` is.

    Of `python -m crate_mae ...` and `python SCRIPT ...`, in a session of its own.
    """

    def __init__(
        self, command: Sequence[str], *, stdout: IO[bytes], env: Mapping[str, str], **_: object
    ) -> None:
        python, *words = command
        assert python == sys.executable
        script = None if words[:2] == ["-m", "crate_mae"] else words[0]
        words = words[2:] if script is None else words[1:]
        super().__init__(words, env, first=partial(_as_program, stdout.name, script, words))

    def poll(self) -> int | None:
        """The exit status once it has ended."""
        if self.returncode is not None:
            self.communicate()
        return self.returncode

    def wait(self) -> int | None:
        """The exit status, when it has ended."""
        self.communicate()
        return self.returncode


def _as_program(output: str, script: str | None, words: list[str]) -> None:
    """Lead a session, print into a file, and be a script, if it is one."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    if script is not None:
        sys.argv = [script, *words]
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
        sys.exit(0)


def enter_host(namespace: str, name: str) -> None:
    """Make this process one of a host: in a network namespace, with a host name of its own."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path("/var/run/netns", namespace).open() as place:
        if library.setns(place.fileno(), _NEW_NETWORK) or library.unshare(_NEW_NAMES):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    socket.sethostname(name)


def _command(
    words: list[str],
    torchrun: Sequence[str] | None,
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
    if torchrun is None:
        sys.argv = ["crate-mae", *words]
        runpy.run_module("crate_mae", run_name="__main__", alter_sys=True)
    else:
        _torchrun(list(torchrun), words)


def _torchrun(options: list[str], words: list[str]) -> None:
    """What `torchrun` does with these options, but that what it starts is forked from here."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    given = parse_args([*options, *words])  # type: ignore[no-untyped-call]
    config, _, _ = config_from_args(given)
    config.start_method = "fork"
    elastic_launch(config, _started_by_torchrun)(*words)


def _started_by_torchrun(*words: str) -> None:
    """What a process of `torchrun` does: it has the variables that torchrun gives it."""
    sys.argv = ["crate-mae", *words]
    try:
        runpy.run_module("crate_mae", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"status {ended.code}") from ended
