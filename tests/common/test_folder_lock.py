"""One writer for each folder: refused by name, free at once after kill -9, watched from afar."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import PATIENCE

from crate_mae.common import folder_lock
from crate_mae.common.folder_lock import LOCK, FolderInUseError, holder_of, holding

HOLDING = """
import os, sys, time
from pathlib import Path
from crate_mae.common.folder_lock import holding
with holding(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker that outlives its parent
        time.sleep(30)
        os._exit(0)
    print("holding", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    process.stdout.close()
    return process


def test_a_second_process_is_refused_and_told_who(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    try:
        told = rf"being written by process {holder.pid} on .+, since \d{{4}}-\d\d-\d\dT"
        with pytest.raises(FolderInUseError, match=told), holding(tmp_path):
            pass
        found = holder_of(tmp_path)
        assert found is not None
        assert (found[0].pid, found[1]) == (holder.pid, True)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(PATIENCE)
    # Free at once, although its worker still runs.
    found = holder_of(tmp_path)
    assert found is not None
    assert not found[1]
    with holding(tmp_path):
        inside = holder_of(tmp_path)
        assert inside is not None
        assert inside[0].pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    with holding(tmp_path):
        with pytest.raises(FolderInUseError, match=str(os.getpid())), holding(tmp_path):
            pass
        assert holder_of(tmp_path) is not None
    with holding(tmp_path):
        pass


def foreign(folder: Path) -> Path:
    """The lock of a process on another host, as it lies on a shared disk without locks."""
    path = folder / LOCK
    about = {"host": "elsewhere", "pid": 7, "since": "2026-01-01T00:00:00+00:00", "started": 1}
    path.write_text(json.dumps(about))
    return path


def test_a_holder_elsewhere_that_lives_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "WATCH_SECONDS", 30.0)
    path = foreign(tmp_path)
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.2):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(FolderInUseError, match="process 7 on elsewhere"), holding(tmp_path):
            pass
    finally:
        beating.set()
        thread.join()


def test_a_holder_elsewhere_that_is_silent_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "WATCH_SECONDS", 0.5)
    foreign(tmp_path)
    begun = time.monotonic()
    with holding(tmp_path):
        assert time.monotonic() - begun > 0.4
        found = holder_of(tmp_path)
        assert found is not None
        assert found[0].pid == os.getpid()


def test_a_holder_whose_clock_is_behind_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that its file is touched counts, not when by this host's clock."""
    monkeypatch.setattr(folder_lock, "WATCH_SECONDS", 5.0)
    foreign(tmp_path)
    done = threading.Event()

    def touching() -> None:
        behind = time.time() - 10_000
        while not done.wait(0.05):
            behind += 0.05
            os.utime(tmp_path / LOCK, (behind, behind))

    touch = threading.Thread(target=touching)
    touch.start()
    time.sleep(0.2)
    try:
        with pytest.raises(FolderInUseError, match="is being written by"), holding(tmp_path):
            pass
    finally:
        done.set()
        touch.join()


def test_a_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.05)
    with holding(tmp_path):
        os.utime(tmp_path / LOCK, (1, 1))
        until = time.monotonic() + PATIENCE
        while (tmp_path / LOCK).stat().st_mtime < 2:
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"host": 1}', "\x00" * 9, "[" * 4000, '{"pid": "x"}']
)
def test_a_damaged_lock_file_of_nobody_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    assert holder_of(tmp_path) is None
    with holding(tmp_path):
        pass


def test_a_system_without_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder_lock, "fcntl", None)
    # What Windows does not have, or has with another meaning.
    for name in ("pwrite", "kill"):
        monkeypatch.delattr(os, name)
    monkeypatch.delattr(os, "O_CLOEXEC")
    with holding(tmp_path):
        assert holder_of(tmp_path) is None
        assert not list(tmp_path.iterdir())
    assert f"this system has no locks: see to it that nobody else writes to {tmp_path}" in (
        caplog.text
    )
