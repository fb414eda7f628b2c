"""A file tried in a forked child with limits on memory and time, and what came of it."""

import json
import os
import resource
import select
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

SECONDS = 20
MEMORY = 1 << 30
"""Bytes that a child may take beyond what it was forked with."""
TOO_MUCH = 512 << 20
"""Bytes beyond which a file of a few kilobytes has asked for too much."""

CLEAN = (ValueError, OSError, RuntimeError, ImportError)
"""What the command line prints as one line; anything else is a traceback to its user."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a file."""

    kind: str
    """refused, accepted, traceback, hang, memory, or died."""
    content: str = ""
    """A digest of what was read, where it was accepted."""
    told: str = ""
    """The message or the traceback."""


def tried(door: Callable[[Path], str], path: Path) -> Outcome:
    """What the door made of the file, in a child of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(door, path, writing)
    os.close(writing)
    until, said = monotonic() + SECONDS + 10, b""
    while monotonic() < until:
        if select.select([reading], [], [], 0.5)[0]:
            block = os.read(reading, 1 << 16)
            if not block:
                break
            said += block
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if said and os.waitstatus_to_exitcode(status) == 0:
        return Outcome(**json.loads(said))
    number = -os.waitstatus_to_exitcode(status)
    hung = number in (signal.SIGXCPU, signal.SIGKILL)
    return Outcome(kind="hang" if hung else "died", told=f"signal {number}")


def _in_child(door: Callable[[Path], str], path: Path, writing: int) -> None:
    status = 1
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        before = _data_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (before + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = _outcome(door, path)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
        if grown > TOO_MUCH:
            outcome = {"kind": "memory", "told": f"{grown >> 20} MiB; {outcome.get('told', '')}"}
        os.write(writing, json.dumps(outcome).encode())
        status = 0
    finally:
        os._exit(status)


def _outcome(door: Callable[[Path], str], path: Path) -> dict[str, str]:
    try:
        return {"kind": "accepted", "content": door(path)}
    except BaseException as error:
        chain: BaseException | None = error
        while chain is not None:
            if isinstance(chain, MemoryError) or "allocate" in str(chain):
                return {"kind": "memory", "told": _last(error)}
            chain = chain.__cause__ or chain.__context__
        if isinstance(error, CLEAN):
            return {"kind": "refused", "told": str(error)[:500]}
        return {"kind": "traceback", "told": _last(error)}


def _last(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-1500:]


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
