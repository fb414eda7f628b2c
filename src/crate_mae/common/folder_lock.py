"""One writer for each folder: a lock that names its holder and ends with it, however it ends.

The lock is the operating system's (`flock`), on a file in the folder: it is gone in the instant in
which the process is, and network file systems pass it on between hosts where they are set up to.
Some are not, or let every host lock for itself. So the holder also touches the file every few
seconds, and whoever finds the file of another host watches it for a while before taking over.

Windows has no such lock: there nothing is held, which is said in the log.
"""

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

from crate_mae.common.files import writing
from crate_mae.common.litter import is_litter, process_is_gone
from crate_mae.common.text import duration

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK, LOG, COMMAND = "run.lock", "log.txt", "command.txt"
"""What a run writes into its folder before its settings."""
BEAT_SECONDS = 10.0
"""How often a holder shows that it lives."""
WATCH_SECONDS = 45.0
"""How long the file of another host is watched before its holder counts as gone."""
_MAX_BYTES = 4096

logger = logging.getLogger(__name__)


class FolderInUseError(RuntimeError):
    """Raised when another process is writing to a folder; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds, or held, a folder."""

    host: str
    pid: int
    since: str
    """Local time with its distance from UTC, ISO 8601."""
    started: int | None = None
    """When the process began, in ticks after the start of its machine; tells reused numbers."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def gone(self) -> bool | None:
        """Whether its process has ended; None where that cannot be told, on another host."""
        if self.host != socket.gethostname():
            return None
        if process_is_gone(self.pid):
            return True
        began = _started(self.pid)
        return None not in (began, self.started) and began != self.started


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """A context in which this process alone writes to a folder, which is there already.

    Without locks in the system (Windows) that is not looked at, which the log says. Raises
    FolderInUseError naming the holder, and OSError where no lock file can be made.
    """
    path = folder / LOCK
    if fcntl is None:
        logger.warning("this system has no locks: see to it that nobody else writes to %s", folder)
        yield
        return
    descriptor = _locked(path, folder)
    forked = os.getpid()
    # A forked worker would keep the lock after this process was killed: it closes its copy.
    closing = _ClosedInChildren(descriptor)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(descriptor, done), daemon=True, name="run lock")
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        closing.forget()
        if os.getpid() == forked:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)


def holder_of(folder: Path) -> tuple[Holder, bool] | None:
    """(who holds a folder or was killed while it did, whether it still does); None for nobody.

    A holder on another host counts as alive while its file is touched.
    """
    path = folder / LOCK
    holder = _read(path)
    if holder is None:
        return None
    with contextlib.suppress(OSError):
        age = time() - path.stat().st_mtime
        gone = holder.gone
        alive = age < WATCH_SECONDS if gone is None else not gone
        return holder, alive or _is_locked(path)
    return None


def is_unborn(folder: Path) -> bool:
    """Whether a folder is empty, or holds what a run leaves that was killed before its settings.

    Only what is ours counts: the lock that it held, its log, its command line.
    """
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir() if not is_litter(path.name)}
    return not names or (LOCK in names and names <= {LOCK, LOG, COMMAND})


def unborn_hint(folder: Path) -> str:
    """What to do about a folder without settings, to be added to a sentence; "" if not unborn."""
    again = "; nothing of a run was written yet: start it again with the words it was started with"
    return f"{again}, without --resume" if is_unborn(folder) else ""


def seconds_alive() -> float:
    """Seconds since this process began; 0 where the system does not tell."""
    try:
        up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        began = _started(os.getpid())
        return 0.0 if began is None else max(0.0, up - began / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


def _locked(path: Path, folder: Path) -> int:
    """The descriptor of the lock file, locked and naming this process."""
    watched = False
    for _ in range(100):
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _try_lock(descriptor):
                _refuse(path, folder)
            if not _is_same(descriptor, path):  # its last holder removed it meanwhile
                os.close(descriptor)
                continue
            former = _read(path)
            if former is not None and former.gone is False and not _is_own(former):
                if not _is_locked(path):  # a second lock must be refused
                    _refuse(path, folder)
            elif former is not None and former.gone is None and not watched:
                _watch(path, folder, former)
                watched = True
            if former is not None:
                state = "lives without it" if former.gone is False else "is gone"
                logger.warning("%s was left behind by %s, which %s", path, former, state)
            with writing(path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, (json.dumps(asdict(_this_process())) + "\n").encode(), 0)
                os.fsync(descriptor)
            return descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
    raise FolderInUseError(f"{folder} is being written by processes that come and go: try again")


def _try_lock(descriptor: int) -> bool:
    """Whether the lock is ours now, or locks do not exist there."""
    for attempt in range(5):  # whoever asks who holds it, holds it for an instant
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            sleep(0.05 * (attempt + 1))
        except OSError:  # a file system without locks
            return True
    return False


def _is_locked(path: Path) -> bool:
    """Whether some process has locked the file."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _refuse(path: Path, folder: Path) -> None:
    holder = _read(path)
    if holder is None:
        raise FolderInUseError(f"{folder} is being written by another process: wait until it ends")
    raise FolderInUseError(
        f"{folder} is being written by {holder}: wait until it ends, or stop it there; nothing was"
        " changed"
    )


def _watch(path: Path, folder: Path, holder: Holder) -> None:
    """Return once the holder on another host has not touched its file for long enough."""
    with contextlib.suppress(OSError):
        before = path.stat().st_mtime_ns
        logger.warning(
            "%s names %s: watching it for %s to see whether that lives",
            path, holder, duration(WATCH_SECONDS),
        )  # fmt: skip
        until = monotonic() + WATCH_SECONDS
        while monotonic() < until:
            sleep(0.25)
            if path.stat().st_mtime_ns != before:
                _refuse(path, folder)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _read(path: Path) -> Holder | None:
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MAX_BYTES))
        holder = Holder(**values)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    sound = type(holder.pid) is int and isinstance(holder.host, str)
    return holder if sound and isinstance(holder.since, str) and holder.pid > 0 else None


def _this_process() -> Holder:
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        started=_started(os.getpid()),
    )


def _is_own(holder: Holder) -> bool:
    return holder.pid == os.getpid() and holder.host == socket.gethostname()


def _started(pid: int) -> int | None:
    """When a process of this host began, in clock ticks after the machine did; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(fields.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _beat(descriptor: int, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


class _ClosedInChildren:
    """Closes a descriptor in every process that is forked from this one, until forgotten."""

    _known: "set[_ClosedInChildren]" = set()  # noqa: RUF012 - one for the whole process
    _registered = False

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._known.add(self)
        if not _ClosedInChildren._registered and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_ClosedInChildren._close_all)
            _ClosedInChildren._registered = True

    def forget(self) -> None:
        """Leave later children alone."""
        self._known.discard(self)

    @classmethod
    def _close_all(cls) -> None:
        for one in cls._known:
            with contextlib.suppress(OSError):
                os.close(one._descriptor)
        cls._known.clear()
