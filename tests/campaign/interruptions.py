"""Runs that are killed, stopped, interrupted twice and cramped at random moments, then resumed."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from processes import PATIENCE
from training_runs import final_state, small_config, write_recipe

from crate_mae.common.litter import is_litter
from crate_mae.training.pretrain import pretrain

INTERRUPTIONS = ("kill -9", "SIGTERM", "Ctrl-C twice", "full disk")
STATUS = {"kill -9": {-9}, "SIGTERM": {143, -15}, "Ctrl-C twice": {130, 143, -2}, "full disk": {1}}
"""Exit statuses that are right; the finished run's 0 always is. A signal before the run has begun
ends the process as it ends any."""


@dataclass
class Interrupted:
    """What came of interrupted runs."""

    tried: int = 0
    equal: Counter[str] = field(default_factory=Counter)
    begun_again: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The figures as lines."""
        lines = [f"runs interrupted {self.tried}"]
        for kind in INTERRUPTIONS:
            lines.append(
                f"  {kind}: {self.equal[kind]} ended bit for bit as a whole one,"
                f" {self.begun_again[kind]} of them begun again with the same words"
            )
        return "\n".join([*lines, f"faults {len(self.bad)}", *(f"  {told}" for told in self.bad)])


def interrupted(kind: str, place: Path, seed: str, runs: Interrupted) -> None:
    """Interrupt a run once or several times, resume it to its end, compare it with a whole one."""
    draw = random.Random(seed)
    whole = place / "whole"
    if not whole.exists():
        pretrain(small_config(), whole)
    recipe = write_recipe(small_config(), place / "recipe-of-runs.yaml")
    folder = place / f"interrupted-{runs.tried}"
    runs.tried += 1
    start = ["pretrain", "--config", str(recipe), "--out", str(folder)]
    words, again = start, False
    for _ in range(draw.randint(1, 3)):
        status, said = _sitting(kind, words, folder, draw)
        if "Traceback" in said:
            runs.bad.append(f"{kind}, seed {seed}: {said[-800:]}")
        if status not in STATUS[kind] | {0}:
            runs.bad.append(f"{kind}, seed {seed}: status {status}: {said[-300:]}")
        born = (folder / "config.yaml").exists()
        again = again or not born
        words = ["pretrain", "--resume", str(folder)] if born else start
    status, said = _sitting("none", words, folder, draw)
    if status != 0:
        runs.bad.append(f"{kind}, seed {seed}: resuming ended with {status}: {said[-800:]}")
        return
    left = [path.name for path in folder.rglob("*") if is_litter(path.name)]
    if left:
        runs.bad.append(f"{kind}, seed {seed}: litter {left}")
    difference = _difference(whole, folder)
    if difference:
        runs.bad.append(f"{kind}, seed {seed}: {difference}")
    else:
        runs.equal[kind] += 1
        runs.begun_again[kind] += again
    shutil.rmtree(folder)


def _sitting(kind: str, words: list[str], folder: Path, draw: random.Random) -> tuple[int, str]:
    """(exit status, output) of one sitting of a run."""
    limit = draw.choice((2_000, 20_000, 60_000, 120_000)) if kind == "full disk" else None

    def cramped() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = subprocess.Popen(
        [sys.executable, "-m", "crate_mae", *words], text=True, preexec_fn=cramped,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if kind in ("none", "full disk"):
        return _ended(process)
    # At a moment of the run itself rather than of the imports before it, mostly.
    lines = draw.randint(0, 12)
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        log = folder / "metrics.jsonl"
        if (folder.exists() and not lines) or (log.exists() and log.stat().st_size > 90 * lines):
            break
        time.sleep(0.002)
    time.sleep(draw.random() * 0.2)
    for number in {"kill -9": (9,), "SIGTERM": (15,), "Ctrl-C twice": (2, 2)}[kind]:
        if process.poll() is None:
            process.send_signal(signal.Signals(number))
            time.sleep(0.05)
    return _ended(process)


def _ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def _difference(whole: Path, folder: Path) -> str:
    """What differs of two finished runs, or ""."""
    first, second = final_state(whole), final_state(folder)
    if first.keys() != second.keys():
        return "other tensors"
    differ = [key for key in first if not torch.equal(first[key], second[key])]
    if differ:
        return f"{len(differ)} tensors differ, such as {differ[0]}"

    def steps(run: Path) -> list[int]:
        return [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]

    return "" if steps(whole) == steps(folder) else "other steps in metrics.jsonl"
