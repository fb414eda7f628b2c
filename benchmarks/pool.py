"""Jobs side by side, each a process of its own: what is done is skipped, what fails is told."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from matrix import Job

logger = logging.getLogger("benchmarks")

POLL_SECONDS = 0.5
TELL_SECONDS = 60.0


@dataclass(kw_only=True)
class Outcome:
    """What became of the jobs, by name."""

    done: list[str] = field(default_factory=list)
    """Including those that were done before."""
    failed: dict[str, Path] = field(default_factory=dict)
    """With the log of each."""
    skipped: list[str] = field(default_factory=list)
    """Because what they need failed or was not reached."""
    stopped: bool = False


@dataclass(kw_only=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    began: float


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int,
    logs: Path,
    minutes: float | None = None,
    poll: float = POLL_SECONDS,
) -> Outcome:
    """What became of the jobs, `workers` at a time with `threads` each, in order where possible.

    A job whose outcome exists is not run. One that fails takes those that need it along; the others
    go on. On SIGTERM, SIGINT or after `minutes`, running jobs are asked to stop (a training run
    saves itself) and waited for: the same call goes on later. Output goes to files in `logs`.
    Raises ValueError for two jobs of one name and for needs that no job meets.
    """
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"jobs share a name: {', '.join(twice)}")
    to_do = [job for job in jobs if not job.outcome.exists()]
    wanted = {other for job in to_do for other in (*job.needs, *job.after)}
    unmet = sorted(wanted - set(names))
    if unmet:
        raise ValueError(f"nothing makes {', '.join(unmet)}, which other jobs need")
    logs.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(done=[job.name for job in jobs if job.outcome.exists()])
    waiting = [job for job in jobs if job.name not in outcome.done]
    running: list[_Running] = []
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    told = time.monotonic()
    with _stop_wish() as wish, _stopped_at_the_end(running):
        while waiting or running:
            for ended in [item for item in running if item.process.poll() is not None]:
                running.remove(ended)
                _note(ended, outcome, stopping=bool(wish))
            late = deadline is not None and time.monotonic() > deadline
            if wish or late:
                _stop(running)
                for ended in running:
                    _note(ended, outcome, stopping=True)
                running.clear()
                outcome.stopped = True
                outcome.skipped += [job.name for job in waiting]
                break
            waiting = _without_hopeless(waiting, outcome)
            over = {*outcome.done, *outcome.failed, *outcome.skipped}
            ready = [
                job
                for job in waiting
                if set(job.needs) <= set(outcome.done) and set(job.after) <= over
            ]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                try:
                    running.append(_start(job, threads=threads, logs=logs))
                except (ValueError, OSError) as error:
                    logger.error("FAILED %s before it began: %s", job.name, error)
                    outcome.failed[job.name] = logs
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                _tell(len(outcome.done), len(jobs), running)
            time.sleep(poll)
    return outcome


def _start(job: Job, *, threads: int, logs: Path) -> _Running:
    log = logs / f"{job.name.replace('/', '--')}.log"
    environment: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = job.command()
    logger.info("start %s", job.name)
    with log.open("ab") as file:
        # A session of its own: Ctrl-C reaches us alone, and we ask each job to save itself.
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    return _Running(job=job, process=process, log=log, began=time.monotonic())


def _note(ended: _Running, outcome: Outcome, *, stopping: bool) -> None:
    name, minutes = ended.job.name, (time.monotonic() - ended.began) / 60
    if ended.process.returncode == 0 and ended.job.outcome.exists():
        outcome.done.append(name)
        logger.info("done %s in %.1f min", name, minutes)
    elif not stopping:
        outcome.failed[name] = ended.log
        lines = ended.log.read_text(errors="replace").strip().splitlines()[-3:]
        logger.error(
            "FAILED %s (status %s): %s; all of it: %s",
            name, ended.process.returncode, " / ".join(lines), ended.log,
        )  # fmt: skip


def _without_hopeless(waiting: list[Job], outcome: Outcome) -> list[Job]:
    lost = {*outcome.failed, *outcome.skipped}
    hopeful = []
    for job in waiting:  # in order, so that a lost job takes its followers along
        if lost & set(job.needs):
            lost.add(job.name)
            outcome.skipped.append(job.name)
        else:
            hopeful.append(job)
    return hopeful


def _stop(running: list[_Running]) -> None:
    for item in running:
        logger.info("asking %s to stop", item.job.name)
        item.process.send_signal(signal.SIGTERM)
    for item in running:
        item.process.wait()


def _tell(done: int, total: int, running: list[_Running]) -> None:
    for item in running:
        lines = item.log.read_text(errors="replace").strip().splitlines()
        logger.info("%d/%d done; %s: %s", done, total, item.job.name, lines[-1] if lines else "...")


@contextmanager
def _stopped_at_the_end(running: list[_Running]) -> Iterator[None]:
    """A context that leaves no job behind, however it ends."""
    try:
        yield
    finally:
        _stop(running)


@contextmanager
def _stop_wish() -> Iterator[list[int]]:
    """A list that holds a signal's number once one has asked us to end."""
    wish: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        wish.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
