"""The other processes of a run: met before long work starts, watched until its end.

Whoever waits for another waits inside a library, deaf to signals, for half an hour. So processes
first answer a roll call here, where a signal ends the wait, and then show every few seconds that
they live. When one is gone, the others say which one, on which host, and end; a run that was saved
goes on from its last checkpoint.

The roll is kept in torch's own store, served by rank 0 (under torchrun: by its agent), at the
address that the processes were given anyway.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

import torch.distributed
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy

from crate_mae.common.escaping import printable
from crate_mae.common.folder_lock import seconds_alive
from crate_mae.common.text import duration
from crate_mae.training.callbacks import StopSignals
from crate_mae.training.network import choose_gloo_interface, own_address

PATIENCE_VARIABLE = "CRATE_MAE_WAIT"
PATIENCE = 40.0
"""Seconds that a process waits for the next one to answer the roll call, beside those that it took
to come so far itself: on a slow or busy machine the others take as long."""
BEAT = 3.0
LOST = 36.0
"""Seconds without a sign of life after which a process counts as lost."""
DEAF = 30.0
"""Seconds that a process may leave a signal unanswered while it waits for others."""
GLANCE = 0.5
"""Seconds between two looks at whether it is over."""
GRACE = 2 * BEAT
"""Seconds that a process which is about to say the same, or to end well, gets to do so."""
LAST_WORDS = 2.0
"""Seconds that telling the others may take at the end: the store may be gone."""

_LOST_WORDS = (
    "gloo", "nccl", "connection closed", "connection reset", "connection refused", "timed out",
    "timeout", "socket",
)  # fmt: skip

logger = logging.getLogger(__name__)

dist: Any = torch.distributed  # whose stores have no types
Store = Any


class CompanionLostError(RuntimeError):
    """Raised when another process of the run did not come, or is gone."""


class Companions:
    """The processes that train together with this one; nothing for a run of a single process.

    To be entered before data are opened and left at the end, so that others hear how it ended.
    """

    def __init__(self, strategy: Any, stop: StopSignals, folder: Path) -> None:
        self._strategy, self._stop, self._folder = strategy, stop, folder
        parallel = isinstance(strategy, ParallelStrategy)
        self.rank: int = strategy.global_rank if parallel else 0
        self.world_size: int = strategy.world_size if parallel else 1
        self._host = socket.gethostname()
        self._store: Store | None = None
        self._watch: _Watch | None = None

    def __enter__(self) -> Self:
        if self.world_size > 1:
            store = self._meet()
            self._watch = _Watch(self, store, self._stop)
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._watch is not None:
            told = "done" if kind is None else f"ended by {printable(str(error) or kind.__name__)}"
            self._watch.leave(told.splitlines()[0][:300])

    def __str__(self) -> str:
        return f"rank {self.rank} on {self._host}"

    def explained(self, error: RuntimeError) -> RuntimeError:
        """The error itself, or one that names this process where it tells of lost others."""
        said = str(error).strip()
        of_torch = type(error) is RuntimeError or isinstance(error, dist.DistError)
        if self.world_size == 1 or not of_torch:
            return error
        if not any(word in said.lower() for word in _LOST_WORDS):
            return error
        reason = said.splitlines()[0] if said else type(error).__name__
        return CompanionLostError(
            f"{self} lost the connection to the others ({reason}): see what the other processes"
            f" say, and go on with --resume {self._folder}"
        )

    # -- the roll call ------------------------------------------------------------------------

    def _meet(self) -> Store:
        """The store, once everybody who has been started by now has answered."""
        environment = self._strategy.cluster_environment
        address, port = str(environment.main_address), int(environment.main_port)
        try:
            self._store = self._connected(address, port)  # rank 0 serves while this is referenced
            roll = dist.PrefixStore(f"{_attempt()}/roll", self._store)
            if environment.creates_processes_externally:
                # A process that Lightning started is one of a node that has answered already.
                ours = isinstance(environment, LightningEnvironment)
                answers = [] if ours else self._roll_call(roll, "rank", self.rank, self.world_size)
            else:  # each node starts its further processes later: its first one answers for it
                node, nodes = int(environment.node_rank()), int(self._strategy.num_nodes)
                answers = self._roll_call(roll, "node", node, nodes)
            watched = dist.PrefixStore(f"{_attempt()}/watch", _client(address, port))
        except CompanionLostError:
            raise
        except (RuntimeError, OSError) as error:
            raise CompanionLostError(f"{self} could not meet the others: {error}") from error
        hosts = {str(answer["host"]) for answer in answers}
        if self._strategy.root_device.type == "cpu" and len(hosts) > 1:
            choose_gloo_interface([str(answer["address"]) for answer in answers], who=str(self))
        return watched

    def _connected(self, address: str, port: int) -> Store:
        serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if serves:
            return dist.TCPStore(
                address, port, None, True, timedelta(seconds=10), wait_for_workers=False,
                multi_tenant=True,
            )  # fmt: skip
        begun, patience, parent = monotonic(), _patience(), os.getppid()
        said = False
        while True:
            try:
                with socket.create_connection((address, port), timeout=2):
                    pass
                return _client(address, port)
            except (OSError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0]
            waited = monotonic() - begun
            if waited > 5 and not said:
                logger.info("%s waits for rank 0 at %s:%d", self, address, port)
                said = True
            if waited > patience or os.getppid() != parent:
                raise CompanionLostError(
                    f"{self} waited {duration(waited)} for rank 0 at {address}:{port}, and nobody"
                    f" answered ({reason}). Is rank 0 running, and are MASTER_ADDR and MASTER_PORT"
                    f" those of its host? For processes that start far apart set"
                    f" {PATIENCE_VARIABLE}, in seconds"
                )
            sleep(0.2)

    def _roll_call(self, roll: Store, what: str, member: int, members: int) -> list[dict[str, Any]]:
        """What each of the members said: its host and the address that it is seen by."""
        main = str(self._strategy.cluster_environment.main_address)
        roll.set(f"{what}/{member}", json.dumps({"host": self._host, "address": own_address(main)}))
        missing = [number for number in range(members) if number != member]
        patience, heard = _patience(), monotonic()
        while missing:
            if roll.check([f"{what}/{missing[0]}"]):
                missing.pop(0)
                heard = monotonic()
                continue
            if monotonic() - heard > patience:
                raise CompanionLostError(
                    f"{self} waited {duration(patience)} for {what}"
                    f" {', '.join(map(str, missing[:8]))} of {members}, who did not come: start"
                    f" them, or, if they start far apart, set {PATIENCE_VARIABLE}, in seconds"
                )
            sleep(0.2)
        return [json.loads(roll.get(f"{what}/{number}")) for number in range(members)]


class _Watch:
    """Two threads: one shows and asks for signs of life, one decides when it is over."""

    def __init__(self, own: Companions, store: Store, stop: StopSignals) -> None:
        self._own, self._store, self._stop = own, store, stop
        self._done = threading.Event()
        self._verdict: str | None = None
        self._answered = monotonic()
        self._failed: str | None = None
        self._threads = [
            threading.Thread(target=work, daemon=True, name=name)
            for work, name in ((self._beat, "sign of life"), (self._judge, "companions"))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def leave(self, how: str) -> None:
        """Tell the others how this process ended, and stop watching."""
        if self._done.is_set():
            return
        self._done.set()
        entries = {f"left/{self._own.rank}": how}
        if how != "done":
            entries["verdict"] = f"{self._own} {how}"
        self._tell(entries)
        if how != "done" and self._own.rank == 0:
            sleep(BEAT + 1)  # the store ends with this process: let the others read it

    # -- signs of life ------------------------------------------------------------------------

    def _beat(self) -> None:
        count = 0
        seen: dict[int, tuple[bytes, float]] = {}
        while not self._done.wait(0 if count == 0 else BEAT):
            try:
                count += 1
                self._store.set(f"beat/{self._own.rank}", f"{count} {self._own}")
                if self._store.check(["verdict"]):
                    self._verdict = self._store.get("verdict").decode("utf-8", "replace")
                    return
                others = range(1, self._own.world_size) if self._own.rank == 0 else (0,)
                for rank in others:
                    self._look_at(rank, seen)
                self._answered, self._failed = monotonic(), None
            except Exception as error:  # of a store that is gone, whatever its library meets first
                self._failed = (str(error).strip() or type(error).__name__).splitlines()[0]

    def _look_at(self, rank: int, seen: dict[int, tuple[bytes, float]]) -> None:
        if not self._store.check([f"beat/{rank}"]):
            return  # not there yet: the roll call waits, not this
        beat, now = self._store.get(f"beat/{rank}"), monotonic()
        if rank not in seen or seen[rank][0] != beat:
            seen[rank] = beat, now
        elif now - seen[rank][1] > LOST and not self._store.check([f"left/{rank}"]):
            who = beat.decode("utf-8", "replace").partition(" ")[2]
            told = f"{who} has shown no sign of life for {duration(now - seen[rank][1])}"
            self._store.set("verdict", told)
            self._verdict = told

    # -- what follows -------------------------------------------------------------------------

    def _judge(self) -> None:
        while not self._done.wait(GLANCE):
            verdict, silent = self._verdict, monotonic() - self._answered
            if verdict is None and self._failed is not None and silent > 3 * BEAT:
                verdict = f"rank 0 does not answer any more ({self._failed})"
            if verdict is None and silent > LOST:
                verdict = f"rank 0 has not answered for {duration(silent)}"
            if verdict is not None:
                if not self._done.wait(GRACE):
                    self._end(verdict, 1)
                return
            asked = self._stop.unanswered()
            if asked is None:
                continue
            again = asked.number == signal.SIGINT and asked.interrupts > 1
            if asked.seconds > (2.0 if again else DEAF):
                name = signal.Signals(asked.number).name
                self._end(
                    f"{name} came while it waited for the others, who did not come",
                    130 if asked.number == signal.SIGINT else 128 + asked.number,
                )

    def _end(self, why: str, status: int) -> None:
        """End the process: its main thread waits inside a library and hears nothing."""
        with contextlib.suppress(Exception):
            print(
                f"error: {self._own} ends: {printable(why)}. The run goes on from its last"
                f" checkpoint with --resume {self._own._folder}",
                file=sys.stderr,
                flush=True,
            )
        self._tell({"verdict": f"{self._own} ended: {why}"})
        os._exit(status)

    def _tell(self, entries: dict[str, str]) -> None:
        """Set entries of the store, or give up after `LAST_WORDS`."""

        def tell() -> None:
            with contextlib.suppress(Exception):
                for key, value in entries.items():
                    self._store.set(key, value)

        telling = threading.Thread(target=tell, daemon=True, name="last words")
        telling.start()
        telling.join(LAST_WORDS)


def _client(address: str, port: int) -> Store:
    return dist.TCPStore(address, port, None, False, timedelta(seconds=10), wait_for_workers=False)


def _attempt() -> str:
    """Where this attempt keeps its keys: torchrun may start everybody again on the same store."""
    return f"crate-mae/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _patience() -> float:
    text = os.environ.get(PATIENCE_VARIABLE, "")
    if not text:
        return PATIENCE + min(seconds_alive(), 300.0)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:  # nor NaN
        raise ValueError(f"{PATIENCE_VARIABLE} must be a number of seconds above 0, not {text!r}")
    return seconds
