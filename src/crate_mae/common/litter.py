"""What a killed process leaves beside its targets: named so that it is known again, and swept up.

A file or folder that is being written lies beside its target as `.NAME.HOST.PID.partial`, an old
folder that makes way as `.NAME.HOST.PID.old`. HOST is a digest of the host's name. Whoever writes
next to the same name removes what processes that are gone have left there, and nothing else.
"""

import contextlib
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from time import time

PARTIAL, OLD = "partial", "old"
FOREIGN_SECONDS = 24 * 3600.0
"""How long litter of another host is left alone: whether its process lives cannot be asked."""
ASKS = os.name != "nt"
"""Whether a process can be asked whether it lives: on Windows a signal 0 would interrupt it."""

_PATTERN = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})\.(?P<pid>\d{1,10})\.(partial|old)")


def beside(path: Path, kind: str = PARTIAL) -> Path:
    """Where this process writes what is to become `path`, or puts what makes way for it."""
    return path.with_name(f".{_short(path.name)}.{_host()}.{os.getpid()}.{kind}")


def sweep(path: Path) -> list[Path]:
    """What was removed: unfinished files and folders that dead processes left beside `path`.

    An old folder is moved back where its successor never came.
    """
    return [found for found in _stale(path.parent, _short(path.name)) if _removed(found, path)]


def sweep_below(folder: Path) -> list[Path]:
    """What was removed below a folder that nobody else writes to, as `sweep` removes it."""
    found: list[Path] = []
    for place, folders, _ in os.walk(folder):
        for litter in _stale(Path(place)):
            known = _PATTERN.fullmatch(litter.name)
            if known is not None and _removed(litter, litter.with_name(known["name"])):
                found.append(litter)
        folders[:] = [name for name in folders if not _PATTERN.fullmatch(name)]
    return found


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name is one that is being written, or was."""
    return _PATTERN.fullmatch(name) is not None


def process_is_gone(pid: int) -> bool:
    """Whether this host has no process of that number; False where that cannot be asked."""
    if not ASKS:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _stale(folder: Path, name: str | None = None) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _PATTERN.fullmatch(entry.name)
            if found is None or (name is not None and found["name"] != name):
                continue
            with contextlib.suppress(OSError):
                own = ASKS and found["host"] == _host()
                age = time() - entry.stat(follow_symlinks=False).st_mtime
                if process_is_gone(int(found["pid"])) if own else age > FOREIGN_SECONDS:
                    yield Path(entry.path)


def _removed(litter: Path, target: Path) -> bool:
    with contextlib.suppress(OSError):
        if litter.is_symlink() or not litter.is_dir():
            litter.unlink()
        elif litter.suffix == f".{OLD}" and not target.exists():
            litter.rename(target)
            return False
        else:
            shutil.rmtree(litter)
        return True
    return False


def _short(name: str) -> str:
    """The name, or its beginning and a digest where it leaves no room for more."""
    data = os.fsencode(name)
    return name if len(data) < 200 else f"{name[:40]}-{hashlib.sha256(data).hexdigest()[:16]}"


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
